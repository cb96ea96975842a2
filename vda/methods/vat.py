"""Phase 1, video adversarial training: Eq. 6-9 of the paper.

    L(G)   = sum_l CE(P_{S,l}, y_{S,l}) + L_tube(U~_S, U_S) + lambda_V L_adv(G)        Eq. 9
    L(D_V) = 1/2 [ BCE(D_V(U~_S), source) + BCE(D_V(U~_T), target) ]                   Eq. 8

The generator takes the non-saturating form, BCE(D_V(U~_T), source), as every published code does: the printed
log(1 - D) has a vanishing gradient where the discriminator is sure. U~ stacks the softmax of each frame (not one
softmax over all frames, which would let frames compete).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from vda.data.tubes import Batch, true_labels
from vda.fused import cross_entropy, frame_loss, select, tube_loss
from vda.methods.adversarial import AdversarialSettings, Contest, contest
from vda.methods.base import Losses, Method, Round, tube_labels, wants_tubes
from vda.models import ImageDiscriminator, SequenceDiscriminator, untracked, upsample
from vda.ops import SegmentationSums, segmentation_sums

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class VATSettings(AdversarialSettings):
    """Phase 1, video adversarial training (Eq. 6-9)."""

    tube: Literal["tube", "frame", "none"] = "tube"
    """Dice over time and space (Eq. 6), over single frames (ablation, Table 3 row 3), or none."""
    tube_weight: float = 1.0
    """Weight of the tube matching loss; 1 in Eq. 9."""
    discriminator: Literal["sequence", "image", "none"] = "sequence"
    """Sequence discriminator (Eq. 8), image discriminator (Eq. 1, Table 3 rows 2 and 4), or none."""


class VAT(Method):
    """Tube matching loss and sequence discriminator; the ablations of Table 3 are settings."""

    title = "VAT"
    settings_type = VATSettings

    def __init__(self, network: nn.Module, settings: VATSettings, num_classes: int, tube_length: int) -> None:
        super().__init__(network)
        self.settings = settings
        self.discriminator_optimiser = settings.discriminator_optimiser
        if settings.discriminator == "sequence":
            self.discriminators["video"] = SequenceDiscriminator(num_classes, tube_length, settings.discriminator_width)
        elif settings.discriminator == "image":
            self.discriminators["image"] = ImageDiscriminator(num_classes, settings.discriminator_width)

    def losses(self, source: Batch, target: Batch) -> Iterator[Losses]:
        labels = tube_labels(source)  # [B, T, H, W]
        alone = not self.discriminators  # then no target frame is seen, and statistics follow the source
        with nullcontext() if alone else untracked(self.network):
            logits = self.network(source.frames.flatten(0, 1))  # [B T, K, h, w]
        yield self._supervised(segmentation_sums(logits, labels.flatten(0, 1)), labels.shape[1])

        for discriminator in self.discriminators.values():
            target_tube = soft_tube(self.network(target.frames.flatten(0, 1)), target.frames)
            maps = self._view(soft_tube(logits.detach(), source.frames)), self._view(target_tube)
            yield from contest({"": Contest(discriminator, *maps, self.settings.lambda_adv)}, self.settings.gan)

    def _supervised(self, sums: SegmentationSums, length: int) -> Losses:
        # Eq. 9 adds the mean cross entropies of the frames, it does not average them.
        losses = {"seg": sum(cross_entropy(select(sums, slice(t, None, length))) for t in range(length))}
        if self.settings.tube != "none":
            tube = tube_loss(sums, length=length) if self.settings.tube == "tube" else frame_loss(sums)
            losses["tube"] = self.settings.tube_weight * tube
        return losses  # type: ignore[return-value]

    def _view(self, tube: Tensor) -> Tensor:
        """The tube as the discriminator takes it: whole, or frame by frame."""
        return tube if self.settings.discriminator == "sequence" else tube.transpose(1, 2).flatten(0, 1)

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        method = cls(run.network(settings.start), settings, run.source.num_classes, run.config.data.tube_length)
        source, target = run.tubes(run.source, true_labels), run.tubes(run.target, None, stream=1)
        yield Round(folder, method, settings.optimiser, source, target)

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        wants_tubes(run, "vat")


def soft_tube(logits: Tensor, frames: Tensor) -> Tensor:
    """U~, the softmax of each frame of [B, T, 3, H, W]: from logits [B T, K, h, w] to [B, K, T, H, W]."""
    maps = upsample(logits, (frames.shape[-2], frames.shape[-1])).softmax(1)
    return maps.unflatten(0, frames.shape[:2]).transpose(1, 2)
