"""warp and warp_occlusion on every backend: hand-worked numbers, grid_sample, the reference, hostile input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import Backend, hostile_flow, layouts, smooth_flow
from torch import Tensor
from torch.autograd import gradcheck

from vda.ops import warp, warp_occlusion, warp_occlusion_reference, warp_reference

MODES = [(mode, padding) for mode in ("bilinear", "nearest") for padding in ("zeros", "border")]
NAN, INF = math.nan, math.inf
# Distance of a result from the reference in units in the last place: both round a sum of four products once.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def flow_of(*vectors: tuple[float, float], dtype: torch.dtype = torch.float32) -> Tensor:
    """Flow [1, 2, 1, W] from one (u, v) per column."""
    return torch.tensor(vectors, dtype=dtype).T.reshape(1, 2, 1, -1)


def grid_sample(image: Tensor, flow: Tensor, mode: str, padding: str) -> Tensor:
    """The same warp by torch's own sampler."""
    H, W = image.shape[-2:]
    x = torch.arange(W) + flow[:, 0]
    y = torch.arange(H)[:, None] + flow[:, 1]
    grid = torch.stack([2 * x / max(W - 1, 1) - 1, 2 * y / max(H - 1, 1) - 1], -1)
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)


# ---- numbers worked by hand ----


@pytest.mark.parametrize(
    ("vector", "zeros", "border"),
    [
        ((0.0, 0.0), 10.0, 10.0),
        ((1.0, 0.0), 20.0, 20.0),
        ((0.25, 0.0), 12.5, 12.5),
        ((0.0, 0.5), 25.0, 25.0),  # halfway to the 40 below
        ((0.5, 0.5), 30.0, 30.0),  # mean of 10 20 40 50
        ((2.0, 1.0), 60.0, 60.0),  # exactly the last pixel: nothing outside is read
        ((2.5, 0.0), 15.0, 30.0),  # half of the 30 in the last column, half outside
        ((-0.25, 0.0), 7.5, 10.0),
        ((0.0, -1.0), 0.0, 10.0),
        ((7.0, 9.0), 0.0, 60.0),
        ((NAN, 0.0), 0.0, 0.0),  # no position at all: nothing in any padding mode
        ((0.0, INF), 0.0, 0.0),
        ((-INF, -INF), 0.0, 0.0),
        ((2.0**25, 0.0), 0.0, 0.0),
    ],
)
def test_bilinear_by_hand(backend: Backend, vector: tuple[float, float], zeros: float, border: float) -> None:
    image = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]], device=backend.device)[None, None]
    flow = torch.zeros(1, 2, 2, 3)
    flow[0, :, 0, 0] = torch.tensor(vector)
    for padding, wanted in (("zeros", zeros), ("border", border)):
        assert warp(image, flow.to(backend.device), padding=padding)[0, 0, 0, 0] == wanted


def test_nearest_breaks_ties_to_the_even_pixel(backend: Backend) -> None:
    labels = torch.tensor([[[3, 1, 4, 5]]], dtype=torch.uint8, device=backend.device)
    # Positions 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, 3.5 -> 4 (outside).
    half = flow_of((0.5, 0), (0.5, 0), (0.5, 0), (0.5, 0)).to(backend.device)
    assert warp(labels, half, mode="nearest", fill=255).tolist() == [[[3, 4, 4, 255]]]
    assert warp(labels, half, mode="nearest", padding="border").tolist() == [[[3, 4, 4, 5]]]
    # -0.5 -> 0 (inside), -0.6 -> -1, NaN, and rows: one row, v = 0.5 -> 0, v = 1.5 -> 2.
    mixed = flow_of((-0.5, 0), (-1.6, 0), (NAN, 0), (0, 1.5)).to(backend.device)
    assert warp(labels, mixed, mode="nearest", fill=255).tolist() == [[[3, 255, 255, 255]]]


# golden example 18
def test_ramp(backend: Backend) -> None:
    """Under the flow (3, 0) a ramp is 3 higher, and the last three columns are not visible."""
    ramp = torch.arange(10.0, device=backend.device).expand(2, 3, 4, 10)
    flow = torch.tensor([3.0, 0.0], device=backend.device).view(1, 2, 1, 1).expand(2, 2, 4, 10)
    warped, visible = warp_occlusion(ramp + 3, ramp, flow, alpha=1.0)
    assert torch.equal(warped[..., :7], ramp[..., :7] + 3)
    assert visible[0, 0].tolist() == [True] * 7 + [False] * 3
    assert torch.equal(visible, visible[:1, :1].expand(2, 4, 10))
    assert torch.equal(warp(ramp, flow), warped)


