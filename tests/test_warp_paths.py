"""The paths of the warp kernels: every width, alignment and layout, many channels, every kind of neighbour."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import Backend, exactly, hostile_flow, layouts, misaligned, smooth_flow
from test_warp import MODES, TOLERANCE
from torch import Tensor

from vda.ops import warp, warp_occlusion, warp_occlusion_reference, warp_reference

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
FLOWS = [torch.float32, torch.float16, torch.bfloat16, torch.int16]


def close(found: Tensor, wanted: Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def shapes_of(x: Tensor) -> list[Tensor]:
    """x in every layout that a kernel may treat differently."""
    return [*layouts(x), misaligned(x), *([x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [])]


def mixed_flow(B: int, H: int, W: int, dtype: torch.dtype) -> Tensor:
    """Hostile in the first image, smooth and mostly in the frame in the others."""
    flow = hostile_flow(B, H, W, dtype, reach=1.0)
    smooth = smooth_flow(B, H, W, 0.05).clamp(-2, 2)
    flow[1:] = (smooth * 10).round().to(dtype)[1:] if dtype == torch.int16 else smooth.to(dtype)[1:]
    return flow


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_width(backend: Backend, dtype: torch.dtype) -> None:
    """Packs, what is left over of them, rows and warps that end early; with RGB and with any number of channels."""
    for W in range(1, 41):
        C, H = (3, 5) if W % 2 else (1 + W % 4, 4)
        image, other = (torch.rand(2, C, H, W).to(backend.device, dtype) for _ in range(2))
        flow = mixed_flow(2, H, W, FLOWS[W // 2 % 4]).to(backend.device)
        for padding in ("zeros", "border"):
            close(warp(image, flow, padding=padding), warp_reference(image, flow, padding=padding))
        warped, visible = warp_occlusion(other, image, flow, alpha=1.0)
        wanted = warp_occlusion_reference(other, image, flow, alpha=1.0)
        close(warped, wanted[0])
        assert torch.equal(visible, wanted[1])


@pytest.mark.parametrize("flow_type", FLOWS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.int32, torch.int64])
def test_every_width_nearest(backend: Backend, dtype: torch.dtype, flow_type: torch.dtype) -> None:
    """To the bit: elements are copied."""
    for W in [*range(1, 21), 32, 39, 40]:
        H = 3 + W % 4
        image = torch.randint(0, 256, (2, 2, H, W)).to(backend.device, dtype)
        flow = mixed_flow(2, H, W, flow_type).to(backend.device)
        for padding, fill in (("zeros", 255), ("border", 0)):
            options = {"mode": "nearest", "padding": padding, "fill": fill}
            if dtype == torch.float16:
                found = exactly(lambda x=image, f=flow, o=options: warp(x, f, **o))
                assert torch.equal(found, warp_reference(image, flow, **options))
            else:
                for labels in image.unbind(1):
                    found = exactly(lambda x=labels, f=flow, o=options: warp(x, f, **o))
                    assert torch.equal(found, warp_reference(labels, flow, **options))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [1, 3, 8, 9, 16, 17, 19, 33, 70])
def test_channels_in_every_layout(backend: Backend, channels: int, dtype: torch.dtype) -> None:
    for H, W in ((5, 40), (3, 37)):
        image = torch.rand(2, channels, H, W).to(backend.device, dtype)
        flow = mixed_flow(2, H, W, torch.float32).to(backend.device)
        for padding in ("zeros", "border"):
            wanted = warp_reference(image, flow, padding=padding)
            for some in shapes_of(image):
                close(warp(some, flow, padding=padding), wanted)
        for some in shapes_of(flow):
            close(warp(image, some, padding=padding), wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_occlusion_in_every_layout(backend: Backend, channels: int, dtype: torch.dtype) -> None:
    for H, W in ((5, 40), (3, 37)):
        frame = torch.rand(2, channels, H, W).to(backend.device, dtype)
        neighbour = (frame + 0.2 * torch.randn_like(frame)).to(dtype)
        flow = mixed_flow(2, H, W, torch.float32).to(backend.device)
        wanted, visible = warp_occlusion_reference(frame, neighbour, flow, alpha=1.0)
        frames, neighbours, flows = map(shapes_of, (frame, neighbour, flow))
        cases = [(x, neighbour, flow) for x in frames] + [(frame, x, flow) for x in neighbours]
        for some in [*cases, *((frame, neighbour, x) for x in flows), *zip(frames, neighbours, flows, strict=True)]:
            found, seen = warp_occlusion(*some, alpha=1.0)
            close(found, wanted)
            assert torch.equal(seen, visible)


def test_values_that_are_not_finite(backend: Backend) -> None:
    """They reach exactly the pixels whose taps they are: a tap outside the frame is 0, one of weight 0 is not."""
    for W in (16, 37):
        image = torch.rand(2, 3, 6, W)
        image[torch.rand(image.shape) < 0.2] = torch.inf
        image[..., -1] = torch.nan
        image[..., -1, :] = -torch.inf
        flow = mixed_flow(2, 6, W, torch.float32)
        image, flow = image.to(backend.device), flow.to(backend.device)
        for padding in ("zeros", "border"):
            found, wanted = warp(image, flow, padding=padding), warp_reference(image, flow, padding=padding)
            torch.testing.assert_close(found, wanted, equal_nan=True)
        found, visible = warp_occlusion(torch.nan_to_num(image), image, flow, alpha=1.0)
        reference = warp_occlusion_reference(torch.nan_to_num(image), image, flow, alpha=1.0)
        torch.testing.assert_close(found, reference[0], equal_nan=True)
        assert torch.equal(visible, reference[1])


@pytest.mark.parametrize(
    "flow_of",
    [
        pytest.param(lambda H, W: torch.full((2, 2, H, W), 0.3), id="neighbours share every tap"),
        pytest.param(lambda H, W: torch.randn(2, 2, H, W), id="neighbours share by chance"),
        pytest.param(lambda H, W: smooth_flow(2, H, W, 0.3), id="neighbours share half"),
        pytest.param(lambda H, W: hostile_flow(2, H, W), id="hostile"),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_gradients_alone_and_together(
    backend: Backend, flow_of: Callable[[int, int], Tensor], dtype: torch.dtype, padding: str
) -> None:
    for H, W, C in ((5, 40, 3), (3, 37, 2), (4, 70, 1)):
        image, flow = torch.rand(2, C, H, W).to(backend.device, dtype), flow_of(H, W).to(backend.device)
        weight = torch.randn(2, C, H, W).to(backend.device, dtype)
        exact = image.float().requires_grad_(), flow.clone().requires_grad_()
        wanted = torch.autograd.grad(warp_reference(*exact, padding=padding), exact, weight.float())
        for needs in ((True, True), (True, False), (False, True)):
            layouts_of_one = [(x, weight) for x in shapes_of(image)] + [(image, x) for x in shapes_of(weight)]
            for some, grad in [*layouts_of_one, *zip(shapes_of(image), shapes_of(weight), strict=True)]:
                given = [x.detach().requires_grad_(need) for x, need in zip((some, flow), needs, strict=True)]
                inputs = [x for x, need in zip(given, needs, strict=True) if need]
                found = list(torch.autograd.grad(warp(*given, padding=padding), inputs, grad))
                if needs[0]:
                    tolerance = 10 * TOLERANCE[dtype]
                    torch.testing.assert_close(found.pop(0).float(), wanted[0], atol=tolerance, rtol=tolerance)
                if needs[1]:
                    torch.testing.assert_close(found.pop(), wanted[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradient_of_a_sum_has_zero_strides(backend: Backend, dtype: torch.dtype) -> None:
    image = torch.rand(2, 3, 4, 40).to(backend.device, dtype)
    flow = smooth_flow(2, 4, 40, 0.1).to(backend.device).requires_grad_()
    exact = flow.detach().clone().requires_grad_()
    warp(image, flow).float().sum().backward()
    warp_reference(image.float(), exact).sum().backward()
    torch.testing.assert_close(flow.grad, exact.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("mode", "padding"), MODES)
def test_more_images_than_a_grid_has_room_for(backend: Backend, mode: str, padding: str) -> None:
    image = torch.rand(65536 + 3, 1, 1, 1, device=backend.device)
    flow = torch.zeros(65536 + 3, 2, 1, 1, device=backend.device)
    assert torch.equal(warp(image, flow, mode=mode, padding=padding), image)
