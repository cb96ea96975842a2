"""VideoGAN: translation of video (Chen et al., AAAI 2020, arXiv 2004.08058), then training on translated source.

Written from its abstract and from what CycleGANs have in common, since neither code nor all details are public. Two
generators of X shape (vda/models/translation.py) take two frames of one video each, source to target and back:

    L(G) = GAN_t(G(x_s)) + GAN_s(F(x_t)) + lambda_cycle (|F(G(x_s)) - x_s| + |G(F(x_t)) - x_t|)
         + lambda_histogram [ h(G(x_s), x_t) + h(F(x_t), x_s) + h between the two frames of each translated pair ]
    L(D) = 1/2 [ GAN(D(real)) + GAN(D(translated)) ]        one D for each domain, on single frames, least squares

Then the segmentation network learns on G(x_s) with the source's labels: nothing is added at test time. The original, as
far as it is known, translates the target instead, at test time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vda.data.tubes import Batch, true_labels
from vda.errors import UsageError
from vda.histogram import histogram_loss
from vda.methods.adversarial import Contest, contest
from vda.methods.base import Adam, Losses, Method, Round, Settings, frame_labels, supervised
from vda.models.translation import PairGenerator, PatchDiscriminator
from vda.options import Optimiser, wanted

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class VideoGANSettings(Settings):
    """Translation of source to target, then supervised training on what it makes of the source."""

    start: str = ""
    translation: Optimiser = field(
        default_factory=lambda: Optimiser(iterations=40_000, name="adam", lr=2e-4, betas=(0.5, 0.999), weight_decay=0.0)
    )
    """Optimiser of the generators; that of the discriminators has the same rate and momenta."""
    width: int = 64
    """Channels of the first layers of generators and discriminators."""
    blocks: int = 9
    """Residual blocks of a generator."""
    lambda_cycle: float = 10.0
    """Weight of the mean absolute difference after there and back."""
    lambda_histogram: float = 1.0
    """Weight of the difference of colour histograms."""

    def __post_init__(self) -> None:
        wanted(self.width >= 1 and self.blocks >= 0, "videogan.width, blocks", "at least 1 and 0", self.width)


class Translators(nn.Module):
    """Both directions; what `Translation` trains."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.there, self.back = PairGenerator(width, blocks), PairGenerator(width, blocks)
        self.config = self.there.config

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return self.there.parameter_groups(lr) + self.back.parameter_groups(lr)


class Translation(Method):
    """The adversarial training of the translators; labels are not seen."""

    network: Translators
    leaves_network = False

    def __init__(self, settings: VideoGANSettings) -> None:
        super().__init__(Translators(settings.width, settings.blocks))
        self.settings = settings
        self.discriminators["target"] = PatchDiscriminator(settings.width)
        self.discriminators["source"] = PatchDiscriminator(settings.width)
        self.discriminator_optimiser = Adam(settings.translation.lr, settings.translation.betas)

    def losses(self, source: Batch, target: Batch) -> Iterator[Losses]:
        x_s, x_t = source.frames, target.frames  # [B, 2, 3, H, W]
        to_target, to_source = self.network.there(x_s), self.network.back(x_t)
        cycle = F.l1_loss(self.network.back(to_target), x_s) + F.l1_loss(self.network.there(to_source), x_t)
        histogram = _histograms(to_target, x_t) + _histograms(to_source, x_s)
        # `contest` passes its second maps for its first: translated frames for real ones
        translated = {"target": (x_t, to_target), "source": (x_s, to_source)}
        levels = {
            f"_{domain}": Contest(self.discriminators[domain], real.flatten(0, 1), fake.flatten(0, 1), 1.0)
            for domain, (real, fake) in translated.items()
        }
        groups = contest(levels, "least_squares")
        yield next(groups) | {
            "cycle": self.settings.lambda_cycle * cycle,
            "histogram": self.settings.lambda_histogram * histogram,
        }
        yield from groups


def _histograms(fake: Tensor, real: Tensor) -> Tensor:
    """Each translated frame against a real one of its new domain, and the two frames of a pair against each other."""
    return histogram_loss(fake.flatten(0, 1), real.flatten(0, 1)) + histogram_loss(fake[:, 0], fake[:, 1])


class VideoGAN(Method):
    """L = CE(P(G(x_s)), y_s)."""

    title = "VideoGAN"
    settings_type = VideoGANSettings

    def __init__(self, network: nn.Module, translator: PairGenerator) -> None:
        super().__init__(network)
        self._translator = [translator.eval()]  # kept out of the module tree: neither trained nor saved

    def losses(self, source: Batch, target: Batch | None = None) -> Iterator[Losses]:
        with torch.no_grad():
            images = self._translator[0](source.frames).flatten(0, 1)
        yield {"seg": supervised(self.network, images, frame_labels(source))}

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        source, target = run.tubes(run.source, true_labels), run.tubes(run.target, None, stream=1)
        translation = Translation(settings)
        yield Round(folder / "translation", translation, settings.translation, source, target)
        network = run.network(settings.start)
        method = cls(network, translation.network.there)
        yield Round(folder / "segmentation", method, settings.optimiser, source, None)

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        if run.config.data.tube_length != 2:
            found = run.config.data.tube_length
            raise UsageError(f"videogan: wanted tubes of 2 frames, the arms of its X, found data.tube_length {found}")
