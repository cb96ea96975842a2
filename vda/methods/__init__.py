"""Methods by name. A new one is one file and one line here."""

from __future__ import annotations

from vda.methods.adaptsegnet import AdaptSegNet
from vda.methods.advent import Advent, MinEnt
from vda.methods.base import Method, Round
from vda.methods.cbst import CBST
from vda.methods.ccm import CCM
from vda.methods.crst import CRST
from vda.methods.fda import FDA
from vda.methods.flow import FlowTraining
from vda.methods.iast import IAST
from vda.methods.iat import IAT
from vda.methods.intrada import IntraDA
from vda.methods.supervised import Oracle, SourceOnly
from vda.methods.vat import VAT
from vda.methods.videogan import VideoGAN
from vda.methods.vst import VST

METHODS: dict[str, type[Method]] = {
    "source_only": SourceOnly,
    "oracle": Oracle,
    "adaptsegnet": AdaptSegNet,
    "advent": Advent,
    "minent": MinEnt,
    "iat": IAT,
    "cbst": CBST,
    "crst": CRST,
    "fda": FDA,
    "ccm": CCM,
    "intrada": IntraDA,
    "iast": IAST,
    "vat": VAT,
    "vst": VST,
    "videogan": VideoGAN,
    "flow_training": FlowTraining,
}

__all__ = ["METHODS", "Method", "Round"]
