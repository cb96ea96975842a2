"""CCM: content-consistent matching (Li et al., ECCV 2020, arXiv 2008.08880). Self-training on target and chosen source.

Each round labels the target (a pixel where any class exceeds its threshold, or that is among the surest of its frame),
then looks in a random pool of the source for what resembles it: the frames whose classes lie where they lie in the
target (`layout_score`), and in them the pixels that the network sees as it sees their class in the target
(`similar_pixels`).

    L = CE over the labelled pixels of the mixed batch + 0.5 mean entropy of all its pixels

Layouts are compared on at most `layout_frames` frames of the target, evenly spread, since neighbours repeat. Whole
tubes of the source are chosen, by the mean over their frames. For tiny classes the published code's threshold index -0
lets every pixel pass; here their threshold is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from vda.data.tubes import Batch, Mixed, Samples
from vda.errors import UsageError
from vda.losses import cross_entropy, entropy
from vda.methods.base import Losses, frame_labels
from vda.methods.self_training import Labelled, SelfTraining, SelfTrainingSettings, mixed_logits
from vda.options import Optimiser, Pseudo, wanted
from vda.source_selection import matched_source

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class CCMSettings(SelfTrainingSettings):
    """Self-training on the target and on the part of the source that resembles it."""

    rounds: int = 6
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(iterations=5_000, batch=2, lr=7.5e-5))
    """Of one round; the learning rate falls by the square root of 2 from round to round."""
    pseudo: Pseudo = field(default_factory=lambda: Pseudo(policy="class_or_image", alpha=0.1))
    alpha_step: float = 0.0
    lambda_ent: float = 0.5
    """Weight of the entropy of all pixels."""
    pool: float = 0.2
    """Part of the source's tubes that a round looks at."""
    matched: float = 0.24
    """Part of the pool that a round trains on."""
    pixels: float = 0.9
    """Part of the pixels of each class of a frame that stay."""
    centres: int = 10
    """Clusters of the target's layouts for each class."""
    layout_frames: int = 500
    """Target frames that are clustered, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pool", "matched", "pixels"):
            wanted(0 < getattr(self, name) <= 1, f"ccm.{name}", "above 0, at most 1", getattr(self, name))
        for name in ("centres", "layout_frames"):
            wanted(getattr(self, name) >= 1, f"ccm.{name}", "at least 1", getattr(self, name))


class CCM(SelfTraining):
    """Cross entropy on both domains, and entropy."""

    title = "CCM"
    mixes = True
    settings_type = CCMSettings

    def __init__(self, network: nn.Module, settings: CCMSettings) -> None:
        super().__init__(network)
        self.settings = settings

    def losses(self, source: None, target: Batch) -> Iterator[Losses]:
        logits = mixed_logits(self.network, target)
        ent = self.settings.lambda_ent * entropy(logits).mean()
        yield {"seg": cross_entropy(logits, frame_labels(target)), "ent": ent}

    @classmethod
    def batches(cls, run: Run, settings: Any, found: Labelled) -> tuple[Samples | None, Samples | None]:
        network = run.network_at(found.model).eval()
        source = matched_source(run, settings, network, found.labels, found.folder / "source", found.r)
        target = run.tubes(run.target, found.labels, augment=settings.augment, stream=1, number=found.r)
        return None, Mixed([source, target])

    @classmethod
    def optimiser(cls, settings: Any, r: int) -> Optimiser:
        return replace(settings.optimiser, lr=settings.optimiser.lr / math.sqrt(2) ** r)

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        super().check(run, settings)
        count = len(run.tubes(run.source, None))
        if int(settings.pool * count) < 1:
            raise UsageError(
                f"ccm: wanted a pool of at least one tube, {settings.pool} of the source's {count} is none"
            )
