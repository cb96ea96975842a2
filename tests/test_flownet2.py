"""FlowNet2: names, shapes and numbers of the published networks; directions, sizes, and ways of running them."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from shared import shared_data
from torch import Tensor, nn
from torch.nn import functional as F

from vda.flow import flownet2
from vda.flow.flownet2 import VARIANTS, Estimator, FlowNet2C
from vda.ops import correlation_reference

PARAMETERS = {  # of the published networks
    "flownet2": 162_518_834,
    "flownet2-c": 39_175_298,
    "flownet2-s": 38_676_506,
    "flownet2-sd": 45_371_666,
    "flownet2-cs": 77_870_620,
    "flownet2-css": 116_565_942,
}
THIN = 8


def reference() -> Any:
    return np.load(shared_data("flow", "flownet2_reference.npz"), allow_pickle=False)


def fill(network: nn.Module) -> None:
    """Weights by a rule that needs no file: normal, scaled by the fan-in, seeded by the name."""
    state = network.state_dict()
    for name, x in state.items():
        rng = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
        scale = 0.05
        if x.dim() == 4:
            fan = x[0].numel()
            if "deconv" in name or "upsampled" in name:
                fan = x.shape[0] * x.shape[2] * x.shape[3] / 4
            scale = (2 / (1.01 * fan)) ** 0.5
        state[name] = torch.from_numpy(rng.standard_normal(tuple(x.shape)) * scale).float()
    network.load_state_dict(state)


def thin(variant: str) -> Estimator:
    network = VARIANTS[variant](width=THIN)
    fill(network)
    return network.eval()


def pair(B: int, H: int, W: int) -> tuple[Tensor, Tensor]:
    """A smooth random image, and the same shifted by (3, -2) pixels."""
    coarse = torch.rand(B, 3, H // 8 + 3, W // 8 + 3)
    large = F.interpolate(coarse, (H + 8, W + 8), mode="bicubic").clamp(0, 1)
    return large[..., 4 : H + 4, 4 : W + 4], large[..., 6 : H + 6, 1 : W + 1]


def test_variants_are_the_published_ones() -> None:
    assert list(VARIANTS) == list(PARAMETERS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_shapes_and_size(variant: str) -> None:
    """So that the published checkpoints load with strict=True."""
    with torch.device("meta"):
        network = VARIANTS[variant]()
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[variant]
    published, name = reference(), "FlowNet2" + variant[9:].upper()
    wanted = {
        str(key): tuple(map(int, str(shape).strip("()").rstrip(",").split(",")))
        for key, shape in zip(published[f"{name}_keys"], published[f"{name}_shapes"], strict=True)
    }
    assert {key: tuple(x.shape) for key, x in network.state_dict().items()} == wanted


def test_numbers_of_the_reference_network() -> None:
    """FlowNet2C at full width, against an output of the original's."""
    published = reference()
    first, second = (torch.from_numpy(published[name]).float() / 255 for name in ("image0", "image1"))
    network = FlowNet2C()
    fill(network)
    with torch.inference_mode():
        flow = network.eval()(first, second)
    torch.testing.assert_close(flow, torch.from_numpy(published["FlowNet2C"]), atol=1e-3, rtol=0)


