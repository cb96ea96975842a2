"""correlation: hand-checkable numbers, a loop written from the formula, hostile layouts and sizes, gradients."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from conftest import Backend, layouts
from torch import Tensor

from vda.ops import correlation, correlation_reference

SHAPES = [  # B, C, H, W, max_displacement, stride: odd, H != W, one pixel, displacements beyond the frame, R = 0
    (2, 3, 5, 7, 4, 2),
    (1, 70, 3, 37, 3, 1),
    (1, 5, 11, 6, 7, 3),
    (3, 1, 1, 1, 2, 1),
    (1, 2, 4, 3, 20, 2),
    (1, 4, 3, 9, 2, 5),
    (1, 9, 9, 13, 20, 2),
]


def _formula(f1: Tensor, f2: Tensor, max_displacement: int, stride: int) -> Tensor:
    """The definition, one output at a time, in float64."""
    a, b = f1.double().numpy(), f2.double().numpy()
    B, C, H, W = a.shape
    R = max_displacement // stride
    D = 2 * R + 1
    out = np.zeros((B, D * D, H, W))
    for n, j, i, y, x in itertools.product(range(B), range(-R, R + 1), range(-R, R + 1), range(H), range(W)):
        y2, x2 = y + j * stride, x + i * stride
        if 0 <= y2 < H and 0 <= x2 < W:
            out[n, (j + R) * D + i + R, y, x] = a[n, :, y, x] @ b[n, :, y2, x2] / C
    return torch.from_numpy(out)


def _golden() -> tuple[Tensor, Tensor]:
    c, y, x = (t.double() for t in torch.meshgrid(torch.arange(2), torch.arange(3), torch.arange(4), indexing="ij"))
    return (1 + 2 * c + 3 * y - x)[None], (2 - c + y - 2 * x)[None]


def _check_golden(op, device: str, dtype: torch.dtype) -> None:
    f1, f2 = (f.to(device, dtype).requires_grad_() for f in _golden())
    out = op(f1, f2, max_displacement=2, stride=2)
    assert out.shape == (1, 9, 3, 4)
    expected = {
        4: [[2.5, -1, -0.5, 4], [12, 1.5, -5, -7.5], [27.5, 10, -3.5, -13]],
        3: [[0, 0, -0.5, 0], [0, 0, 7, 0.5], [0, 0, 20.5, 7]],
        5: [[-5.5, -5, 0, 0], [-8, -14.5, 0, 0], [-4.5, -18, 0, 0]],
        1: [[0, 0, 0, 0], [0, 0, 0, 0], [11.5, -4, -15.5, -23]],
        7: [[6.5, 1, -0.5, 2], [0, 0, 0, 0], [0, 0, 0, 0]],
    }
    for channel, values in expected.items():
        assert out[0, channel].tolist() == values
    assert out.sum() == -70
    assert out.abs().sum() == 314
    out.backward(torch.arange(1, 10, device=device, dtype=dtype).view(1, 9, 1, 1).expand_as(out))
    assert f1.grad is not None
    assert f2.grad is not None
    assert f1.grad[0].tolist() == [
        [[15, -13, 13, -11], [4.5, -6.5, 3.5, -5.5], [9, -7, 7, -5]],
        [[1, -27, 1, -23], [-1, -12, -1, -10], [1, -15, 1, -11]],
    ]
    assert f2.grad[0].tolist() == [
        [[10, 4, 16, 8], [14, 9.5, 17, 11.5], [28, 16, 34, 20]],
        [[22, 16, 32, 24], [23, 18.5, 28, 22.5], [52, 40, 62, 48]],
    ]


def _gradients(op, f1: Tensor, f2: Tensor, grad: Tensor, md: int, stride: int) -> tuple[Tensor, Tensor]:
    a, b = f1.detach().requires_grad_(), f2.detach().requires_grad_()
    return torch.autograd.grad(op(a, b, max_displacement=md, stride=stride), (a, b), grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_golden(backend: Backend, dtype: torch.dtype) -> None:
    _check_golden(correlation, backend.device, dtype)


def test_golden_reference() -> None:
    _check_golden(correlation_reference, "cpu", torch.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_formula(backend: Backend, shape: tuple[int, ...]) -> None:
    B, C, H, W, md, stride = shape
    f1, f2 = torch.randn(B, C, H, W), torch.randn(B, C, H, W)
    expected = _formula(f1, f2, md, stride)
    reference = correlation_reference(f1, f2, max_displacement=md, stride=stride)
    torch.testing.assert_close(reference.double(), expected, rtol=1e-5, atol=1e-6)
    got = correlation(f1.to(backend.device), f2.to(backend.device), max_displacement=md, stride=stride)
    assert got.is_contiguous()
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(backend: Backend, shape: tuple[int, ...]) -> None:
    B, C, H, W, md, stride = shape
    D = 2 * (md // stride) + 1
    f1, f2 = torch.randn(B, C, H, W), torch.randn(B, C, H, W)
    grad = torch.randn(B, D * D, H, W)
    expected = _gradients(correlation_reference, f1.double(), f2.double(), grad.double(), md, stride)
    got = _gradients(correlation, *(t.to(backend.device) for t in (f1, f2, grad)), md, stride)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g.cpu().double(), e, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def wide() -> tuple[Tensor, ...]:
    """f1, f2, grad, then by NumPy the output and both gradients, for displacements up to 13 in steps of 1. C, W and
    D lie beyond one tile of every vector width."""
    rng = np.random.default_rng(1)
    f1, f2 = rng.standard_normal((2, 67, 5, 19))
    grad = rng.standard_normal((27, 27, 5, 19))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(f2, ((0, 0), (13, 13), (13, 13))), (27, 27), (1, 2))
    out = np.einsum("cyx,cyxji->jiyx", f1, windows) / 67
    grad_f1 = np.einsum("jiyx,cyxji->cyx", grad, windows) / 67
    grad_f2 = np.zeros((67, 5 + 26, 19 + 26))
    for j, i in itertools.product(range(27), range(27)):
        grad_f2[:, j : j + 5, i : i + 19] += grad[j, i] * f1 / 67
    arrays = f1, f2, grad.reshape(729, 5, 19), out.reshape(729, 5, 19), grad_f1, grad_f2[:, 13:18, 13:32]
    return tuple(torch.from_numpy(array)[None] for array in arrays)


@pytest.mark.parametrize("simd", ["baseline", "avx2", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(
    monkeypatch: pytest.MonkeyPatch, wide: tuple[Tensor, ...], simd: str, dtype: torch.dtype
) -> None:
    monkeypatch.setenv("VDA_SIMD", simd)
    f1, f2, grad, *expected = (t.to(dtype) for t in wide)
    got = correlation(f1, f2, max_displacement=13, stride=1), *_gradients(correlation, f1, f2, grad, 13, 1)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_rounds_once(backend: Backend, dtype: torch.dtype) -> None:
    f1, f2 = (torch.randn(1, 33, 5, 9).to(dtype) for _ in range(2))
    exact = correlation_reference(f1.double(), f2.double(), max_displacement=4, stride=2)
    got = correlation(f1.to(backend.device), f2.to(backend.device), max_displacement=4, stride=2)
    assert got.dtype == dtype
    assert ((got.cpu().double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6).all()
    grad = torch.randn(exact.shape).to(dtype)
    gradients = _gradients(correlation, *(t.to(backend.device) for t in (f1, f2, grad)), 4, 2)
    wanted = _gradients(correlation_reference, f1.double(), f2.double(), grad.double(), 4, 2)
    for g, e in zip(gradients, wanted, strict=True):
        assert g.dtype == dtype
        assert ((g.cpu().double() - e).abs() <= torch.finfo(dtype).eps / 2 * e.abs() + 1e-6).all()


def test_layouts(backend: Backend) -> None:
    """Any strides, expanded inputs and expanded or sliced gradients: the same numbers as contiguous ones."""
    f1, f2 = (torch.randn(2, 3, 4, 5, device=backend.device) for _ in range(2))
    grad = torch.randn(2, 9, 4, 5, device=backend.device)
    expected = correlation(f1, f2, max_displacement=2, stride=2)
    gradients = _gradients(correlation, f1, f2, grad, 2, 2)
    for a, b, g in zip(layouts(f1), layouts(f2)[::-1], layouts(grad), strict=True):
        assert torch.equal(correlation(a, b, max_displacement=2, stride=2), expected)
        for got, want in zip(_gradients(correlation, a, b, g, 2, 2), gradients, strict=True):
            assert torch.equal(got, want)
    one = torch.ones((), device=backend.device).expand_as(grad)
    for got, want in zip(
        _gradients(correlation, f1, f2, one, 2, 2), _gradients(correlation, f1, f2, one.clone(), 2, 2), strict=True
    ):
        assert torch.equal(got, want)
    same = f1[:1].expand(2, -1, -1, -1)
    assert torch.equal(
        correlation(same, f2, max_displacement=2, stride=2), correlation(same.clone(), f2, max_displacement=2, stride=2)
    )


def test_scale_and_slope(backend: Backend) -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        f1, f2 = (torch.randn(1, 20, 5, 9, device=backend.device).to(dtype) for _ in range(2))
        for options in ({"scale": 0.3}, {"scale": -0.25, "negative_slope": 0.5}, {"negative_slope": 0.1}):
            found = correlation(f1, f2, max_displacement=4, stride=2, **options)
            wanted = correlation_reference(f1.double(), f2.double(), max_displacement=4, stride=2, **options)
            torch.testing.assert_close(found.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_swapped_frames(backend: Backend) -> None:
    """corr(f2, f1) at displacement -d and pixel p + d is corr(f1, f2) at displacement d and pixel p."""
    f1, f2 = (torch.randn(1, 4, 6, 5, device=backend.device) for _ in range(2))
    forth = correlation(f1, f2, max_displacement=2, stride=1).view(5, 5, 6, 5)
    back = correlation(f2, f1, max_displacement=2, stride=1).view(5, 5, 6, 5)
    for dy, dx, y, x in itertools.product(range(-2, 3), range(-2, 3), range(6), range(5)):
        if 0 <= y + dy < 6 and 0 <= x + dx < 5:
            assert forth[dy + 2, dx + 2, y, x] == pytest.approx(back[2 - dy, 2 - dx, y + dy, x + dx].item(), abs=1e-6)


def test_known_shift_is_found(backend: Backend) -> None:
    """f2 is f1 moved 2 right and 4 up: the best match of every pixel that stays inside is (dy, dx) = (-4, 2)."""
    f1 = torch.randn(1, 64, 12, 14, device=backend.device)
    f2 = f1.roll((-4, 2), (2, 3))
    best = correlation(f1, f2).argmax(1)[0, 4:, :-2]
    assert (best == (10 - 2) * 21 + 10 + 1).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty(backend: Backend, shape: tuple[int, ...]) -> None:
    f = torch.zeros(shape, device=backend.device, requires_grad=True)
    out = correlation(f, f.detach(), max_displacement=2, stride=2)
    assert out.shape == (shape[0], 9, *shape[2:])
    out.sum().backward()
    assert f.grad is not None
    assert f.grad.shape == shape


def test_one_gradient_only(backend: Backend) -> None:
    f1, f2 = (torch.randn(1, 3, 4, 5, device=backend.device) for _ in range(2))
    grad = torch.randn(1, 9, 4, 5, device=backend.device)
    both = _gradients(correlation, f1, f2, grad, 2, 2)
    for i in range(2):
        inputs = [f1.clone(), f2.clone()]
        inputs[i].requires_grad_()
        correlation(*inputs, max_displacement=2, stride=2).backward(grad)
        assert torch.equal(inputs[i].grad, both[i])
        assert inputs[1 - i].grad is None


def test_gradcheck(backend: Backend) -> None:
    f1, f2 = (torch.randn(1, 2, 3, 4, dtype=torch.float64, device=backend.device).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: correlation(a, b, max_displacement=3, stride=2), (f1, f2))
    assert torch.autograd.gradcheck(
        lambda a, b: correlation(a.transpose(2, 3), b.transpose(2, 3), max_displacement=1, stride=1), (f1, f2)
    )


def test_opcheck() -> None:
    f1, f2 = (torch.randn(1, 2, 5, 3, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.vda.correlation, (f1, f2, 1, 2, 0.5, 1.0))
    torch.library.opcheck(torch.ops.vda.correlation, (f1, f2, 1, 2, 0.5, 0.1))
    grad = torch.randn(1, 9, 5, 3)
    torch.library.opcheck(torch.ops.vda.correlation_backward, (grad, f1.detach(), f2.detach(), 1, 2, 0.5, True, False))


def test_threads_do_not_change_a_bit() -> None:
    f1, f2 = torch.randn(1, 20, 33, 29), torch.randn(1, 20, 33, 29)
    grad = torch.randn(1, 441, 33, 29)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append((correlation(f1, f2), *_gradients(correlation, f1, f2, grad, 20, 2)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_numpy_in_numpy_out() -> None:
    f1, f2 = (f.float().numpy() for f in _golden())
    out = correlation(f1, f2, max_displacement=2, stride=2)
    assert isinstance(out, np.ndarray)
    assert out.sum() == -70


def test_reference_serves_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vda.ops._lib.load", lambda: (None, "not built"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once per process
        _check_golden(correlation, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"f1": torch.zeros(1, 3, 4, 5, dtype=torch.int32)}, TypeError, "f1: wanted element type .* got int32"),
        ({"f1": [1.0]}, TypeError, "f1: wanted a tensor or DLPack array, got list"),
        ({"f1": torch.zeros(3, 4, 5)}, ValueError, r"f1: wanted shape \[B, C, H, W\], got \[3, 4, 5\]"),
        ({"f1": torch.zeros(1, 0, 4, 5), "f2": torch.zeros(1, 0, 4, 5)}, ValueError, "f1: wanted at least one channel"),
        ({"f2": torch.zeros(1, 3, 4, 6)}, ValueError, r"f2: wanted shape \[1, 3, 4, 5\], got \[1, 3, 4, 6\]"),
        ({"f2": torch.zeros(1, 3, 4, 5).half()}, TypeError, "f2: wanted element type float32, got float16"),
        ({"f2": torch.zeros(1, 3, 4, 5, device="meta")}, ValueError, "f2: wanted device cpu .* got meta"),
        ({"max_displacement": 0}, ValueError, "max_displacement: wanted at least 1, got 0"),
        ({"max_displacement": -4}, ValueError, "max_displacement: wanted at least 1, got -4"),
        ({"max_displacement": 2.0}, TypeError, "max_displacement: wanted an int, got float"),
        ({"stride": 0}, ValueError, "stride: wanted at least 1, got 0"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"f1": torch.zeros(1, 3, 4, 5), "f2": torch.zeros(1, 3, 4, 5)} | change
    with pytest.raises(error, match=message):
        correlation(**arguments)
