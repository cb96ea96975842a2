"""The fast CUDA kernels of correlation: tiles, layouts and element types that the small cases of test_correlation.py do
not reach. On a machine without a GPU through the shim."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import BACKENDS, Backend
from torch import Tensor

from vda.ops import _lib, correlation, correlation_reference

pytestmark = pytest.mark.parametrize(
    "backend", [name for name in BACKENDS if name not in ("cpu", "avx2", "baseline", "naive")], indirect=True
)

CASES = [  # B, C, H, W, max_displacement, stride: tiles have 8 rows of one lattice and 32 pixels
    (1, 16, 19, 34, 20, 2),  # FlowNet2's window; a second tile along y and along x, both nearly empty
    (2, 40, 9, 36, 4, 1),  # PWC-Net's
    (1, 24, 26, 20, 6, 3),  # nine lattices; stores of every third x
    (1, 72, 3, 9, 13, 1),  # D = 27: two bands of displacements
    (1, 264, 2, 5, 2, 2),  # more channels than one pass and two blocks of gradients take
    (1, 256, 4, 9, 2, 1),  # as many as one pass takes
    (3, 8, 1, 1, 2, 1),
    (1, 3, 5, 12, 200, 100),  # steps far beyond the frame; channels that need packing
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The references are hundreds of small operations, which several threads only slow down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    yield
    matmul.fp32_precision = before


def _maps(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """f1, f2 (channels-last) and a gradient of their correlation."""
    B, C, H, W, md, stride = shape
    f1, f2 = (torch.randn(B, C, H, W).to(device, dtype, memory_format=torch.channels_last) for _ in range(2))
    return f1, f2, torch.randn(B, (2 * (md // stride) + 1) ** 2, H, W).to(device, dtype)


def _run(op, f1: Tensor, f2: Tensor, grad: Tensor, md: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output and both gradients."""
    a, b = f1.detach().requires_grad_(), f2.detach().requires_grad_()
    out = op(a, b, max_displacement=md, stride=stride)
    return out.detach(), *torch.autograd.grad(out, (a, b), grad)


def _check(found: tuple[Tensor, ...], f1: Tensor, f2: Tensor, grad: Tensor, md: int, stride: int) -> None:
    wanted = _run(correlation_reference, f1.double(), f2.double(), grad.double(), md, stride)
    eps = {torch.float32: 1e-6}.get(f1.dtype, torch.finfo(f1.dtype).eps / 2)  # 16 bits: one rounding
    for name, mine, exact in zip(("out", "grad_f1", "grad_f2"), found, wanted, strict=True):
        assert mine.dtype == f1.dtype
        error = (mine.double() - exact).abs() - eps * exact.abs()
        assert error.max() <= 5e-6, f"{name}: {error.max():.2g} beyond one rounding"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bits", [32, 16])
def test_tiles(backend: Backend, case: tuple[int, ...], bits: int) -> None:
    dtype = torch.float32 if bits == 32 else (torch.float16, torch.bfloat16)[CASES.index(case) % 2]
    maps = _maps(case, dtype, backend.device)
    _check(_run(correlation, *maps, *case[4:]), *maps, *case[4:])


@pytest.mark.parametrize("radius", [0, 2, 3, 6, 7, 10, 11, 13])
def test_window(backend: Backend, radius: int) -> None:
    """One, two and three groups of 8 columns, full and just begun; two bands of them."""
    stride = 1 + radius % 3
    md = max(1, radius * stride)
    if radius == 0:
        md, stride = 1, 2
    maps = _maps((1, 32, 4, 11, md, stride), torch.bfloat16, backend.device)
    _check(_run(correlation, *maps, md, stride), *maps, md, stride)


