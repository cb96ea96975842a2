"""Every method of METHODS with every variant that its settings know, small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from vda.data.tubes import Batch
from vda.flow.flownet2 import build_estimator
from vda.methods import Method
from vda.methods.adaptsegnet import AdaptSegNet, AdaptSegNetSettings
from vda.methods.advent import Advent, AdventSettings, MinEnt, MinEntSettings
from vda.methods.cbst import CBST, CBSTSettings
from vda.methods.ccm import CCM, CCMSettings
from vda.methods.crst import CRST, CRSTSettings
from vda.methods.fda import FDA, FDASettings
from vda.methods.flow import FlowTraining
from vda.methods.iast import IAST, IASTSettings
from vda.methods.iat import IAT, IATSettings
from vda.methods.intrada import IntraDA, IntraDASettings
from vda.methods.supervised import Oracle, SourceOnly
from vda.methods.vat import VAT, VATSettings
from vda.methods.videogan import Translation, VideoGAN, VideoGANSettings
from vda.methods.vst import VST, VSTSettings
from vda.models import PairGenerator, build_network
from vda.options import Occlusion

K, T, H, W = 3, 2, 32, 48
THETA = torch.tensor([0.45, 0.45, 0.46])  # a new network is unsure: with these some pixels are kept and some are not

Kind = Literal["labelled", "bare", "mixed"] | None
NET, HEADS, CRITICS = {"network"}, {"network", "auxiliary"}, {"discriminators"}
NARROW = {"discriminator_width": 4}


def batch(kind: Kind = "labelled", *, seed: int = 1, frames: int = T, flow: float = 0.0, part: int = 0) -> Batch | None:
    """Two tubes of noise with labels in blocks of 8 x 8 pixels, a quarter ignored, and a horizontal flow everywhere.

    mixed: the first tube is the target's, the second the source's.
    """
    if kind is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    flows = torch.zeros(2, frames - 1, 2, 2, H, W)
    flows[:, :, 0, 0], flows[:, :, 1, 0] = flow, -flow
    labels = torch.randint(0, K + 1, (2, frames, H // 8, W // 8), generator=generator)
    labels = labels.repeat_interleave(8, 2).repeat_interleave(8, 3).to(torch.uint8)
    labels[labels == K] = 255
    parts = torch.tensor([1, 0]) if kind == "mixed" else torch.full((2,), part)
    images = torch.rand(2, frames, 3, H, W, generator=generator)
    return Batch(images, None if kind == "bare" else labels, flows, [], parts)


def network(batch_norm: str = "train", name: str = "deeplab-resnet18") -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, K, width=8, batch_norm=batch_norm)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """make: the method around a network. groups: the losses of each group in turn, and the modules that they reach."""

    make: Callable[[nn.Module], Method]
    source: Kind
    target: Kind
    groups: dict[str, set[str]]

    def build(self, batch_norm: str = "train") -> Method:
        """The same method every time, in training mode."""
        return self.make(network(batch_norm)).train()

    def batches(self) -> tuple[Batch | None, Batch | None]:
        return batch(self.source), batch(self.target, seed=2)

    @property
    def both_domains(self) -> bool:
        return self.target == "mixed" or (self.source is not None and self.target is not None)


ONE_LEVEL = {"seg": NET, "adv": NET, "disc": CRITICS}
TWO_LEVELS = {"seg seg_aux": HEADS, "adv adv_aux": HEADS, "disc disc_aux": CRITICS}


def adversarial(method: type[AdaptSegNet], settings: type[AdaptSegNetSettings], **changes: Any) -> Case:
    made = settings(**NARROW, **changes)
    groups = TWO_LEVELS if made.multi_level else ONE_LEVEL
    return Case(lambda net: method(net, made, K), "labelled", "bare", groups)


def minent(multi_level: bool) -> Case:
    made = MinEntSettings(multi_level=multi_level)
    groups = {"seg seg1": HEADS, "ent ent1": HEADS} if multi_level else {"seg": NET, "ent": NET}
    return Case(lambda net: MinEnt(net, made, K), "labelled", "bare", groups)


def crst(regulariser: Literal["mrkld", "lrent"]) -> Case:
    groups = {"seg reg": NET} if regulariser == "mrkld" else {"seg": NET}
    return Case(lambda net: CRST(net, CRSTSettings(regulariser=regulariser), THETA), None, "mixed", groups)


def fda(target: Kind) -> Case:
    groups = {"seg": NET, "ent" if target == "bare" else "ent pseudo": NET}
    return Case(lambda net: FDA(net, FDASettings(), 0.05), "labelled", target, groups)


def vat(**changes: Any) -> Case:
    made = VATSettings(**NARROW, **changes)
    groups = {"seg" if made.tube == "none" else "seg tube": NET}
    if made.discriminator == "none":
        return Case(lambda net: VAT(net, made, K, T), "labelled", None, groups)
    groups |= {"adv": NET, "disc": CRITICS}
    return Case(lambda net: VAT(net, made, K, T), "labelled", "bare", groups)


def vst(source: Kind = None, **changes: Any) -> Case:
    made = VSTSettings(**changes)
    groups = {"seg reg": NET} | ({"source": NET} if source else {})
    return Case(lambda net: VST(net, made, Occlusion()), source, "labelled", groups)


def translation(_: nn.Module) -> Method:
    return Translation(VideoGANSettings(width=4, blocks=1))


def segmentation(net: nn.Module) -> Method:
    return VideoGAN(net, PairGenerator(width=4, blocks=1))


def flow_training(variant: str) -> Case:
    return Case(lambda _: FlowTraining(build_estimator(variant, width=4)), "labelled", None, {"flow": NET})


CASES: dict[str, Case] = {
    "source_only": Case(SourceOnly, "labelled", None, {"seg": NET}),
    "oracle": Case(Oracle, "labelled", None, {"seg": NET}),
    "adaptsegnet": adversarial(AdaptSegNet, AdaptSegNetSettings),
    "adaptsegnet:single_level": adversarial(AdaptSegNet, AdaptSegNetSettings, multi_level=False),
    "adaptsegnet:least_squares": adversarial(
        AdaptSegNet, AdaptSegNetSettings, multi_level=False, gan="least_squares", lambda_adv=0.01
    ),
    "advent": adversarial(Advent, AdventSettings),
    "advent:single_level": adversarial(Advent, AdventSettings, multi_level=False),
    "minent": minent(multi_level=True),
    "minent:single_level": minent(multi_level=False),
    "iat": adversarial(IAT, IATSettings),
    "iat:multi_level": adversarial(IAT, IATSettings, multi_level=True),
    "cbst": Case(lambda net: CBST(net, CBSTSettings()), None, "mixed", {"seg": NET}),
    "crst": crst("mrkld"),
    "crst:lrent": crst("lrent"),
    "fda": fda("bare"),
    "fda:later_round": fda("labelled"),
    "ccm": Case(lambda net: CCM(net, CCMSettings()), None, "mixed", {"seg ent": NET}),
    "intrada": adversarial(IntraDA, IntraDASettings),
    "iast": Case(lambda net: IAST(net, IASTSettings()), None, "labelled", {"seg reg": NET}),
    "iast:source": Case(
        lambda net: IAST(net, IASTSettings(source_weight=0.5)), "labelled", "labelled", {"seg reg": NET, "source": NET}
    ),
    **{
        f"vat:{tube}-{discriminator}": vat(tube=tube, discriminator=discriminator)
        for tube in ("tube", "frame", "none")
        for discriminator in ("sequence", "image", "none")
    },
    "vat:least_squares": vat(gan="least_squares", lambda_adv=0.01),
    **{f"vst:{refine}": vst(refine=refine) for refine in ("strict", "lenient", "fill_in", "none")},
    "vst:source": vst("labelled", source_weight=0.5),
    "videogan:translation": Case(
        translation,
        "bare",
        "bare",
        {"adv_target adv_source cycle histogram": NET, "disc_target disc_source": CRITICS},
    ),
    "videogan:segmentation": Case(segmentation, "labelled", None, {"seg": NET}),
    **{f"flow_training:{variant}": flow_training(variant) for variant in ("flownet2-c", "flownet2-s", "flownet2-sd")},
}
