"""Inputs that look like driving video, made from a fixed seed.

What a warp costs depends on where its flow points, so the flow is calibrated to a measurement: OpenCV's DIS flow
between neighbouring frames of CamVid at 15 Hz, scaled to 512 x 1024. There

    the median of |u| is about 5 px and of |v| about 2.6 px;
    floor(y + v) takes one value on 64 % of the runs of 16 pixels along a row, two on 30 %, three or more on 6 %;
    84 % of the pixels pass the occlusion test (alpha 50, squared, colours in [0, 1]).

tests/test_bench.py checks that these inputs do the same. At other sizes flow scales with the height, its slopes do not
change. Rows share what is returned, so none may write to it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from . import compositions

ALPHA = 50.0  # of the occlusion test, with the squared distance: vda's own setting
MEDIAN_U, MEDIAN_V = 5.0, 2.6  # pixels at a height of 512
SEED = 2  # one that meets the measurement; seeds differ, as clips do


def _noise(shape: tuple[int, ...], cell: float | tuple[float, float], size: tuple[int, int], seed: int) -> Tensor:
    """Normal noise [*shape, H, W], interpolated between points that are `cell` (or down, across) pixels apart."""
    cells = cell if isinstance(cell, tuple) else (cell, cell)
    coarse = [max(2, round(n / c)) for n, c in zip(size, cells, strict=True)]
    points = torch.randn(1, torch.Size(shape).numel(), *coarse, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(points, size, mode="bilinear", align_corners=True).view(*shape, *size)


@functools.lru_cache(maxsize=4)
def flow(H: int, W: int, *, batch: int = 1, seed: int = SEED) -> Tensor:
    """[batch, 2, H, W] float32 pixels: smooth, with heavy tails (near things move most) and small moving things."""
    return torch.stack([_flow(H, W, seed + 100 * b) for b in range(batch)])


def _flow(H: int, W: int, seed: int) -> Tensor:
    scale, size = H / 512, (H, W)
    u = _noise((), 100 * scale, size, seed)
    v = _noise((), (64 * scale, 250 * scale), size, seed + 1)  # going forward, v changes down more than across
    field = torch.stack([u, v])
    field = field.sign() * field.abs() ** 1.5
    moving = _noise((), 50 * scale, size, seed + 2) > 1.2
    field = field + moving * 0.8 * _noise((2,), 40 * scale, size, seed + 3)
    wanted = scale * torch.tensor([MEDIAN_U, MEDIAN_V])
    return field * (wanted / field.abs().flatten(1).median(1).values)[:, None, None]


@functools.lru_cache(maxsize=2)
def scene(H: int, W: int, J: int, *, seed: int = SEED) -> tuple[Tensor, Tensor, Tensor]:
    """Flows [1, J, 2, H, W] and colours in [0, 1] that fit them: frame [1, 3, H, W], neighbours [1, J, 3, H, W]."""
    size, scale = (H, W), H / 512
    flows = flow(H, W, batch=J, seed=seed)
    frame = torch.sigmoid(_noise((1, 3), 24 * scale, size, seed) + 0.3 * _noise((1, 3), 6 * scale, size, seed + 1))
    near = []
    for j, field in enumerate(flows.split(1)):
        inverse = -compositions.warp(field, -field)  # nearly, for a smooth field
        moved = compositions.warp(frame, inverse)
        changed = _noise((1, 1), 40 * scale, size, seed + 10 + j) > 1.2
        near.append(torch.where(changed, 1 - moved, moved) + 0.01 * _noise((1, 3), 2, size, seed + 20 + j))
    return flows[None], frame, torch.stack(near, 1)


def logits(K: int, H: int, W: int, *, count: int = 1, seed: int = 0) -> Tensor:
    """[count, K, H/8, W/8]: classes in patches of some 60 px; the softmax is mostly sure."""
    h, w = max(2, H // 8), max(2, W // 8)
    return 20 * _noise((count, K), max(1.0, h / 8), (h, w), seed) + torch.linspace(0, 4, K)[:, None, None]


@functools.lru_cache(maxsize=4)
def predictions(K: int, H: int, W: int, *, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Confidence [count, H, W] float32 and label [count, H, W] uint8 of upsampled logits."""
    pairs = [compositions.probabilities(x[None], H, W).max(1) for x in logits(K, H, W, count=count, seed=seed)]
    return torch.cat([p.values for p in pairs]), torch.cat([p.indices for p in pairs]).to(torch.uint8)