@pytest.mark.parametrize("capability", [75, 80, 86, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_gpu(backend: Backend, monkeypatch: pytest.MonkeyPatch, capability: int, dtype: torch.dtype) -> None:
    """Depth of the pipeline and number of staging buffers depend on the shared memory; before 8.0 there is neither."""
    if backend.device == "cuda":
        pytest.skip("the GPU has its own capability")
    monkeypatch.setenv("VDA_SHIM_CAPABILITY", str(capability))
    maps = _maps((1, 40, 9, 35, 4, 2), dtype, backend.device)
    _check(_run(correlation, *maps, 4, 2), *maps, 4, 2)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("case", [(1, 16, 19, 34, 20, 2), (1, 140, 6, 9, 4, 1), (2, 5, 4, 7, 3, 3)])
def test_tf32(backend: Backend, case: tuple[int, ...]) -> None:
    """Products are rounded to 11 bits and summed in fp32, where torch allows that for matrix products."""
    *maps, md, stride = *_maps(case, torch.float32, backend.device), *case[4:]
    found = _run(correlation, *maps, md, stride)
    exact = _run(correlation_reference, *(x.double() for x in maps), md, stride)
    size = _run(correlation_reference, *(x.double().abs() for x in maps), md, stride)  # sum of |products|
    for mine, wanted, bound in zip(found, exact, size, strict=True):
        error = (mine.double() - wanted).abs()
        assert (error <= 2**-10 * bound + 1e-7).all()
        assert error.max() > 1e-6 * bound.max()


def test_fp32_is_exact_unless_tf32_is_allowed(backend: Backend) -> None:
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    f1, f2, _ = _maps((1, 64, 6, 9, 4, 2), torch.float32, backend.device)
    exact = correlation_reference(f1.double(), f2.double(), max_displacement=4, stride=2)
    assert (correlation(f1, f2, max_displacement=4, stride=2) - exact).abs().max() < 1e-6


# ---- layouts ----


def _layouts(x: Tensor) -> dict[str, Tensor]:
    """x [B, C, H, W] in memory layouts that a kernel may read directly, and in ones that it has to pack."""
    B, C, H, W = x.shape

    def inside(larger: Tensor, *begin: int) -> Tensor:
        view = larger[tuple(slice(b, b + n) for b, n in zip(begin, (B, H, W, C), strict=True))].permute(0, 3, 1, 2)
        return view.copy_(x)

    new = x.new_zeros
    return {
        "planes": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "channels of a wider map": inside(new(B, H, W, C + 16), 0, 0, 0, 8),
        "not aligned": inside(new(B, H, W, C + 8), 0, 0, 0, 1),
        "odd distance": inside(new(B, H, W, C + 3), 0, 0, 0, 0),
        "window of a larger map": inside(new(B + 1, H + 2, W + 3, C), 1, 1, 2, 0),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "odd planes": inside(new(B, H, W + 1, C).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), 0, 0, 1, 0),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layouts_of_the_maps(backend: Backend, dtype: torch.dtype) -> None:
    f1, f2, grad = _maps((2, 40, 5, 18, 4, 2), dtype, backend.device)
    expected = _run(correlation, f1, f2, grad, 4, 2)
    _check(expected, f1, f2, grad, 4, 2)
    for (name, a), b in zip(_layouts(f1).items(), list(_layouts(f2).values())[::-1], strict=True):
        for mine, wanted in zip(_run(correlation, a, b, grad, 4, 2), expected, strict=True):
            assert torch.equal(mine, wanted), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_expanded_maps(backend: Backend, dtype: torch.dtype) -> None:
    _, f2, grad = _maps((2, 16, 5, 18, 4, 2), dtype, backend.device)
    for shape in ((1, 16, 5, 18), (2, 16, 5, 1), (2, 16, 1, 18), (2, 1, 5, 18)):
        one = torch.randn(shape).to(backend.device, dtype, memory_format=torch.channels_last)
        f1 = one.expand_as(f2)
        for mine, wanted in zip(
            _run(correlation, f1, f2, grad, 4, 2), _run(correlation, f1.clone(), f2, grad, 4, 2), strict=True
        ):
            assert torch.equal(mine, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [17, 18])
def test_layouts_of_the_gradient(backend: Backend, dtype: torch.dtype, width: int) -> None:
    """Sliced, transposed and expanded gradients; neighbouring values are read in pairs where they can be."""
    f1, f2, grad = _maps((2, 16, 5, width, 4, 2), dtype, backend.device)
    expected = _run(correlation, f1, f2, grad, 4, 2)
    wide = torch.zeros(2, 25, 5, width + 3, device=backend.device, dtype=dtype)
    views = [wide[..., :width], wide[..., 1 : width + 1], wide.new_zeros(2, 30, 5, width)[:, 5:]]
    views += [grad.new_zeros(2, 25, width, 5).transpose(2, 3), grad.new_zeros(2, 25, 5, 2 * width)[..., ::2]]
    for view in views:
        for mine, wanted in zip(_run(correlation, f1, f2, view.copy_(grad), 4, 2), expected, strict=True):
            assert torch.equal(mine, wanted)
    for one in (grad[:1, :1, :1, :1], grad[:, :, :1, :1], grad[:1]):
        same = one.expand_as(grad)
        for mine, wanted in zip(
            _run(correlation, f1, f2, same, 4, 2), _run(correlation, f1, f2, same.clone(), 4, 2), strict=True
        ):
            assert torch.equal(mine, wanted)


def test_gradients_lie_like_the_maps(backend: Backend) -> None:
    f1, f2, grad = _maps((2, 16, 5, 9, 4, 2), torch.float16, backend.device)
    for layout in (torch.channels_last, torch.contiguous_format):
        a, b = f1.contiguous(memory_format=layout), f2.contiguous(memory_format=layout)
        for gradient in _run(correlation, a, b, grad, 4, 2)[1:]:
            assert gradient.is_contiguous(memory_format=layout)


def test_opcheck_channels_last(backend: Backend) -> None:
    f1, f2, grad = _maps((1, 8, 4, 5, 2, 2), torch.float32, backend.device)
    torch.library.opcheck(torch.ops.vda.correlation, (f1, f2, 1, 2, 0.5, 0.1))
    torch.library.opcheck(torch.ops.vda.correlation_backward, (grad, f1, f2, 1, 2, 0.5, True, True))


def test_workspace(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aligned channels-last maps are read where they lie; others are packed; many channels need partial sums."""
    asked = []
    ask = _lib.workspace

    def spy(*args, **members):
        asked.append(ask(*args, **members))
        return asked[-1]

    monkeypatch.setattr(_lib, "workspace", spy)
    f1, f2, grad = _maps((2, 24, 3, 5, 2, 2), torch.float16, backend.device)
    _run(correlation, f1, f2, grad, 2, 2)
    assert [x.numel() for x in asked] == [0, 0]
    _run(correlation, f1.contiguous(), f2, grad, 2, 2)
    packed = f1.numel() * 2
    assert [x.numel() for x in asked[2:]] == [packed, packed]  # f1 forward; backward f1 for the gradient of f2
    f1, f2, grad = _maps((1, 272, 3, 5, 2, 2), torch.float16, backend.device)
    _run(correlation, f1, f2, grad, 2, 2)
    sums = -(-grad.numel() * 4 // 16) * 16
    assert [x.numel() for x in asked[4:]] == [sums, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_non_finite_features_stay_near(backend: Backend, dtype: torch.dtype) -> None:
    """An infinity reaches the pixels whose window it is in; in the gradients, whose weights outside of it are zeros, up
    to three steps more, and there its own channel alone."""
    f1, f2, grad = _maps((1, 16, 8, 40, 4, 2), dtype, backend.device)
    f2[0, 3, 4, 20] = torch.inf
    out, grad_f1, grad_f2 = _run(correlation, f1, f2, grad, 4, 2)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(40), indexing="ij")

    def within(steps: int) -> Tensor:
        return ((y - 4).abs() <= 2 * steps) & ((x - 20).abs() <= 2 * steps) & (y % 2 == 0) & (x % 2 == 0)

    assert torch.equal(~out.isfinite().all(1)[0].cpu(), within(2))
    hit = ~grad_f1.isfinite()[0].cpu()
    assert (hit[3] >= within(2)).all()
    assert (hit[3] <= within(2 + 3)).all()
    assert not hit[torch.arange(16) != 3].any()
    assert grad_f2.isfinite().all()