def test_flow_goes_from_target_to_source(backend: Backend) -> None:
    """A thing that moves 2 to the right and 1 down from i to j is fetched back with F_{i -> j}."""
    before = torch.zeros(1, 1, 5, 6)
    before[0, 0, 1, 2] = 1.0
    after = torch.zeros(1, 1, 5, 6)
    after[0, 0, 2, 4] = 1.0
    flow = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 5, 6)
    assert torch.equal(warp(after.to(backend.device), flow.to(backend.device)).cpu(), before)


# ---- against the reference and against torch ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("mode", "padding"), MODES)
def test_equals_reference_on_hostile_flow(backend: Backend, mode: str, padding: str, dtype: torch.dtype) -> None:
    image = torch.randn(3, 4, 9, 37).to(backend.device, dtype)
    flow_types = [torch.float32, torch.float16, torch.bfloat16, torch.int16]
    for flow_type in [torch.float64, torch.float32] if dtype == torch.float64 else flow_types:
        flow = hostile_flow(3, 9, 37, flow_type).to(backend.device)
        found = warp(image, flow, mode=mode, padding=padding)
        wanted = warp_reference(image, flow, mode=mode, padding=padding)
        assert found.dtype == dtype
        assert found.isfinite().all()
        torch.testing.assert_close(found, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("mode", "padding"), MODES)
