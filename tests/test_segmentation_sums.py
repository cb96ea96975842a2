"""segmentation_sums: the composition of interpolate, log-softmax and sums, numbers by hand, hostile input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import Backend, layouts
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vda.ops import SegmentationSums, segmentation_sums, segmentation_sums_reference

NONE = 255
SHAPES = [
    # N, K, (h, w), (H, W)
    (2, 5, (5, 19), (37, 150)),  # several bands and tiles, rows and columns left over
    (1, 15, (5, 18), (33, 137)),  # two by three CUDA tiles, most of them cut off
    (2, 3, (16, 33), (16, 33)),  # no upsampling
    (1, 3, (30, 90), (18, 40)),  # downsampling: a strip of pixels spans more than two vectors of logits
    (1, 4, (30, 7), (18, 40)),  # of the rows alone
    (1, 3, (1, 1), (5, 33)),
    (2, 1, (2, 4), (3, 17)),
    (1, 6, (2, 3), (4, 7)),  # narrower than any vector
    (1, 2, (1, 1), (1, 1)),
    (1, 19, (18, 2), (19, 40)),
    (1, 32, (3, 5), (17, 35)),  # the most classes of the fast CUDA kernels, and one more
    (1, 33, (3, 5), (17, 35)),
    (1, 255, (2, 5), (7, 34)),
]
EVERY_SHAPE = pytest.mark.parametrize(("N", "K", "low", "size"), SHAPES)


def draw(N: int, K: int, low: tuple[int, int], size: tuple[int, int], ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    labels = torch.randint(K, (N, *size), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < ignored] = NONE
    return 3 * torch.randn(N, K, *low), labels


def composition(logits: Tensor, labels: Tensor, align_corners: bool = True) -> SegmentationSums:
    """What people write, in float64: one-hot masks and full-resolution tensors."""
    size = tuple(labels.shape[1:])
    z = F.interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)
    K, y = logits.shape[1], labels.long()
    cross_entropy = F.cross_entropy(z, y, ignore_index=NONE, reduction="none").sum((1, 2))
    p, log_p = z.softmax(1), z.log_softmax(1)
    hot = torch.stack([y == k for k in range(K)], 1).double()
    labelled = (y != NONE).double()
    return SegmentationSums(
        cross_entropy,
        (hot * p).sum((2, 3)),
        (labelled[:, None] * p * p).sum((2, 3)),
        ((1 - labelled) * -(p * log_p).sum(1)).sum((1, 2)),
        (labelled * -log_p.sum(1) / K).sum((1, 2)),
        hot.sum((2, 3)).long(),
        (y == NONE).sum((1, 2)),
    )


def to(backend: Backend, *tensors: Tensor) -> list[Tensor]:
    return [x.to(backend.device) for x in tensors]


def assert_close(got: SegmentationSums, wanted: SegmentationSums, tolerance: float = 3e-6) -> None:
    for name, mine, other in zip(got._fields, got, wanted, strict=True):
        other = other if mine.dtype == torch.int64 else other.to(mine.dtype)
        largest = float(other.detach().abs().max()) if other.numel() else 0.0
        atol = 0 if mine.dtype == torch.int64 else tolerance * max(largest, 1.0)
        torch.testing.assert_close(mine.cpu(), other, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def weigh(sums: SegmentationSums) -> Tensor:
    """A loss in which every sum of every frame has a weight of its own."""
    g = torch.Generator().manual_seed(1)
    parts = [x for x in sums if x.dtype != torch.int64]
    return torch.stack([(x * torch.randn(x.shape, generator=g).to(x)).sum() for x in parts]).sum()


# ---- values ----


def test_by_hand(backend: Backend) -> None:
    """One low-resolution pixel: probabilities 3/4 and 1/4 everywhere. Two pixels of class 0, one of 1, one of none."""
    logits, labels = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1), torch.tensor([[[0, 0], [1, NONE]]]).byte()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    for op, inputs in (
        (segmentation_sums, to(backend, logits, labels)),
        (segmentation_sums_reference, (logits, labels)),
    ):
        got = op(*inputs)
        assert got.cross_entropy.tolist() == pytest.approx([-2 * math.log(0.75) - math.log(0.25)])
        assert got.overlap.tolist() == [pytest.approx([1.5, 0.25])]
        assert got.square.tolist() == [pytest.approx([3 * 0.5625, 3 * 0.0625])]
        assert got.entropy.tolist() == pytest.approx([entropy])
        assert got.uniform.tolist() == pytest.approx([-1.5 * (math.log(0.75) + math.log(0.25))])
        assert got.labelled.tolist() == [[2, 1]]
        assert got.unlabelled.tolist() == [1]


def test_gradient_by_hand(backend: Backend) -> None:
    """Cross entropy of a pixel: P - 1 at its class. Overlap: P_0 (1 - P_0) and -P_0 P_1. Entropy: -P (log P + H)."""
    p, values = (0.75, 0.25), torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1)
    entropy = -sum(x * math.log(x) for x in p)
    for field, label, wanted in (
        ("cross_entropy", 0, [-0.25, 0.25]),
        ("overlap", 0, [0.75 * 0.25, -0.75 * 0.25]),
        ("square", 1, [2 * q * (r - 0.625) for q, r in zip(p, p, strict=True)]),  # 2 P (P - sum P^2)
        ("entropy", NONE, [-q * (math.log(q) + entropy) for q in p]),
        ("uniform", 1, [0.25, -0.25]),
    ):
        logits, labels = to(backend, values.clone(), torch.full((1, 1, 1), label, dtype=torch.uint8))
        logits.requires_grad_()
        getattr(segmentation_sums(logits, labels), field).sum().backward()
        assert logits.grad is not None
        assert logits.grad.flatten().tolist() == pytest.approx(wanted, abs=1e-6), field


@pytest.mark.parametrize("align_corners", [True, False])
@EVERY_SHAPE
def test_composition(
    backend: Backend, N: int, K: int, low: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> None:
    logits, labels = draw(N, K, low, size)
    exact = logits.double().requires_grad_()
    wanted = composition(exact, labels, align_corners)
    (slope,) = torch.autograd.grad(weigh(wanted), exact)
    for op, dtype, tolerance in (
        (segmentation_sums, torch.float32, 3e-6),
        (segmentation_sums, torch.float64, 1e-12),
        (segmentation_sums_reference, torch.float64, 1e-12),
    ):
        here = backend.device if op is segmentation_sums else "cpu"
        x = logits.to(here, dtype).requires_grad_()
        got = op(x, labels.to(here), align_corners=align_corners)
        assert_close(got, wanted, tolerance)
        (found,) = torch.autograd.grad(weigh(got), x)
        scale = max(float(slope.abs().max()), 1.0)
        torch.testing.assert_close(found.cpu().double(), slope, rtol=0, atol=2 * tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit(backend: Backend, dtype: torch.dtype) -> None:
    """Only the logits and the gradient are rounded; the sums are float32."""
    logits, labels = draw(1, 5, (4, 9), (19, 70))
    logits = logits.to(dtype)
    wide = logits.float().requires_grad_()
    wanted = segmentation_sums(wide, labels)
    (slope,) = torch.autograd.grad(weigh(wanted), wide)
    x, y = to(backend, logits, labels)
    got = segmentation_sums(x.requires_grad_(), y)
    assert got.cross_entropy.dtype == torch.float32
    assert_close(got, wanted)
    (found,) = torch.autograd.grad(weigh(got), x)
    assert found.dtype == dtype
    tolerance = {torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(found.cpu().float(), slope, rtol=tolerance, atol=1e-5)


def test_gradcheck(backend: Backend) -> None:
    logits, labels = draw(2, 3, (3, 4), (5, 9))
    x, y = to(backend, logits.double(), labels)
    x.requires_grad_()
    for align_corners in (True, False):
        assert torch.autograd.gradcheck(lambda z, a=align_corners: segmentation_sums(z, y, align_corners=a)[:5], x)


# ---- labels ----


@pytest.mark.parametrize("ignored", [2.0, -1.0])
def test_all_and_none_ignored(backend: Backend, ignored: float) -> None:
    logits, labels = draw(2, 4, (3, 5), (9, 20), ignored)
    x, y = to(backend, logits, labels)
    got = segmentation_sums(x.requires_grad_(), y)
    assert_close(got, composition(logits, labels))
    for sums in (got.cross_entropy, got.overlap, got.square, got.uniform) if ignored > 1 else (got.entropy,):
        assert not sums.any()
        (slope,) = torch.autograd.grad(sums.sum(), x, retain_graph=True)
        assert not slope.any()


def test_labels_of_any_type_and_layout(backend: Backend) -> None:
    logits, labels = draw(2, 4, (3, 5), (9, 20))
    results = []
    for x in (*layouts(logits), logits.contiguous(memory_format=torch.channels_last)):
        for y in (*layouts(labels), labels.long()):
            a, b = to(backend, x, y)
            a = a.detach().requires_grad_()
            got = segmentation_sums(a, b)
            results.append((*got, *torch.autograd.grad(weigh(got), a)))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("bad", "dtype"), [(4, torch.uint8), (254, torch.uint8), (-1, torch.int64), (256, torch.int64)]
)
def test_labels_that_are_no_class(bad: int, dtype: torch.dtype) -> None:
    logits, labels = draw(1, 4, (3, 5), (9, 20))
    labels = labels.to(dtype)
    labels[0, 3, 7] = bad
    for op in (segmentation_sums, segmentation_sums_reference):
        with pytest.raises(ValueError, match=rf"^labels: wanted 0 .. 3 or 255, got {bad}$"):
            op(logits, labels)


@pytest.mark.parametrize("size", [(0, 5, 6), (1, 0, 6), (1, 5, 0)])
def test_empty(backend: Backend, size: tuple[int, int, int]) -> None:
    x, y = to(backend, torch.randn(size[0], 3, 2, 2), torch.zeros(size, dtype=torch.uint8))
    got = segmentation_sums(x.requires_grad_(), y)
    assert got.overlap.shape == (size[0], 3)
    assert not any(sums.any() for sums in got)
    (slope,) = torch.autograd.grad(weigh(got), x)
    assert slope.shape == x.shape
    assert not slope.any()


# ---- hostile logits ----


def test_large_logits(backend: Backend) -> None:
    """exp overflows without the subtraction of the maximum, and its logarithm without that of the sum."""
    logits, labels = draw(1, 4, (3, 5), (9, 20))
    logits *= 1e4
    exact = logits.double().requires_grad_()
    wanted = composition(exact, labels)
    x, y = to(backend, logits, labels)
    got = segmentation_sums(x.requires_grad_(), y)
    assert_close(got, wanted, 1e-5)
    found, slope = torch.autograd.grad(weigh(got), x)[0], torch.autograd.grad(weigh(wanted), exact)[0]
    torch.testing.assert_close(found.cpu().double(), slope, rtol=0, atol=1e-2)  # a float knows 1e4 to 1e-3


@pytest.mark.parametrize("K", [3, 40])
def test_class_that_is_switched_off(backend: Backend, K: int) -> None:
    """Minus infinity everywhere: as if the class did not exist, but for the divergence from uniform."""
    logits, labels = draw(1, K, (3, 5), (9, 20))
    off = torch.cat([logits, torch.full_like(logits[:, :1], -math.inf)], 1)
    x, z, y = to(backend, logits, off, labels)
    wanted, got = segmentation_sums(x.requires_grad_(), y), segmentation_sums(z.requires_grad_(), y)
    for name in ("cross_entropy", "overlap", "square", "entropy"):
        mine, other = getattr(got, name), getattr(wanted, name)
        torch.testing.assert_close(mine[:, :K] if mine.dim() > 1 else mine, other, rtol=1e-6, atol=1e-6)
    assert got.uniform.isposinf().all()
    slopes = [torch.autograd.grad(s.cross_entropy.sum() + s.entropy.sum() + s.square[0, 1], v)[0]
              for s, v in ((got, z), (wanted, x))]  # fmt: skip
    torch.testing.assert_close(slopes[0][:, :K], slopes[1], rtol=1e-5, atol=1e-6)
    assert slopes[0][:, K].abs().max() < 1e-30  # a power is 2^-126 at least


@pytest.mark.parametrize("K", [3, 40])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_enters_only_its_own_sums(backend: Backend, bad: float, K: int) -> None:
    """Without upsampling: a labelled pixel reaches no sum of the unlabelled ones, nor another frame or gradient."""
    logits, labels = draw(2, K, (6, 48), (6, 48))
    labels[0, 2, 5], labels[1, 2, 5] = 1, NONE
    clean, y = to(backend, logits, labels)
    wanted = segmentation_sums(clean.requires_grad_(), y)
    x = clean.detach().clone()
    x[:, 2, 2, 5] = bad
    got = segmentation_sums(x.requires_grad_(), y)
    labelled, other = got.cross_entropy, got.entropy
    assert labelled[0].isnan() and other[1].isnan()  # noqa: PT018
    assert labelled[1] == wanted.cross_entropy[1]
    assert other[0] == wanted.entropy[0]
    slope, clean_slope = (torch.autograd.grad(weigh(s), v)[0] for s, v in ((got, x), (wanted, clean)))
    here = torch.zeros_like(y, dtype=torch.bool)
    here[:, 2, 5] = True
    assert slope.movedim(1, -1)[here].isnan().all()
    assert torch.equal(slope.movedim(1, -1)[~here], clean_slope.movedim(1, -1)[~here])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_has_no_share_may_be_anything(backend: Backend, bad: float) -> None:
    """Five pixels from three logits: the first and the last take one logit each, the others a half of the bad one."""
    logits = torch.tensor([[0.0, bad, 0.0], [-1.0, bad, 1.0]]).view(1, 2, 1, 3)
    x, y = to(backend, logits, torch.tensor([[[0, NONE, NONE, NONE, 1]]]).byte())
    got = segmentation_sums(x.requires_grad_(), y)
    assert got.cross_entropy.item() == pytest.approx(2 * math.log(1 + math.exp(-1)), rel=1e-6)
    assert got.entropy.isnan().all()


# ---- determinism ----


def test_threads_do_not_change_a_bit() -> None:
    logits, labels = draw(2, 5, (21, 38), (150, 300))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            x = logits.clone().requires_grad_()
            got = segmentation_sums(x, labels)
            results.append((*got, *torch.autograd.grad(weigh(got), x)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_frames_do_not_touch_each_other(backend: Backend) -> None:
    logits, labels = draw(3, 5, (4, 9), (20, 40))
    x, y = to(backend, logits, labels)
    whole = segmentation_sums(x, y)
    for n in range(3):
        alone = segmentation_sums(x[n : n + 1], y[n : n + 1])
        assert all(torch.equal(a[n : n + 1], b) for a, b in zip(whole, alone, strict=True))


def test_no_tensor_of_k_channels_at_full_resolution() -> None:
    """Of all tensors that forward and backward make, workspaces among them."""
    made: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            made.extend(x.nbytes for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor))
            return out

    K, (h, w), (H, W) = 15, (16, 32), (128, 256)
    logits, labels = draw(1, K, (h, w), (H, W))
    x = logits.requires_grad_()
    with Sizes():
        weigh(segmentation_sums(x, labels)).backward()
    assert made
    assert max(made) <= max(4 * K * h * w, H * W) + 400_000 < 4 * K * H * W / 2


# ---- the door ----


def test_opcheck() -> None:
    logits, labels = draw(1, 3, (3, 4), (5, 9))
    torch.library.opcheck(torch.ops.vda.segmentation_sums, (logits.requires_grad_(), labels, True))
    torch.library.opcheck(torch.ops.vda.segmentation_sums_backward, (torch.randn(1, 9), logits.detach(), labels, False))


def test_second_derivative_is_refused() -> None:
    logits, labels = draw(1, 3, (3, 4), (5, 9))
    x = logits.requires_grad_()
    (slope,) = torch.autograd.grad(segmentation_sums(x, labels).square.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="segmentation_sums has no second derivative"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (torch.zeros(3, 2, 2), torch.zeros(1, 5, 6).byte(), ValueError, r"logits: wanted shape \[N, K, h, w\], got"),
        (torch.zeros(1, 3, 2, 2).int(), torch.zeros(1, 5, 6).byte(), TypeError, "logits: wanted element type .* int32"),
        (torch.zeros(1, 0, 2, 2), torch.zeros(1, 5, 6).byte(), ValueError, "logits: wanted 1 to 255 classes"),
        (torch.zeros(1, 256, 2, 2), torch.zeros(1, 5, 6).byte(), ValueError, "logits: wanted 1 to 255 classes"),
        (torch.zeros(1, 3, 0, 2), torch.zeros(1, 5, 6).byte(), ValueError, "at least one pixel, got shape"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(2, 5, 6).byte(), ValueError, r"labels: wanted shape \[1, H, W\], got"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 5, 6), TypeError, "labels: wanted element type uint8, int64, got"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 5, 6, device="meta").byte(), ValueError, "labels: wanted device cpu"),
    ],
)
def test_bad_arguments(logits: Tensor, labels: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        segmentation_sums(logits, labels)
