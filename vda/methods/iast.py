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

from vda.data.tubes import Batch
from vda.fused import cross_entropy
from vda.methods.base import Losses, frame_labels, frames
from vda.methods.self_training import RegularisedSettings, TargetTraining
from vda.ops import segmentation_sums
from vda.options import Pseudo


@dataclass(frozen=True)
class IASTSettings(RegularisedSettings):
    """Instance-adaptive self-training."""

    start: str = "iat"
    pseudo: Pseudo = field(default_factory=lambda: Pseudo(policy="instance_adaptive", rule="iast"))


class IAST(TargetTraining):
    """Self-training that sharpens what is unlabelled and smooths what is labelled."""

    title = "IAST"
    settings_type = IASTSettings

    def losses(self, source: Batch | None, target: Batch) -> Iterator[Losses]:
        sums = segmentation_sums(self.network(frames(target)), frame_labels(target))
        yield {"seg": cross_entropy(sums), "reg": self.regulariser(sums)}
        yield from self.source_losses(source)
