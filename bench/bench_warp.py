"""warp and warp_occlusion: 19 class probabilities and RGB, smooth flow of a few pixels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import Case
from torch import Tensor

from vda.ops import warp, warp_occlusion, warp_occlusion_reference, warp_reference


def smooth_flow(case: Case) -> Tensor:
    """Flow that neighbours share, as real flow does: 8 x 8 vectors of some 10 px, interpolated."""
    coarse = 10 * torch.randn(1, 2, 8, 8)
    return F.interpolate(coarse, (case.H, case.W), mode="bilinear").to(case.device)


def through_grid_sample(image: Tensor, flow: Tensor) -> Tensor:
    """What people write today: build a grid, call torch's sampler."""
    H, W = image.shape[-2:]
    x = torch.arange(W, device=flow.device) + flow[:, 0]
    y = torch.arange(H, device=flow.device)[:, None] + flow[:, 1]
    grid = torch.stack([2 * x / (W - 1) - 1, 2 * y / (H - 1) - 1], -1).to(image.dtype)
    return F.grid_sample(image, grid, align_corners=True)


@pytest.mark.parametrize("channels", [3, 19])
@pytest.mark.parametrize(
    "function",
    [
        pytest.param(warp, id="ours"),
        pytest.param(warp_reference, id="reference"),
        pytest.param(through_grid_sample, id="grid_sample"),
    ],
)
def test_warp(case: Case, function: Callable[..., Tensor], channels: int) -> None:
    image, flow = torch.rand(1, channels, case.H, case.W, device=case.device), smooth_flow(case)
    pixels = case.H * case.W
    case.time(lambda: function(image, flow), nbytes=pixels * (8 + 8 * channels), flop=pixels * 8 * channels)


@pytest.mark.parametrize("function", [pytest.param(warp, id="ours"), pytest.param(warp_reference, id="reference")])
def test_warp_backward(case: Case, function: Callable[..., Tensor]) -> None:
    """Forward and backward, gradients of image and flow, 3 channels."""
    image = torch.rand(1, 3, case.H, case.W, device=case.device, requires_grad=True)
    flow = smooth_flow(case).requires_grad_()
    weight = torch.rand_like(image)
    pixels = case.H * case.W
    case.time(
        lambda: torch.autograd.grad(function(image, flow), (image, flow), weight),
        nbytes=pixels * (8 + 24 + 12 + 12 + 8 + 12 + 8),
    )


@pytest.mark.parametrize(
    "function",
    [pytest.param(warp_occlusion, id="ours"), pytest.param(warp_occlusion_reference, id="reference")],
)
def test_warp_occlusion(case: Case, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
    frame, neighbour = torch.rand(2, 1, 3, case.H, case.W, device=case.device)
    flow = smooth_flow(case)
    pixels = case.H * case.W
    case.time(lambda: function(frame, neighbour, flow, alpha=1.0), nbytes=pixels * (8 + 3 * 12 + 1))
