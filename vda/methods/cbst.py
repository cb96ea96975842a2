"""CBST: class-balanced self-training (Zou et al., ECCV 2018, arXiv 1810.07911).

Each round labels the target with argmax_k P_k / theta_k where that is at least 1; theta_k leaves the proportion alpha
of the pixels that are predicted as k over the whole set. Then it trains on all target and a small random part of the
source, with crops around the classes that are predicted least.

    L = CE over the labelled pixels of the mixed batch, a sum over all divided by their number

The published test at several scales with flips is left out, and so are the spatial priors (made for GTA5): every method
here labels from one prediction at one scale. CBST* is this from an adversarially adapted model: `start`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from vda.data.transforms import Augment
from vda.data.tubes import Batch, Mixed, Samples, true_labels
from vda.losses import cross_entropy
from vda.methods.base import Losses, frame_labels
from vda.methods.self_training import Labelled, SelfTraining, SelfTrainingSettings, mixed_logits
from vda.options import Optimiser, Pseudo, wanted

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class CBSTSettings(SelfTrainingSettings):
    """Class-balanced self-training."""

    optimiser: Optimiser = field(
        default_factory=lambda: Optimiser(iterations=10_000, batch=2, lr=5e-5, schedule="constant")
    )
    pseudo: Pseudo = field(default_factory=lambda: Pseudo(policy="class_balanced"))
    source_share: float = 0.03
    """Part of the source's tubes that is mixed in, in the first round."""
    source_share_step: float = 0.0025
    """How much that grows with each round, up to 0.06 or where it began."""
    augment: Augment = field(default_factory=lambda: Augment(flip=0.5, scale=(0.5, 1.5), focus=0.8))
    """Augmentation of all frames. `focus` is the chance of a crop around a rarely predicted class of the target.
    Without `crop` a crop is as large as the frame, and factors below 1 count as 1."""
    rare: float = 1e-3
    """Share of all predicted pixels below which a class counts as rarely predicted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted(0 < self.source_share <= 1, "source_share", "above 0, at most 1", self.source_share)
        wanted(self.source_share_step >= 0, "source_share_step", "0 or more", self.source_share_step)

    def source_in_round(self, r: int) -> float:
        share = self.source_share + r * self.source_share_step
        return max(self.source_share, min(share, 0.06))


class CBST(SelfTraining):
    """Cross entropy on pseudo-labelled target, mixed with a part of the source."""

    title = "CBST"
    mixes = True
    settings_type = CBSTSettings

    def __init__(self, network: nn.Module, settings: CBSTSettings) -> None:
        super().__init__(network)
        self.settings = settings

    def losses(self, source: None, target: Batch) -> Iterator[Losses]:
        yield {"seg": cross_entropy(mixed_logits(self.network, target), frame_labels(target))}

    @classmethod
    def batches(cls, run: Run, settings: Any, found: Labelled) -> tuple[Samples | None, Samples | None]:
        rare = [k for k, share in enumerate(found.labels.predicted) if 0 < share < settings.rare]
        changes = {"augment": settings.augment, "number": found.r}
        target = run.tubes(run.target, found.labels, focus=rare, stream=1, **changes)
        source = run.tubes(run.source, true_labels, **changes).part(settings.source_in_round(found.r), found.r)
        return None, Mixed([source, target])