def test_equals_reference_on_smooth_flow(backend: Backend, mode: str, padding: str, dtype: torch.dtype) -> None:
    """Where neighbours go to neighbours the CPU kernels read whole vectors, of two rows, of three, of many."""
    image = torch.randn(2, 3, 12, 83).to(backend.device, dtype)
    for slope in (0.0, 0.03, 0.2, 0.7):
        flow = smooth_flow(2, 12, 83, slope).to(backend.device)
        wanted = warp_reference(image, flow, mode=mode, padding=padding)
        for flow_ in (flow, flow.transpose(2, 3).contiguous().transpose(2, 3)):
            found = warp(image, flow_, mode=mode, padding=padding)
            torch.testing.assert_close(found, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        found = warp(image.transpose(2, 3).contiguous().transpose(2, 3), flow, mode=mode, padding=padding)
        torch.testing.assert_close(found, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_tenths_of_a_pixel(backend: Backend) -> None:
    """Every int16 n is n / 10 to the bit, so ties stay ties: 2.5 + 0 and 3 - 0.5 both go to the even 2."""
    image = torch.arange(8.0).expand(1, 1, 1, 8).contiguous()
    flow = torch.zeros(1, 2, 1, 8, dtype=torch.int16)
    flow[0, 0, 0] = torch.tensor([25, 15, 5, -5, 14, 26, -32768, 32767])
    found = warp(image.to(backend.device), flow.to(backend.device), mode="nearest").cpu()
    assert found.flatten().tolist() == [2, 2, 2, 2, 5, 0, 0, 0]
    n = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(1, 1, 1, -1).expand(1, 2, 1, -1)
    ramp = torch.arange(65536.0).view(1, 1, 1, -1)
    as_float = n.float() / 10
    for mode in ("bilinear", "nearest"):
        found = warp(*(x.to(backend.device) for x in (ramp, n)), mode=mode, padding="border")
        assert torch.equal(found, warp(*(x.to(backend.device) for x in (ramp, as_float)), mode=mode, padding="border"))


@pytest.mark.parametrize(("mode", "padding"), MODES)
def test_equals_grid_sample(backend: Backend, mode: str, padding: str) -> None:
    """In double precision grid_sample's normalise / denormalise round trip is harmless."""
    image = torch.randn(2, 3, 11, 14, dtype=torch.float64)
    flow = torch.randn(2, 2, 11, 14, dtype=torch.float64) * 6
    found = warp(image.to(backend.device), flow.to(backend.device), mode=mode, padding=padding).cpu()
    torch.testing.assert_close(found, grid_sample(image, flow, mode, padding), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_maps(backend: Backend, dtype: torch.dtype) -> None:
    labels = torch.randint(0, 256, (2, 7, 13), dtype=dtype)
    labels[0, 0, 0] = torch.iinfo(dtype).max
    flow = hostile_flow(2, 7, 13)
    for padding, fill in (("zeros", 255), ("zeros", 0), ("border", 0)):
        for layout in layouts(labels.to(backend.device)):
            found = warp(layout, flow.to(backend.device), mode="nearest", padding=padding, fill=fill)
            wanted = warp_reference(labels, flow, mode="nearest", padding=padding, fill=fill)
            assert torch.equal(found.cpu(), wanted)


def test_layouts_of_every_argument(backend: Backend) -> None:
    image, flow = torch.randn(2, 3, 5, 34), hostile_flow(2, 5, 34)
    wanted = warp_reference(image, flow)
    for some_image in layouts(image.to(backend.device)):
        for some_flow in layouts(flow.to(backend.device)):
            torch.testing.assert_close(warp(some_image, some_flow).cpu(), wanted)
    one = flow[:1, :, :1, :1].to(backend.device).expand(2, 2, 5, 34)  # strides of zero
    torch.testing.assert_close(warp(image.to(backend.device), one).cpu(), warp_reference(image, one.cpu()))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty(backend: Backend, shape: tuple[int, ...]) -> None:
    image = torch.zeros(shape, device=backend.device, requires_grad=True)
    flow = torch.zeros(shape[0], 2, *shape[2:], device=backend.device, requires_grad=True)
    out = warp(image, flow)
    assert out.shape == shape
    out.sum().backward()
    assert image.grad is not None
    assert flow.grad is not None
    assert image.grad.shape == shape
    assert not flow.grad.any()
    warped, visible = warp_occlusion(image.detach(), image.detach(), flow.detach(), alpha=1.0)
    assert warped.shape == shape
    assert visible.shape == (shape[0], *shape[2:])


def test_one_pixel(backend: Backend) -> None:
    image = torch.full((1, 1, 1, 1), 8.0, device=backend.device)
    for u, wanted in ((0.0, 8.0), (0.5, 4.0), (1.0, 0.0), (NAN, 0.0)):
        flow = torch.tensor([u, 0.0], device=backend.device).view(1, 2, 1, 1)
        assert warp(image, flow).item() == wanted


# ---- gradients ----


@pytest.mark.parametrize(("mode", "padding"), MODES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradcheck(backend: Backend, mode: str, padding: str, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    try:
        # Positions stay 0.1 clear of whole and half numbers, where bilinear and nearest have no derivative.
        image = torch.randn(2, 2, 3, 5, dtype=torch.float64, device=backend.device, requires_grad=True)
        whole = torch.randint(-3, 4, (2, 2, 3, 5), device=backend.device)
        flow = (whole + 0.1 + 0.3 * torch.rand(2, 2, 3, 5, device=backend.device)).double().requires_grad_()
        fast = gradcheck(lambda i, f: warp(i, f, mode=mode, padding=padding), (image, flow), fast_mode=False, atol=1e-6)
        assert fast
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("mode", "padding"), MODES)
def test_gradients_equal_the_reference(backend: Backend, mode: str, padding: str, dtype: torch.dtype) -> None:
    image = torch.randn(2, 3, 6, 33).to(backend.device, dtype).requires_grad_()
    flow = hostile_flow(2, 6, 33)
    flow[1] = smooth_flow(1, 6, 33, 0.1)
    flow = flow.to(backend.device).requires_grad_()
    weight = torch.randn(2, 3, 33, 6).to(backend.device, dtype).transpose(2, 3)  # a strided incoming gradient
    found = torch.autograd.grad(warp(image, flow, mode=mode, padding=padding), (image, flow), weight)
    # The reference in fp32: in 16 bit torch would round every partial sum of the scatter.
    exact = image.detach().float().requires_grad_()
    out = warp_reference(exact, flow, mode=mode, padding=padding)
    wanted = torch.autograd.grad(out, (exact, flow), weight.float(), allow_unused=True)
    assert found[0].dtype == dtype
    torch.testing.assert_close(found[0].float(), wanted[0], atol=10 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    flow_wanted = torch.zeros_like(flow) if wanted[1] is None else wanted[1]
    torch.testing.assert_close(found[1], flow_wanted, atol=1e-4, rtol=1e-4)


def test_gradient_of_a_sum_has_zero_strides(backend: Backend) -> None:
    image = torch.randn(1, 2, 4, 6, device=backend.device, requires_grad=True)
    flow = torch.zeros(1, 2, 4, 6, device=backend.device)
    warp(image, flow).sum().backward()
    assert image.grad is not None
    assert torch.equal(image.grad, torch.ones_like(image))


def test_deterministic_scatter_does_not_depend_on_the_order(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pixels land on a few: float atomics in another order would round differently."""
    image = torch.randn(1, 2, 16, 40, device=backend.device, requires_grad=True)
    x, y = torch.arange(40.0).expand(16, 40), torch.arange(16.0)[:, None].expand(16, 40)
    flow = torch.stack([3.3 - x, 2.6 - y])[None].to(backend.device)
    weight = torch.randn(1, 2, 16, 40, device=backend.device)
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for seed in ("0", "1", "2"):
            if backend.name in ("shim", "shuffled"):
                monkeypatch.setenv("VDA_SHIM_SEED", seed)
            results.append(torch.autograd.grad(warp(image, flow), image, weight)[0])
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        exact = warp_reference(image.double(), flow.double())
        wanted = torch.autograd.grad(exact, image, weight.double())[0]
        torch.testing.assert_close(results[0], wanted, atol=2e-5, rtol=1e-5)
        # A gradient that is not finite has no fixed-point form; it must not look like a finite one.
        weight[0, 0, 0, 0] = INF
        assert not torch.autograd.grad(warp(image, flow), image, weight)[0].isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_second_derivatives_are_refused(backend: Backend) -> None:
    image = torch.randn(1, 1, 3, 3, device=backend.device, requires_grad=True)
    flow = torch.zeros(1, 2, 3, 3, device=backend.device)
    grad = torch.autograd.grad(warp(image, flow).square().sum(), image, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


# ---- occlusion ----


def test_occlusion_by_hand(backend: Backend) -> None:
    frame = torch.zeros(1, 2, 1, 4)
    neighbour = torch.zeros(1, 2, 1, 4)
    neighbour[0, :, 0] = torch.tensor([[0.0, 0.3, 0.0, 0.0], [0.0, 0.4, 0.36, 0.0]])
    flow = flow_of((0, 0), (0, 0), (0, 0), (0.001, 0))  # the last one leaves the frame by a hair
    # Distances 0, 0.5, 0.36; exp(-e) > 0.7 means e < 0.3567, exp(-e^2) > 0.7 means e < 0.5972.
    for squared, wanted in ((False, [True, False, False, False]), (True, [True, True, True, False])):
        warped, visible = warp_occlusion(
            *(x.to(backend.device) for x in (frame, neighbour, flow)), alpha=1.0, squared=squared
        )
        assert visible[0, 0].tolist() == wanted
        torch.testing.assert_close(warped[..., :3].cpu(), neighbour[..., :3])


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_occlusion_equals_the_formula(backend: Backend, dtype: torch.dtype, squared: bool) -> None:
    frame = (0.1 * torch.rand(2, 3, 9, 35)).to(backend.device, dtype)
    neighbour = (frame + 0.05 * torch.randn_like(frame)).to(dtype)
    flow = hostile_flow(2, 9, 35, reach=0.5)
    flow[1] = smooth_flow(1, 9, 35, 0.05)
    flow = flow.to(backend.device)
    alpha = 30.0 if squared else 3.0  # both put the limit at a distance of about 0.11
    warped, visible = warp_occlusion(frame, neighbour, flow, alpha=alpha, squared=squared)
    wanted = warp_occlusion_reference(frame, neighbour, flow, alpha=alpha, squared=squared)
    torch.testing.assert_close(warped, wanted[0], atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])

    exact = warp_reference(neighbour.double(), flow)
    error = (frame.double() - exact).square().sum(1)
    occlusion = torch.exp(-alpha * (error if squared else error.sqrt()))  # Eq. 10's O, literally
    x = torch.arange(35, device=backend.device) + flow[:, 0]
    y = torch.arange(9, device=backend.device)[:, None] + flow[:, 1]
    inside = (x >= 0) & (x <= 34) & (y >= 0) & (y <= 8)
    decided = (occlusion - 0.7).abs() > 1e-5
    assert decided.float().mean() > 0.9
    assert torch.equal(visible[decided], (inside & (occlusion > 0.7))[decided])
    assert torch.equal(wanted[1][decided], visible[decided])
    assert 0.1 < visible.float().mean() < 0.9


def test_occlusion_limits(backend: Backend) -> None:
    frame = torch.rand(1, 3, 4, 4, device=backend.device)
    flow = torch.zeros(1, 2, 4, 4, device=backend.device)
    other = 1 - frame
    assert not warp_occlusion(frame, frame, flow, alpha=1.0, threshold=1.0)[1].any()  # exp(0) = 1 is not > 1
    assert warp_occlusion(frame, other, flow, alpha=0.0)[1].all()
    assert warp_occlusion(frame, other, flow, alpha=1e3, threshold=0.0)[1].all()
    assert not warp_occlusion(frame, torch.full_like(frame, NAN), flow, alpha=1.0)[1].any()
    black = torch.zeros_like(frame)
    assert not warp_occlusion(black, black, flow + 9, alpha=1.0)[1].any()  # zeros outside match no scene


# ---- registration and arguments ----


def test_opcheck() -> None:
    image = torch.randn(2, 3, 5, 7, requires_grad=True)
    flow = torch.randn(2, 2, 5, 7, requires_grad=True)
    for mode, padding in MODES:
        torch.library.opcheck(torch.ops.vda.warp, (image, flow, mode, padding, 0.0))
    plain = (image.detach(), flow.detach())
    torch.library.opcheck(
        torch.ops.vda.warp_backward, (torch.randn(2, 3, 5, 7), *plain, "bilinear", "zeros", True, False)
    )
    torch.library.opcheck(torch.ops.vda.warp_occlusion, (plain[0], plain[0], plain[1], 0.1))


def test_traces_without_a_graph_break() -> None:
    def step(image: Tensor, flow: Tensor) -> Tensor:
        still = image.detach()
        return warp(image, flow).square().sum() + warp_occlusion(still, still, flow, alpha=1.0)[1].sum()

    image, flow = torch.randn(1, 3, 6, 8, requires_grad=True), torch.randn(1, 2, 6, 8)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(step(image, flow), image)[0]
    torch.testing.assert_close(torch.autograd.grad(compiled(image, flow), image)[0], wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": [1.0]}, TypeError, "image: wanted a tensor or DLPack array, got list"),
        ({"image": torch.zeros(2, 3, 4)}, ValueError, r"image: wanted shape \[B, C, H, W\], got \[2, 3, 4\]"),
        ({"image": torch.zeros(1, 3, 4, 5, dtype=torch.int64)}, TypeError, "image: .*got int64"),
        ({"flow": torch.zeros(1, 3, 4, 5)}, ValueError, r"flow: wanted shape \[1, 2, 4, 5\], got \[1, 3, 4, 5\]"),
        ({"flow": torch.zeros(1, 2, 5, 4)}, ValueError, r"got \[1, 2, 5, 4\]"),
        ({"flow": torch.zeros(1, 2, 4, 5, dtype=torch.float64)}, TypeError, "flow: .*got float64"),
        ({"flow": torch.zeros(1, 2, 4, 5, device="meta")}, ValueError, "flow: wanted device cpu .*got meta"),
        ({"mode": "cubic"}, ValueError, "mode: wanted 'bilinear' or 'nearest', got 'cubic'"),
        ({"padding": "reflect"}, ValueError, "padding: wanted 'zeros' or 'border', got 'reflect'"),
        ({"fill": 255}, ValueError, "fill: wanted 0 unless"),
        (
            {"image": torch.zeros(1, 4, 5, dtype=torch.uint8), "mode": "nearest", "fill": 256},
            ValueError,
            "fill: wanted an integer that uint8 can hold, got 256",
        ),
    ],
)
def test_bad_arguments(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"image": torch.zeros(1, 3, 4, 5), "flow": torch.zeros(1, 2, 4, 5)} | change
    with pytest.raises(error, match=message):
        warp(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha: wanted a finite number >= 0"),
        ({"alpha": NAN}, "alpha: wanted a finite number >= 0"),
        ({"alpha": 1.0, "threshold": 1.5}, "threshold: wanted a number in"),
    ],
)
def test_bad_occlusion_arguments(options: dict, message: str) -> None:
    frame, flow = torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5)
    with pytest.raises(ValueError, match=message):
        warp_occlusion(frame, frame, flow, **options)
    with pytest.raises(ValueError, match="neighbour: wanted shape"):
        warp_occlusion(frame, frame[..., 1:], flow, alpha=1.0)
