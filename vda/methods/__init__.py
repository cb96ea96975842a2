"""Methods by name. A new one is one file and one line here."""

from __future__ import annotations

from vda.methods.base import Method
from vda.methods.supervised import Supervised
from vda.methods.vat import VAT
from vda.methods.vst import VST

METHODS: dict[str, type[Method]] = {
    "source_only": Supervised,
    "vat": VAT,
    "vst": VST,
    "oracle": Supervised,
}

__all__ = ["METHODS", "Method"]
