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
from vda.losses import cross_entropy, frame_loss, tube_loss
from vda.methods.adversarial import AdversarialSettings, Contest, contest
from vda.methods.base import Losses, Method, Round, tube_labels, tube_logits, untracked, wants_tubes
from vda.models import ImageDiscriminator, SequenceDiscriminator

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
            logits = tube_logits(self.network, source.frames)  # [B, T, K, H, W]
        source_tube = logits.softmax(2).transpose(1, 2)  # U~_S, [B, K, T, H, W]
        yield self._supervised(logits, source_tube, labels)

        for discriminator in self.discriminators.values():
            target_tube = tube_logits(self.network, target.frames).softmax(2).transpose(1, 2)
            maps = self._view(source_tube.detach()), self._view(target_tube)
            yield from contest({"": Contest(discriminator, *maps, self.settings.lambda_adv)}, self.settings.gan)

    def _supervised(self, logits: Tensor, tube: Tensor, labels: Tensor) -> Losses:
        # Eq. 9 adds the mean cross entropies of the frames, it does not average them.
        losses = {"seg": sum(cross_entropy(logits[:, t], labels[:, t]) for t in range(labels.shape[1]))}
        if self.settings.tube != "none":
            tube_or_frame = tube_loss if self.settings.tube == "tube" else frame_loss
            losses["tube"] = self.settings.tube_weight * tube_or_frame(tube, labels)
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
