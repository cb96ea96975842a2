"""Methods by name. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from vda.methods.base import Method
from vda.methods.flow import FlowTraining
from vda.methods.supervised import Supervised
from vda.methods.vat import VAT
from vda.methods.vst import VST

# name -> constructor: the network, then the settings that the method needs
METHODS: dict[str, Callable[..., Method]] = {
    "source_only": Supervised,
    "vat": VAT,
    "vst": VST,
    "oracle": Supervised,
    "flow": FlowTraining,
}

__all__ = ["METHODS", "Method"]
