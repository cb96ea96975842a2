"""Discriminators: of single frames (Eq. 1; layers of AdaptSegNet) and of tubes of frames (Eq. 8).

Both are fully convolutional and give raw scores, one for each 32x32 window; no norm layers, no sigmoid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

_SLOPE = 0.2
MINIMUM = 32  # five halvings; a smaller map would leave nothing to score


def _trunk(width: int) -> nn.Sequential:
    """What follows the first convolution: [N, width, H/2, W/2] -> [N, 1, H/32, W/32]."""
    layers: list[nn.Module] = []
    for i in range(3):
        layers += [
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 4, stride=2, padding=1),
        ]
    return nn.Sequential(*layers, nn.LeakyReLU(_SLOPE), nn.Conv2d(width * 8, 1, 4, stride=2, padding=1))


def _check_map(maps: Tensor, shape: str, ndim: int, channels: int) -> None:
    if maps.ndim != ndim or maps.shape[1] != channels:
        raise ValueError(f"maps: wanted {shape} with K = {channels}, got {list(maps.shape)}")
    if min(maps.shape[-2:]) < MINIMUM:
        raise ValueError(
            f"maps: wanted at least {MINIMUM} x {MINIMUM} pixels, got {' x '.join(map(str, maps.shape[-2:]))}"
        )


class ImageDiscriminator(nn.Module):
    """[N, K, H, W] softmax or self-information maps -> scores [N, 1, floor(H/32), floor(W/32)].

    Five 4x4 convolutions of stride 2, channels K, 64, 128, 256, 512, 1 (for width 64), LeakyReLU 0.2 between.
    Raises ValueError below 32 x 32 pixels.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Conv2d(num_classes, width, 4, stride=2, padding=1)
        self.trunk = _trunk(width)

    def forward(self, maps: Tensor) -> Tensor:
        _check_map(maps, "[N, K, H, W]", 4, self.num_classes)
        return self.trunk(self.first(maps))


class SequenceDiscriminator(nn.Module):
    """[N, K, T, H, W] softmax maps of T consecutive frames -> scores [N, 1, floor(H/32), floor(W/32)]   (Eq.
    8).

    The image discriminator with a first 3-D convolution of stride 2 in time and space. Its kernel spans the
    whole tube (T x 4 x 4, no padding in time), so that every frame is seen and one step in time is left. The
    softmax is taken per frame. Raises ValueError for other lengths than `frames` and below 32 x 32 pixels.
    """

    def __init__(self, num_classes: int, frames: int = 2, width: int = 64) -> None:
        super().__init__()
        if frames < 2:
            raise ValueError(f"frames: wanted a tube of at least 2, got {frames}")
        self.num_classes, self.frames = num_classes, frames
        self.first = nn.Conv3d(num_classes, width, (frames, 4, 4), stride=(2, 2, 2), padding=(0, 1, 1))
        self.trunk = _trunk(width)

    def forward(self, maps: Tensor) -> Tensor:
        _check_map(maps, "[N, K, T, H, W]", 5, self.num_classes)
        if maps.shape[2] != self.frames:
            raise ValueError(f"maps: wanted tubes of {self.frames} frames, got {maps.shape[2]}")
        return self.trunk(self.first(maps).squeeze(2))


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """A forward pass inside lets gradients through `network` and collects none in it (generator's step)."""
    required = [p for p in network.parameters() if p.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        yield network
    finally:
        for parameter in required:
            parameter.requires_grad_(True)
