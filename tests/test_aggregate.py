"""aggregate (Eq. 10): numbers worked by hand, a pixel-by-pixel loop, invariants, hostile flow, layouts."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from conftest import Backend, hostile_flow, layouts, smooth_flow
from torch import Tensor

from vda.ops import aggregate, aggregate_reference

Clip = dict[str, Tensor]


def _clip(B: int, J: int, K: int, H: int, W: int, C: int = 3, similar: float = 0.05) -> Clip:
    """Random distributions; colours that differ by little, so that the occlusion test goes either way."""
    frame = torch.rand(B, C, H, W)
    return {
        "probs": torch.randn(B, K, H, W).softmax(1),
        "neighbour_probs": torch.randn(B, J, K, H, W).softmax(2),
        "flows": torch.stack([hostile_flow(B, H, W, reach=1.0) for _ in range(J)], 1)
        if J
        else torch.zeros(B, 0, 2, H, W),
        "frame": frame,
        "neighbour_frames": 0.5 + similar * torch.randn(B, J, C, H, W),
    }


def _loop(clip: Clip, alpha: float, threshold: float, squared: bool) -> Tensor:
    """Eq. 10 as written: one pixel, one exp and one root at a time, in float64."""
    P, PJ, flows, x, xj = (clip[name].double().numpy() for name in clip)
    B, J, _, H, W = PJ.shape
    out = np.zeros_like(P)
    for b, r, c in itertools.product(range(B), range(H), range(W)):
        total, count = P[b, :, r, c].copy(), 1
        for j in range(J):
            u, v = (np.float32(f) for f in flows[b, j, :, r, c])
            px, py = np.float32(c) + u, np.float32(r) + v
            if not (np.isfinite(px) and np.isfinite(py) and 0 <= px <= W - 1 and 0 <= py <= H - 1):
                continue
            x0, y0 = math.floor(px), math.floor(py)
            a, t = float(px) - x0, float(py) - y0
            x1, y1 = min(x0 + 1, W - 1), min(y0 + 1, H - 1)

            def sample(z, y0=y0, y1=y1, x0=x0, x1=x1, a=a, t=t):
                top = (1 - a) * z[:, y0, x0] + a * z[:, y0, x1]
                return (1 - t) * top + t * ((1 - a) * z[:, y1, x0] + a * z[:, y1, x1])

            error = np.square(x[b, :, r, c] - sample(xj[b, j])).sum()
            if math.exp(-alpha * (error if squared else math.sqrt(error))) > threshold:
                total += sample(PJ[b, j])
                count += 1
        out[b, :, r, c] = total / count
    return torch.from_numpy(out)


def _to(clip: Clip, device: str) -> Clip:
    return {name: x.to(device) for name, x in clip.items()}


def test_by_hand(backend: Backend) -> None:
    """Two pixels, two neighbours. Left: the first neighbour is seen half a pixel to the right, the second is of
    another colour. Right: the first has left the frame, the second is seen in place."""
    clip = {
        "probs": torch.tensor([[0.8, 0.4], [0.2, 0.6]]).view(1, 2, 1, 2),
        "neighbour_probs": torch.tensor([[[0.6, 0.2], [0.4, 0.8]], [[0.1, 0.9], [0.9, 0.1]]]).view(1, 2, 2, 1, 2),
        "flows": torch.tensor([[[0.5, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]).view(1, 2, 2, 1, 2),
        "frame": torch.full((1, 3, 1, 2), 0.5),
        "neighbour_frames": torch.full((1, 2, 3, 1, 2), 0.5),
    }
    clip["neighbour_frames"][0, 1, :, 0, 0] = 1.0
    for op, device in ((aggregate, backend.device), (aggregate_reference, "cpu")):
        out = op(**_to(clip, device), alpha=1.0).cpu()
        # (0.8 + (0.6 + 0.2) / 2) / 2 = 0.6;  (0.4 + 0.9) / 2 = 0.65
        torch.testing.assert_close(out, torch.tensor([[0.6, 0.65], [0.4, 0.35]]).view(1, 2, 1, 2))


# golden example 15
@pytest.mark.parametrize(("squared", "alpha", "limit"), [(True, 50.0, 0.08446), (False, 50.0, 0.00713)])
def test_operating_point_of_the_occlusion_test(backend: Backend, squared: bool, alpha: float, limit: float) -> None:
    """A neighbour counts below an error norm of `limit`, at th = 0.7, and not above."""
    for error, seen in ((limit * 0.998, True), (limit * 1.002, False)):
        clip = {
            "probs": torch.tensor([1.0, 0.0]).view(1, 2, 1, 1),
            "neighbour_probs": torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1),
            "flows": torch.zeros(1, 1, 2, 1, 1),
            "frame": torch.zeros(1, 3, 1, 1),
            "neighbour_frames": torch.tensor([0.6, 0.0, 0.8]).view(1, 1, 3, 1, 1) * error,
        }
        out = aggregate(**_to(clip, backend.device), alpha=alpha, squared=squared)
        assert out.flatten().tolist() == ([0.5, 0.5] if seen else [1.0, 0.0])


def test_threshold_is_strict(backend: Backend) -> None:
    """exp(-alpha e) = threshold exactly is occluded: e = 1, alpha = 1, threshold = exp(-1)."""
    clip = {
        "probs": torch.tensor([1.0, 0.0]).view(1, 2, 1, 1),
        "neighbour_probs": torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1),
        "flows": torch.zeros(1, 1, 2, 1, 1),
        "frame": torch.zeros(1, 1, 1, 1),
        "neighbour_frames": torch.ones(1, 1, 1, 1, 1),
    }
    clip = _to(clip, backend.device)
    assert aggregate(**clip, alpha=1.0, threshold=math.exp(-1)).flatten().tolist() == [1.0, 0.0]
    assert aggregate(**clip, alpha=1.0, threshold=math.exp(-1.0001)).flatten().tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("sizes", "squared"),
    [
        ((2, 2, 3, 5, 7), False),
        ((1, 1, 45, 6, 5), True),  # more classes than one block of either kernel
        ((1, 5, 2, 4, 67), False),  # more neighbours than usual, a row longer than a strip
        ((1, 2, 19, 1, 1), False),
        ((1, 1, 1, 3, 4), False),
        ((1, 1, 8, 3, 34), False),
        ((1, 8, 9, 3, 6), True),  # as many neighbours as the CUDA kernel keeps in shared memory, and more
        ((1, 9, 13, 3, 5), False),
        ((2, 0, 4, 3, 5), False),
    ],
)
def test_loop(backend: Backend, sizes: tuple[int, ...], squared: bool) -> None:
    clip = _clip(*sizes)
    alpha = 1.5 if squared else 0.6
    arguments = {"alpha": alpha, "threshold": 0.7, "squared": squared}
    expected = _loop(clip, **arguments)
    torch.testing.assert_close(aggregate_reference(**clip, **arguments).double(), expected, rtol=1e-5, atol=1e-6)
    got = aggregate(**_to(clip, backend.device), **arguments)
    assert got.is_contiguous()
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.sum(1), torch.ones_like(got[:, 0]))
    if sizes[1] and min(sizes[2:4]) > 1:  # the case is worth something only if the test went both ways
        changed = (expected - clip["probs"]).abs().amax(1) > 1e-6
        assert 0.05 < changed.float().mean() < 0.95


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.4])
def test_smooth_flow(backend: Backend, slope: float) -> None:
    """Where neighbours go to neighbours the CPU kernel reads whole vectors; 183 columns are two groups of strips."""
    clip = _clip(1, 2, 5, 9, 183)
    clip["flows"] = torch.stack([smooth_flow(1, 9, 183, slope), smooth_flow(1, 9, 183, slope)], 1)
    wanted = aggregate_reference(**clip, alpha=0.6)
    got = aggregate(**_to(clip, backend.device), alpha=0.6)
    torch.testing.assert_close(got.cpu(), wanted, rtol=1e-5, atol=1e-6)


# golden example 16: identical frames; all neighbours occluded; a sum of 1
def test_same_frame_changes_nothing(backend: Backend) -> None:
    clip = _clip(2, 2, 4, 5, 6)
    clip["flows"].zero_()
    clip["neighbour_frames"] = clip["frame"][:, None].expand(-1, 2, -1, -1, -1)
    clip["neighbour_probs"] = clip["probs"][:, None].expand(-1, 2, -1, -1, -1)
    out = aggregate(**_to(clip, backend.device), alpha=1.0)
    torch.testing.assert_close(out.cpu(), clip["probs"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(out.sum(1), torch.ones_like(out[:, 0]))
    clip["neighbour_probs"] = clip["neighbour_probs"].roll(1, 2)  # of other classes
    assert not torch.equal(aggregate(**_to(clip, backend.device), alpha=1.0), out)
    clip["neighbour_frames"] = clip["neighbour_frames"] + 1  # of another colour everywhere
    assert torch.equal(aggregate(**_to(clip, backend.device), alpha=1.0).cpu(), clip["probs"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -3e9, 1e4])
def test_neighbour_that_cannot_be_seen_is_not_read(backend: Backend, bad: float) -> None:
    """Whatever lies there, NaN included, must not reach the result: out of frame, not finite, another colour."""
    clip = _clip(1, 2, 3, 4, 5)
    clip["neighbour_probs"].fill_(math.nan)
    clip["flows"][:, 0] = bad
    clip["flows"][:, 1] = 0
    clip["neighbour_frames"][:, 0] = clip["frame"]
    clip["neighbour_frames"][:, 1] = clip["frame"] + 10
    out = aggregate(**_to(clip, backend.device), alpha=1.0)
    assert torch.equal(out.cpu(), clip["probs"])
    assert torch.equal(aggregate_reference(**clip, alpha=1.0), clip["probs"])


def test_black_scene_is_not_matched_outside(backend: Backend) -> None:
    """Zero filling would pass the colour test where everything is black."""
    clip = _clip(1, 1, 2, 3, 4)
    clip["frame"].zero_()
    clip["neighbour_frames"].zero_()
    clip["flows"][:] = torch.tensor([2.25, 0.0]).view(2, 1, 1)
    out = aggregate(**_to(clip, backend.device), alpha=1.0).cpu()
    assert torch.equal(out[..., 1:], clip["probs"][..., 1:])
    assert not torch.equal(out[..., :1], clip["probs"][..., :1])


@pytest.mark.parametrize("width", [7, 10])  # CUDA takes the pixels of an even row in pairs
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit(backend: Backend, dtype: torch.dtype, width: int) -> None:
    """Sums in float32, one rounding: probabilities, colours and flow each in their own type."""
    clip = _clip(1, 2, 5, 6, width)
    clip["probs"], clip["neighbour_probs"] = clip["probs"].to(dtype), clip["neighbour_probs"].to(dtype)
    clip["frame"], clip["neighbour_frames"] = clip["frame"].half(), clip["neighbour_frames"].half()
    clip["flows"] = clip["flows"].bfloat16()
    exact = _loop(clip, 0.6, 0.7, False)
    out = aggregate(**_to(clip, backend.device), alpha=0.6)
    assert out.dtype == dtype
    assert ((out.cpu().double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [5, 6])
def test_layouts(backend: Backend, dtype: torch.dtype, width: int) -> None:
    clip = _to(_clip(2, 2, 3, 4, width), backend.device)
    clip["probs"], clip["neighbour_probs"] = clip["probs"].to(dtype), clip["neighbour_probs"].to(dtype)
    expected = aggregate(**clip, alpha=0.6)
    for variant in zip(*(layouts(x) for x in clip.values()), strict=True):
        assert torch.equal(aggregate(*variant, alpha=0.6), expected)
    clip["flows"] = clip["flows"][:1, :1].expand(2, 2, -1, -1, -1)
    contiguous = {name: x.contiguous() for name, x in clip.items()}
    assert torch.equal(aggregate(**clip, alpha=0.6), aggregate(**contiguous, alpha=0.6))


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4, 5), (1, 2, 3, 0, 5), (1, 2, 3, 4, 0), (0, 0, 3, 4, 5)])
def test_empty(backend: Backend, sizes: tuple[int, ...]) -> None:
    B, J, K, H, W = sizes
    clip = {
        "probs": torch.zeros(B, K, H, W),
        "neighbour_probs": torch.zeros(B, J, K, H, W),
        "flows": torch.zeros(B, J, 2, H, W),
        "frame": torch.zeros(B, 3, H, W),
        "neighbour_frames": torch.zeros(B, J, 3, H, W),
    }
    assert aggregate(**_to(clip, backend.device), alpha=1.0).shape == (B, K, H, W)
    assert aggregate_reference(**clip, alpha=1.0).shape == (B, K, H, W)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.vda.aggregate, (*_clip(1, 2, 3, 4, 5).values(), 0.1))


def test_numpy_in_numpy_out() -> None:
    clip = _clip(1, 2, 3, 4, 5)
    out = aggregate(**{name: x.numpy() for name, x in clip.items()}, alpha=0.6)
    assert isinstance(aggregate(*(x.numpy() for x in clip.values()), alpha=0.6), np.ndarray)
    torch.testing.assert_close(torch.as_tensor(out), aggregate(**clip, alpha=0.6))


def test_reference_serves_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = _clip(1, 2, 3, 4, 5)
    monkeypatch.setattr("vda.ops._lib.load", lambda: (None, "not built"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once per process
        assert torch.equal(aggregate(**clip, alpha=0.6), aggregate_reference(**clip, alpha=0.6))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"probs": torch.zeros(1, 3, 4, 5).double()}, TypeError, "probs: wanted element type .* got float64"),
        ({"probs": torch.zeros(3, 4, 5)}, ValueError, r"probs: wanted shape \[B, K, H, W\], got \[3, 4, 5\]"),
        ({"neighbour_probs": torch.zeros(1, 3, 4, 5)}, ValueError, r"neighbour_probs: wanted shape \[1, J, 3, 4, 5\]"),
        ({"neighbour_probs": torch.zeros(1, 2, 3, 4, 5).half()}, TypeError, "neighbour_probs: .* got float16"),
        ({"flows": torch.zeros(1, 1, 2, 4, 5)}, ValueError, r"flows: wanted shape \[1, 2, 2, 4, 5\]"),
        ({"flows": torch.zeros(1, 2, 2, 4, 5).int()}, TypeError, "flows: wanted element type .* got int32"),
        ({"frame": torch.zeros(1, 3, 4, 6)}, ValueError, r"frame: wanted shape \[1, C, 4, 5\], got \[1, 3, 4, 6\]"),
        ({"neighbour_frames": torch.zeros(1, 2, 1, 4, 5)}, ValueError, r"neighbour_frames: wanted shape \[1, 2, 3, 4"),
        ({"frame": torch.zeros(1, 3, 4, 5, device="meta")}, ValueError, "frame: wanted device cpu .* got meta"),
        ({"probs": torch.zeros(1, 3, 4, 5, requires_grad=True)}, ValueError, "probs: wanted a tensor without gradient"),
        ({"alpha": -1.0}, ValueError, "alpha: wanted a finite number >= 0, got -1.0"),
        ({"threshold": 1.5}, ValueError, r"threshold: wanted a number in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = _clip(1, 2, 3, 4, 5) | {"alpha": 1.0} | change
    with pytest.raises(error, match=message):
        aggregate(**arguments)


def test_no_gradient_is_recorded_under_no_grad() -> None:
    clip = _clip(1, 1, 3, 4, 5)
    clip["probs"].requires_grad_()
    with torch.no_grad():
        assert not aggregate(**clip, alpha=1.0).requires_grad
