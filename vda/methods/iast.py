"""IAST: instance-adaptive self-training (Mei et al., ECCV 2020, arXiv 2008.12197; Eq. 3 to 5 of the paper).

Thresholds follow every frame (Eq. 4), so that frames with few sure pixels get labels too; three rounds from the image
adversarial model IAT with alpha = 0.2, 0.25, 0.3.

    L = CE(P_t, y^_t) + 3.0 entropy(P_t, unlabelled) + 0.1 KLD(P_t, labelled)

Eq. 5 has a source term; every published configuration gives it the weight 0, and so does the default. The published
code labels a later round with the checkpoint after the first of two epochs; here the last one labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from vda.data.tubes import Batch, Samples, true_labels
from vda.losses import cross_entropy, iast_regulariser
from vda.methods.base import Losses, frame_labels, frames, full_logits, untracked
from vda.methods.self_training import SelfTraining, SelfTrainingSettings
from vda.options import Pseudo
from vda.pseudo import PseudoLabels

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class IASTSettings(SelfTrainingSettings):
    """Instance-adaptive self-training."""

    start: str = "iat"
    pseudo: Pseudo = field(default_factory=lambda: Pseudo(policy="instance_adaptive", rule="iast"))
    entropy_weight: float = 3.0
    """Weight of the entropy of the unlabelled pixels."""
    kld_weight: float = 0.1
    """Weight of the divergence from uniform of the labelled pixels."""
    source_weight: float = 0.0
    """Weight of the cross entropy on the source."""


class IAST(SelfTraining):
    """Self-training that sharpens what is unlabelled and smooths what is labelled."""

    title = "IAST"
    settings_type = IASTSettings

    def __init__(self, network: nn.Module, settings: IASTSettings) -> None:
        super().__init__(network)
        self.settings = settings

    def losses(self, source: Batch | None, target: Batch) -> Iterator[Losses]:
        logits, labels = full_logits(self.network, frames(target)), frame_labels(target)
        reg = iast_regulariser(
            logits, labels, entropy_weight=self.settings.entropy_weight, kld_weight=self.settings.kld_weight
        )
        yield {"seg": cross_entropy(logits, labels), "reg": reg}
        if source is not None:
            with untracked(self.network):
                logits = full_logits(self.network, frames(source))
            yield {"source": self.settings.source_weight * cross_entropy(logits, frame_labels(source))}

    @classmethod
    def batches(cls, run: Run, settings: Any, labels: PseudoLabels, r: int) -> tuple[Samples | None, Samples | None]:
        source = run.tubes(run.source, true_labels) if settings.source_weight else None
        return source, run.tubes(run.target, labels, augment=settings.augment, stream=1)
