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

from torch import Tensor, nn

from vda import config
from vda.data.tubes import Batch
from vda.losses import cross_entropy, discriminator_loss, frame_loss, generator_loss, tube_loss
from vda.methods.base import Losses, Method, tube_labels, tube_logits, untracked
from vda.models import ImageDiscriminator, SequenceDiscriminator, frozen


class VAT(Method):
    """Tube matching loss and sequence discriminator; the ablations of Table 3 are the options of `config.VAT`."""

    def __init__(self, network: nn.Module, settings: config.VAT, num_classes: int, tube_length: int) -> None:
        super().__init__(network)
        self.settings = settings
        if settings.discriminator == "sequence":
            self.discriminators["video"] = SequenceDiscriminator(num_classes, tube_length, settings.discriminator_width)
        elif settings.discriminator == "image":
            self.discriminators["image"] = ImageDiscriminator(num_classes, settings.discriminator_width)

    def losses(self, source: Batch, target: Batch) -> Iterator[Losses]:
        labels = tube_labels(source)  # [B, T, H, W]
        alone = self.settings.discriminator == "none"  # then no target frame is seen, and statistics follow the source
        with nullcontext() if alone else untracked(self.network):
            logits = tube_logits(self.network, source.frames)  # [B, T, K, H, W]
        source_tube = logits.softmax(2).transpose(1, 2)  # U~_S, [B, K, T, H, W]
        yield self._supervised(logits, source_tube, labels)

        if alone:
            return
        source_tube = source_tube.detach()
        target_tube = tube_logits(self.network, target.frames).softmax(2).transpose(1, 2)
        with frozen(self._discriminator) as discriminator:
            fooled = discriminator(self._view(target_tube))
        yield {"adv": self.settings.lambda_adv * generator_loss(fooled, self.settings.gan)}

        yield {
            "disc": discriminator_loss(
                self._discriminator(self._view(source_tube)),
                self._discriminator(self._view(target_tube.detach())),
                self.settings.gan,
            )
        }

    def _supervised(self, logits: Tensor, tube: Tensor, labels: Tensor) -> Losses:
        # Eq. 9 adds the mean cross entropies of the frames, it does not average them.
        losses = {"seg": sum(cross_entropy(logits[:, t], labels[:, t]) for t in range(labels.shape[1]))}
        if self.settings.tube != "none":
            tube_or_frame = tube_loss if self.settings.tube == "tube" else frame_loss
            losses["tube"] = self.settings.tube_weight * tube_or_frame(tube, labels)
        return losses  # type: ignore[return-value]

    @property
    def _discriminator(self) -> nn.Module:
        return next(iter(self.discriminators.values()))

    def _view(self, tube: Tensor) -> Tensor:
        """The tube as the discriminator takes it: whole, or frame by frame."""
        return tube if self.settings.discriminator == "sequence" else tube.transpose(1, 2).flatten(0, 1)
