"""AdaptSegNet: adversarial alignment of segmentation maps (Tsai et al., CVPR 2018, arXiv 1802.10349).

    L(G)   = CE(P_s, y_s) + lambda_seg CE(P'_s, y_s) + lambda_adv L_adv(P_t) + lambda_aux L_adv(P'_t)
    L(D)   = 1/2 [ GAN(D(P_s), source) + GAN(D(P_t), target) ]         one D for each level

P' is the prediction of an auxiliary head on the features before the last stage of the network ("multi-level"); it
learns with the network and is not part of the result. The published code sums two of the four ASPP branches, which its
authors call a mistake; here all methods sum four.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from vda.data.tubes import Batch, true_labels
from vda.losses import cross_entropy
from vda.methods.adversarial import MAPS, AdversarialSettings, Contest, contest
from vda.methods.base import Losses, Method, Round, frame_labels, frames
from vda.models import ASPP, ImageDiscriminator, untracked, upsample

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class AdaptSegNetSettings(AdversarialSettings):
    """Adversarial alignment of segmentation maps, of one or two levels of the network."""

    multi_level: bool = True
    """An auxiliary head and a second discriminator, as the published default; else one level."""
    lambda_seg_aux: float = 0.1
    """Weight of the auxiliary head's cross entropy."""
    lambda_adv_aux: float = 0.0002
    """Weight of the auxiliary head's adversarial loss."""


class AdaptSegNet(Method):
    """Image discriminators on softmax maps; the variants with least squares and with one level are settings."""

    title = "AdaptSegNet"
    settings_type = AdaptSegNetSettings
    maps: ClassVar[str] = "softmax"
    adversarial: ClassVar[bool] = True
    foreign_source: ClassVar[bool] = True  # another domain, whose statistics batch norm must not follow

    def __init__(self, network: nn.Module, settings: AdaptSegNetSettings, num_classes: int) -> None:
        super().__init__(network)
        self.settings = settings
        self.discriminator_optimiser = settings.discriminator_optimiser
        if settings.multi_level:
            self.auxiliary["aux"] = ASPP(self.network.body.layer3_channels, num_classes)
        if self.adversarial:
            for level in ("main", *self.auxiliary):
                self.discriminators[level] = ImageDiscriminator(num_classes, settings.discriminator_width)

    def losses(self, source: Batch, target: Batch) -> Iterator[Losses]:
        settings, maps = self.settings, MAPS[self.maps]
        labels = frame_labels(source)
        with untracked(self.network) if self.foreign_source else nullcontext():
            main, *aux = self.levels(frames(source))
        seg = {"seg": cross_entropy(main, labels)}
        if aux:
            seg["seg_aux"] = settings.lambda_seg_aux * cross_entropy(aux[0], labels)
        source_maps = [maps(logits.detach()) for logits in (main, *aux)]
        yield seg

        target_maps = [maps(logits) for logits in self.levels(frames(target))]
        weights = (settings.lambda_adv, settings.lambda_adv_aux)
        levels = zip(("", "_aux"), self.discriminators.values(), source_maps, target_maps, weights, strict=False)
        yield from contest({name: Contest(d, s, t, weight) for name, d, s, t, weight in levels}, settings.gan)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Logits [N, K, H, W] of the network, and of the auxiliary head where there is one."""
        size = (images.shape[-2], images.shape[-1])
        if not self.auxiliary:
            return [upsample(self.network(images), size)]
        layer3, layer4 = self.network.features(images)
        return [upsample(self.network.head(layer4), size), upsample(self.auxiliary["aux"](layer3), size)]

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        method = cls(run.network(settings.start), settings, run.source.num_classes)
        source, target = run.tubes(run.source, true_labels), run.tubes(run.target, None, stream=1)
        yield Round(folder, method, settings.optimiser, source, target)
