"""The adversarial part that methods share: maps of segmentations, and the contest over them (Eq. 1, 2 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from vda.losses import Gan, discriminator_loss, generator_loss, self_information
from vda.methods.base import Adam, Losses, Settings
from vda.models import frozen

Maps = Callable[[Tensor], Tensor]  # logits [N, K, H, W] -> what a discriminator sees, [N, K, H, W]


def softmax(logits: Tensor) -> Tensor:
    """Soft segmentation maps, the input of AdaptSegNet's, IAT's and the paper's discriminators."""
    return logits.softmax(1)


MAPS: dict[str, Maps] = {"softmax": softmax, "self_information": self_information}


@dataclass(frozen=True)
class AdversarialSettings(Settings):
    """What the settings of every adversarial method have."""

    gan: Gan = "vanilla"
    """Flavour of the adversarial loss. Each has weights of its own: about ten times as much with least_squares."""
    lambda_adv: float = 0.001
    """Weight of the adversarial loss."""
    discriminator_width: int = 64
    """Channels of the discriminator's first layer; 64 is the published width."""
    discriminator_optimiser: Adam = field(default_factory=Adam)


@dataclass(frozen=True)
class Contest:
    """One discriminator, with the maps that it tells apart. source: without a gradient."""

    discriminator: nn.Module
    source: Tensor
    target: Tensor
    weight: float


def contest(levels: Mapping[str, Contest], gan: Gan) -> Iterator[Losses]:
    """The two groups of an adversarial step: the network tries to pass target for source, then discriminators learn.

    The network's gradient comes first, with the discriminators frozen; they learn from the same maps, detached. level
    names end up in the names of the losses ("adv", "disc" for the level "").
    """
    fooling: Losses = {}
    for name, level in levels.items():
        with frozen(level.discriminator) as discriminator:
            fooling["adv" + name] = level.weight * generator_loss(discriminator(level.target), gan)
    yield fooling
    yield {
        "disc" + name: discriminator_loss(
            level.discriminator(level.source.detach()), level.discriminator(level.target.detach()), gan
        )
        for name, level in levels.items()
    }