def border_warp(image: Tensor, flow: Tensor, *, padding: str) -> Tensor:
    assert padding == "border"
    H, W = image.shape[-2:]
    x, y = torch.arange(W) + flow[:, 0], torch.arange(H)[:, None] + flow[:, 1]
    grid = torch.stack([2 * x / (W - 1) - 1, 2 * y / (H - 1) - 1], -1)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_composition_without_our_kernels(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, (first, second) = thin(variant), pair(2, 70, 130)
    with torch.inference_mode():
        flow = network(first, second)
        monkeypatch.setattr(flownet2, "correlation", correlation_reference)
        monkeypatch.setattr(flownet2, "warp", border_warp)
        torch.testing.assert_close(flow, network(first, second), atol=2e-3, rtol=1e-3)
    assert flow.std() > 0.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_directions_at_once(variant: str) -> None:
    network, (first, second) = thin(variant), pair(2, 64, 100)
    with torch.inference_mode():
        there, back = network.both(first, second)
        torch.testing.assert_close(there, network(first, second), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(back, network(second, first), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (64, 128), (65, 63), (100, 31)])
def test_any_size(size: tuple[int, int]) -> None:
    network = thin("flownet2-cs")
    with torch.inference_mode():
        flow = network(torch.rand(2, 3, *size), torch.rand(2, 3, *size))
    assert flow.shape == (2, 2, *size)
    assert flow.isfinite().all()


def test_padding_and_batch_do_not_reach_the_numbers() -> None:
    """The mean is taken over the image alone, and samples do not mix."""
    network, (first, second) = thin("flownet2-c"), pair(3, 70, 100)
    with torch.inference_mode():
        flow = network(first, second)
        for b in range(3):
            alone = network(first[b : b + 1], second[b : b + 1])
            torch.testing.assert_close(flow[b : b + 1], alone, atol=1e-4, rtol=1e-4)
        brighter = network(first + 0.25, second + 0.25)  # the mean goes
        torch.testing.assert_close(brighter, flow, atol=1e-3, rtol=1e-3)


def test_flow_is_float32_pixels_under_autocast() -> None:
    network, (first, second) = thin("flownet2"), pair(1, 64, 64)
    with torch.inference_mode():
        exact = network(first, second)
        with torch.autocast("cpu", torch.bfloat16):
            flow = network(first, second)
    assert flow.dtype == torch.float32
    assert (flow - exact).abs().mean() < 0.1 * exact.abs().mean() + 0.05


def test_channels_last() -> None:
    network, (first, second) = thin("flownet2-css"), pair(1, 64, 128)
    with torch.inference_mode():
        flow = network(first, second)
        last = network.to(memory_format=torch.channels_last)
        found = last(*(x.contiguous(memory_format=torch.channels_last) for x in (first, second)))
    torch.testing.assert_close(found, flow, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("variant", ["flownet2-c", "flownet2"])
def test_compiles_whole(variant: str) -> None:
    network, (first, second) = thin(variant), pair(1, 64, 64)
    with torch.inference_mode():
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(first, second), network(first, second), atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    network, (first, second) = thin("flownet2").train(), pair(1, 64, 64)
    network(first, second).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (
            (1, 3, 4, 5),
            (1, 3, 4, 6),
            ValueError,
            r"second: wanted the shape \[1, 3, 4, 5\] of first, got \[1, 3, 4, 6\]",
        ),
        ((1, 1, 4, 5), (1, 1, 4, 5), ValueError, r"first: wanted shape \[B, 3, H, W\], got \[1, 1, 4, 5\]"),
        ((3, 4, 5), (3, 4, 5), ValueError, r"first: wanted shape \[B, 3, H, W\], got \[3, 4, 5\]"),
        ((1, 3, 0, 5), (1, 3, 0, 5), ValueError, r"first: wanted shape \[B, 3, H, W\], got \[1, 3, 0, 5\]"),
    ],
)
def test_bad_images(first: tuple[int, ...], second: tuple[int, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        thin("flownet2-c")(torch.zeros(first), torch.zeros(second))


def test_bytes_are_refused() -> None:
    image = torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"first: wanted RGB in \[0, 1\] as float, got uint8"):
        thin("flownet2-c")(image, image)


@pytest.mark.parametrize(("H", "W"), [(1, 1), (7, 5), (9, 45), (50, 30)])
def test_the_volume_of_the_other_direction(H: int, W: int) -> None:
    ours, other = torch.randn(2, 2, 6, H, W)
    volume = flownet2.cost_volume(ours, other)
    assert torch.equal(flownet2.turned_round(volume), flownet2.cost_volume(other, ours))
    assert torch.equal(flownet2.turned_round(flownet2.turned_round(volume)), volume)
