"""ADVENT and MinEnt: sure predictions on the target (Vu et al., CVPR 2019, arXiv 1811.12833).

    ADVENT: as AdaptSegNet, but the discriminators see weighted self-information maps -P log P / log K.
    MinEnt: L(G) = CE(P_s, y_s) + lambda_ent E(P_t) and the same for the auxiliary head, E the mean normalised entropy.

The two-network ensemble of the paper's best row is left out: every method here ends in one network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vda.data.tubes import Batch
from vda.losses import cross_entropy, min_entropy
from vda.methods.adaptsegnet import AdaptSegNet, AdaptSegNetSettings
from vda.methods.base import Losses, frame_labels, frames
from vda.models import untracked


@dataclass(frozen=True)
class AdventSettings(AdaptSegNetSettings):
    """Adversarial alignment of self-information maps."""


class Advent(AdaptSegNet):
    """AdaptSegNet on entropy maps."""

    title = "ADVENT"
    settings_type = AdventSettings
    maps = "self_information"


@dataclass(frozen=True)
class MinEntSettings(AdaptSegNetSettings):
    """Entropy minimisation on the target. No discriminator is used, so what is set of one has no effect."""

    lambda_adv: float = 0.001
    """Weight of the entropy."""
    lambda_adv_aux: float = 0.0002
    """Weight of the entropy of the auxiliary head's prediction."""


class MinEnt(AdaptSegNet):
    """Direct minimisation of the target's entropy."""

    title = "MinEnt"
    settings_type = MinEntSettings

    adversarial = False

    def losses(self, source: Batch, target: Batch) -> Iterator[Losses]:
        labels = frame_labels(source)
        with untracked(self.network):
            levels = self.levels(frames(source))
        weights = (1.0, self.settings.lambda_seg_aux)
        yield {f"seg{i or ''}": w * cross_entropy(x, labels) for i, (x, w) in enumerate(zip(levels, weights))}  # noqa: B905
        levels = self.levels(frames(target))
        weights = (self.settings.lambda_adv, self.settings.lambda_adv_aux)
        yield {f"ent{i or ''}": w * min_entropy(x) for i, (x, w) in enumerate(zip(levels, weights))}  # noqa: B905
