"""Translation of pairs of frames into another domain, after VideoGAN (Chen, Li, Ma and Zheng, arXiv 2004.08058).

No code of that method is public. Its paper gives the idea: an X-shaped generator takes two frames of one video and
translates them together, and a colour histogram ties both to one palette (`vda.histogram`). What it leaves open is
CycleGAN's (Zhu et al., arXiv 1703.10593): layers, widths, instance norm, reflection padding, 70 x 70 patches. Two
departures: frames are in [0, 1] on both sides, so a sigmoid ends the generator; and there is no pool of past images
for the discriminator, which would be one more random state that a resumed run has to have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SLOPE = 0.2
MINIMUM_PAIR = 5  # pixels: below, the trunk has no neighbour to reflect
MINIMUM_PATCH = 24  # pixels: below, nothing is left to score


def _initialise(network: nn.Module) -> None:
    """CycleGAN's: weights N(0, 0.02), biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _norm(channels: int) -> list[nn.Module]:
    """Instance norm without parameters, ReLU; the convolution before needs no bias."""
    return [nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)]


def _encoder(w: int) -> nn.Sequential:
    """[N, 3, H, W] -> [N, 4w, H/4, W/4], rounded up."""
    layers: list[nn.Module] = [nn.Conv2d(3, w, 7, padding=3, padding_mode="reflect", bias=False), *_norm(w)]
    for c in (w, 2 * w):
        layers += [nn.Conv2d(c, 2 * c, 3, stride=2, padding=1, bias=False), *_norm(2 * c)]
    return nn.Sequential(*layers)


def _decoder(w: int) -> nn.Sequential:
    """[N, 4w, h, w] -> [N, 3, 4h, 4w] in [0, 1]."""
    layers: list[nn.Module] = []
    for c in (4 * w, 2 * w):
        up = nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1, bias=False)
        layers += [up, *_norm(c // 2)]
    return nn.Sequential(*layers, nn.Conv2d(w, 3, 7, padding=3, padding_mode="reflect"), nn.Sigmoid())


class _Residual(nn.Module):
    """x plus two 3x3 convolutions of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=False) for _ in range(2)
        )
        self.residual = nn.Sequential(first, *_norm(channels), second, nn.InstanceNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


class PairGenerator(nn.Module):
    """Two frames of one video -> the same in the other domain: [N, 2, 3, H, W] -> [N, 2, 3, H, W], RGB in [0, 1].

    An X: one encoder sees each frame, their maps are joined (1x1 convolution on 8 width channels) and go through
    `blocks` residual blocks together, each half of the result goes through one decoder. Any size from 5 x 5 on.
    Raises ValueError for other shapes.
    """

    def __init__(self, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"width": width, "blocks": blocks}
        joined = 8 * width
        self.encoder = _encoder(width)
        self.join = nn.Sequential(nn.Conv2d(joined, joined, 1, bias=False), *_norm(joined))
        self.trunk = nn.Sequential(*(_Residual(joined) for _ in range(blocks)))
        self.decoder = _decoder(width)
        _initialise(self)

    def forward(self, pairs: Tensor) -> Tensor:
        if pairs.ndim != 5 or pairs.shape[1:3] != (2, 3) or min(pairs.shape[-2:]) < MINIMUM_PAIR:
            wanted = f"[N, 2, 3, H, W] of at least {MINIMUM_PAIR} x {MINIMUM_PAIR} pixels"
            raise ValueError(f"pairs: wanted {wanted}, got {list(pairs.shape)}")
        H, W = pairs.shape[-2:]
        maps = self.encoder(pairs.flatten(0, 1)).unflatten(0, (-1, 2))
        both = self.trunk(self.join(maps.flatten(1, 2)))
        frames = self.decoder(torch.cat(both.chunk(2, dim=1)))
        return torch.stack(frames.chunk(2), 1)[..., :H, :W]  # sizes were rounded up to multiples of 4

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """One group for an optimiser, all at `lr`."""
        return [{"name": "generator", "params": list(self.parameters()), "lr": lr}]


class PatchDiscriminator(nn.Module):
    """Frames [N, 3, H, W] -> scores [N, 1, floor(H/8) - 2, floor(W/8) - 2], each of a window of 70 x 70 pixels.

    4x4 convolutions to width, 2, 4, 8 times that and 1, three of stride 2 and two of stride 1; LeakyReLU 0.2 between,
    instance norm before all of those but the first. Raw scores: no sigmoid. Raises ValueError below 24 x 24 pixels.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for i, stride in enumerate((2, 2, 1)):
            c = width * 2**i
            conv = nn.Conv2d(c, 2 * c, 4, stride=stride, padding=1, bias=False)
            layers += [conv, nn.InstanceNorm2d(2 * c), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))
        _initialise(self)

    def forward(self, frames: Tensor) -> Tensor:
        if frames.ndim != 4 or frames.shape[1] != 3 or min(frames.shape[-2:]) < MINIMUM_PATCH:
            wanted = f"[N, 3, H, W] of at least {MINIMUM_PATCH} x {MINIMUM_PATCH} pixels"
            raise ValueError(f"frames: wanted {wanted}, got {list(frames.shape)}")
        return self.layers(frames)
