"""class_thresholds (Eq. 11): golden examples, NumPy sorting as the independent reference, exactness, hostile input."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from conftest import Backend, layouts
from torch import Tensor

from vda.ops import ClassThresholds, _lib, class_thresholds, class_thresholds_reference
from vda.ops import thresholds as module
from vda.ops.thresholds import RULES

CAPS = {"paper": 0.999, "iast": 0.999, "portion": 1.0}
TEN = [0.99, 0.98, 0.97, 0.95, 0.90, 0.85, 0.80, 0.70, 0.60, 0.50]


def _sorting(confidence: Tensor, label: Tensor, theta: Tensor, alpha=0.2, beta=0.9, gamma=8.0, rule="paper") -> Tensor:
    """The three rules by NumPy: lists, np.sort and np.percentile, in float64."""
    c, k = confidence.double().cpu().numpy().ravel(), label.cpu().numpy().ravel()
    result = theta.double().cpu().numpy().copy()
    for index, old in enumerate(result):
        values = np.minimum(c[(k == index) & (c >= 0)], 1)
        if rule == "portion":
            m = min(math.floor(alpha * old**gamma * values.size), values.size)
            result[index] = beta * old + (1 - beta) * (np.sort(values)[values.size - m] if m else 1.0)
        elif values.size:
            if rule == "paper":
                at = min(math.floor(alpha * old**gamma * values.size), values.size - 1)
                psi = np.sort(values)[::-1][at]
            else:
                psi = np.percentile(np.append(values, old), 100 * (1 - alpha * old**gamma))
            result[index] = beta * old + (1 - beta) * psi
    return torch.from_numpy(np.minimum(result, CAPS[rule])).to(theta.dtype)


def _scene(shape: tuple[int, ...], K: int, dtype: torch.dtype, saturated: float = 0.3) -> tuple[Tensor, Tensor]:
    """Confidences as a network gives them: many at exactly 1, ties, and what must be skipped; one class absent."""
    confidence = torch.rand(shape).pow(0.25)
    confidence[torch.rand(shape) < saturated] = 1.0
    confidence[torch.rand(shape) < 0.1] = 0.5
    for value in (math.nan, -0.25, -math.inf, 0.0, -0.0, 1e-8, 1.5, math.inf):
        confidence[torch.rand(shape) < 0.01] = value
    label = torch.randint(0, K, shape, dtype=torch.uint8)
    label[label == 1] = 255
    label[torch.rand(shape) < 0.05] = K  # no such class
    return confidence.to(dtype), label


# ---- numbers worked by hand ----


# golden example 10
@pytest.mark.parametrize(("rule", "expected"), [("iast", 0.908139), ("paper", 0.909)])
def test_golden(backend: Backend, rule: str, expected: float) -> None:
    """alpha 0.2, theta 0.9, gamma 8: portion 0.0861. The absent class keeps its theta, to the bit."""
    theta = torch.tensor([0.9, 0.9], dtype=torch.float64, device=backend.device)
    confidence = torch.tensor(TEN, device=backend.device)[torch.randperm(10)]
    label = torch.zeros(10, dtype=torch.uint8, device=backend.device)
    for op in (class_thresholds, class_thresholds_reference):
        new = op(confidence, label, theta, rule=rule)
        assert new[0].item() == pytest.approx(expected, abs=5e-7)
        assert new[1].item() == 0.9
    rank = 100 * (1 - 0.2 * 0.9**8)
    assert rank == pytest.approx(91.39066, abs=1e-5)
    if rule == "iast":
        psi = class_thresholds(confidence, label, theta, beta=0.0, rule=rule)[0].item()
        assert psi == pytest.approx(0.98139, abs=5e-6)
        assert psi == pytest.approx(np.percentile([*TEN, 0.9], rank), abs=1e-6)


@pytest.mark.parametrize(("alpha", "index"), [(0.0, 0), (0.19, 1), (0.2, 2), (0.55, 5), (0.99, 9), (1.0, 9)])
def test_index_of_the_paper(backend: Backend, alpha: float, index: int) -> None:
    """gamma 0 makes the portion alpha itself: element floor(alpha n), held to the last."""
    theta = torch.tensor([0.7], dtype=torch.float64, device=backend.device)
    confidence = torch.tensor(TEN, device=backend.device)
    label = torch.zeros(10, dtype=torch.uint8, device=backend.device)
    new = class_thresholds(confidence, label, theta, alpha=alpha, beta=0.0, gamma=0.0)
    assert new.item() == confidence[index].double().item()


# golden example 7: portion 0.2 -> 0.9, 0.5 -> 0.8, 0.1 -> 1
@pytest.mark.parametrize(("portion", "expected"), [(0.1, 1.0), (0.2, 0.9), (0.5, 0.8), (0.99, 0.6), (1.0, 0.5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_portion(backend: Backend, dtype: torch.dtype, portion: float, expected: float) -> None:
    """CBST's: of 5 confidences the last of floor(5 p); 1 where that is none, and for the absent class."""
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], dtype=dtype, device=backend.device)[torch.randperm(5)]
    label = torch.zeros(5, dtype=torch.uint8, device=backend.device)
    theta = torch.tensor([0.3, 0.4], dtype=torch.float64, device=backend.device)
    settings = {"alpha": portion, "gamma": 0.0, "rule": "portion"}
    psi = torch.tensor(expected, dtype=dtype).item()
    for op in (class_thresholds, class_thresholds_reference):
        assert op(confidence, label, theta, beta=0.0, **settings).tolist() == [psi, 1.0]
        slow = op(confidence, label, theta, beta=0.75, **settings).tolist()
        assert slow == pytest.approx([0.225 + 0.25 * psi, 0.55], rel=1e-12)
    stream = ClassThresholds(2, beta=0.0, **settings, device=backend.device)
    stream.update(confidence, label)
    assert stream.finish(theta).tolist() == [confidence.half()[confidence == psi].item() if psi < 1 else 1.0, 1.0]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.07, 0.29, 0.57, 0.7, 1.0])
def test_portion_is_floored_as_python_does(backend: Backend, alpha: float, gamma: float) -> None:
    """Class n has the confidences 1/128 .. n/128; alpha theta^gamma n lies at or beside a whole number for many."""
    K = 101
    n = torch.arange(K)
    label = n.repeat_interleave(n).to(torch.uint8)
    rank = torch.arange(len(label)) - (n.cumsum(0) - n).repeat_interleave(n)
    theta = ((n // 2) / n.clamp(min=1).double()).pow(1 / max(gamma, 1.0))
    portions = [alpha * math.prod([t] * int(gamma)) for t in theta.tolist()]
    m = [math.floor(k * portion) for k, portion in enumerate(portions)]
    expected = [(k - m[k] + 1) / 128 if m[k] else 1.0 for k in range(K)]
    given = ((rank + 1).div(128).half().to(backend.device), label.to(backend.device), theta.to(backend.device))
    arguments = {"alpha": alpha, "beta": 0.0, "gamma": gamma, "rule": "portion"}
    for op in (class_thresholds, class_thresholds_reference):
        assert op(*given, **arguments).tolist() == expected


# golden example 12
@pytest.mark.parametrize(
    ("theta", "portion"), [(0.5, 0.0008), (0.7, 0.0115), (0.8, 0.0336), (0.9, 0.0861), (0.95, 0.1327), (0.99, 0.1845)]
)
def test_selected_portion(backend: Backend, theta: float, portion: float) -> None:
    """Of n confidences 1/n, 2/n ... 1, all but the portion lie below the new threshold."""
    n = 5000
    confidence = torch.arange(1, n + 1, device=backend.device).float() / n
    label = torch.zeros(n, dtype=torch.uint8, device=backend.device)
    old = torch.tensor([theta], dtype=torch.float64, device=backend.device)
    for rule in RULES:
        new = class_thresholds(confidence, label, old, beta=0.0, rule=rule)
        assert (confidence > new.float()).float().mean().item() == pytest.approx(portion, abs=5e-4)


# golden example 11
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cap(backend: Backend, rule: str, dtype: torch.dtype) -> None:
    cap = torch.tensor(CAPS[rule], dtype=dtype).item()
    confidence = torch.ones(9, device=backend.device)
    label = torch.zeros(9, dtype=torch.uint8, device=backend.device)
    for start in (0.99, 1.5):
        theta = torch.tensor([start], dtype=dtype, device=backend.device)
        for _ in range(25):
            theta = class_thresholds(confidence, label, theta, beta=0.5, rule=rule)
            assert theta.item() <= cap
        assert theta.item() == pytest.approx(cap, rel=1e-6)
        assert class_thresholds(confidence, label, theta, beta=0.0, rule=rule).item() == cap


def test_one_pixel(backend: Backend) -> None:
    theta = torch.tensor([0.9], dtype=torch.float64, device=backend.device)
    label = torch.zeros(1, dtype=torch.uint8, device=backend.device)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        confidence = torch.tensor([0.5], dtype=dtype, device=backend.device)
        assert class_thresholds(confidence, label, theta).item() == pytest.approx(0.86, abs=1e-12)


# ---- against sorting ----


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("K", "shape"), [(5, (2, 13, 17)), (19, (61,)), (2, (1, 3))])
def test_sorting(backend: Backend, rule: str, dtype: torch.dtype, K: int, shape: tuple[int, ...]) -> None:
    confidence, label = _scene(shape, K, dtype)
    theta = 0.5 + 0.5 * torch.rand(K, dtype=torch.float64)
    for gamma in (8.0, 0.5):
        arguments = {"alpha": 0.35, "beta": 0.8, "gamma": gamma, "rule": rule}
        expected = _sorting(confidence, label, theta, **arguments)
        reference = class_thresholds_reference(confidence, label, theta, **arguments)
        torch.testing.assert_close(reference, expected, rtol=1e-13, atol=0)
        got = class_thresholds(*(x.to(backend.device) for x in (confidence, label, theta)), **arguments)
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-13, atol=0)
        single = class_thresholds(*(x.to(backend.device) for x in (confidence, label, theta.float())), **arguments)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.cpu().double(), expected, rtol=2e-7, atol=0)


def test_single_precision_is_exact(backend: Backend) -> None:
    """Confidences that differ in their last bits only: the second pass has to tell them apart."""
    base = torch.tensor([0.75]).view(torch.int32)
    confidence = (base + torch.randperm(400, dtype=torch.int32)).view(torch.float32)
    label = torch.randint(0, 2, (400,), dtype=torch.uint8)
    theta = torch.tensor([0.9, 0.75 + 1e-6], dtype=torch.float64)
    for rule, alpha in itertools.product(RULES, (0.1, 0.5, 0.9)):
        arguments = {"alpha": alpha, "beta": 0.0, "gamma": 0.0, "rule": rule}
        expected = _sorting(confidence, label, theta, **arguments)
        got = class_thresholds(*(x.to(backend.device) for x in (confidence, label, theta)), **arguments).cpu()
        assert got[0] != got[1]
        torch.testing.assert_close(got, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("position", ["below", "between", "above"])
def test_theta_is_an_element_of_the_list(backend: Backend, position: str) -> None:
    """Rule iast interpolates between neighbours of which one may be theta itself."""
    theta = torch.tensor([{"below": 0.05, "between": 0.625, "above": 0.998}[position]], dtype=torch.float64)
    confidence = torch.tensor([0.25, 0.5, 0.75, 1.0, 0.125])
    label = torch.zeros(5, dtype=torch.uint8)
    for alpha in np.linspace(0, 1, 23):
        arguments = {"alpha": float(alpha), "beta": 0.0, "gamma": 0.0, "rule": "iast"}
        expected = _sorting(confidence, label, theta, **arguments)
        got = class_thresholds(*(x.to(backend.device) for x in (confidence, label, theta)), **arguments)
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-14, atol=0)


def test_all_ignored_and_empty(backend: Backend) -> None:
    theta = torch.tensor([0.9, 0.1, 0.9995], dtype=torch.float64, device=backend.device)
    kept = {"paper": [0.9, 0.1, 0.999], "portion": pytest.approx([0.91, 0.19, 0.99955], rel=1e-12)}
    kept["iast"] = kept["paper"]
    for n, dtype in itertools.product((0, 7), (torch.float16, torch.float32)):
        confidence = torch.full((n,), 0.3, dtype=dtype, device=backend.device)
        ignored = torch.full((n,), 255, dtype=torch.uint8, device=backend.device)
        for rule in RULES:
            assert class_thresholds(confidence, ignored, theta, rule=rule).tolist() == kept[rule]
            nan = torch.full_like(confidence, math.nan)
            assert class_thresholds(nan, ignored * 0, theta, rule=rule).tolist() == kept[rule]
    assert class_thresholds(confidence, ignored, theta[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_label_types(backend: Backend, dtype: torch.dtype) -> None:
    """256 must not wrap to class 0, nor -1 to 255."""
    confidence = torch.tensor([0.5, 0.25, 0.75, 0.125, 0.5], device=backend.device)
    label = torch.tensor([0, 256, -1, 255, 1], dtype=dtype, device=backend.device)
    theta = torch.tensor([0.9, 0.9], dtype=torch.float64, device=backend.device)
    assert class_thresholds(confidence, label, theta).tolist() == pytest.approx([0.86, 0.86])


def test_layouts(backend: Backend) -> None:
    confidence, label = (x.to(backend.device) for x in _scene((2, 5, 6), 3, torch.float32))
    theta = torch.tensor([0.9, 0.8, 0.7], device=backend.device)
    expected = class_thresholds(confidence, label, theta)
    for c, k in zip(layouts(confidence), layouts(label)[::-1], strict=True):
        assert torch.equal(class_thresholds(c, k, theta), expected)
    every_other = torch.stack([theta, theta], 1).flatten()[::2]
    assert torch.equal(class_thresholds(confidence, label, every_other), expected)


def test_threads_do_not_change_a_bit() -> None:
    """Enough pixels that the CPU kernel gives each thread a table of its own."""
    confidence, label = _scene((3 << 18,), 4, torch.float16)
    theta = torch.tensor([0.9, 0.8, 0.95, 0.6], dtype=torch.float64)
    results, histograms = [], []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(class_thresholds(confidence, label, theta))
            results.append(class_thresholds(confidence.float(), label, theta))
            streamed = ClassThresholds(4)
            streamed.update(confidence, label)
            histograms.append(streamed.histogram)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert all(torch.equal(histograms[0], other) for other in histograms[1:])
    torch.testing.assert_close(results[0], _sorting(confidence, label, theta), rtol=1e-13, atol=0)


def test_cpu_and_cuda_kernels_agree_to_the_bit(backend: Backend) -> None:
    """With an integer gamma: for others the pow of two libraries may differ in the last bit."""
    confidence, label = _scene((2, 9, 31), 6, torch.float32)
    theta = 0.5 + 0.5 * torch.rand(6, dtype=torch.float64)
    for rule in RULES:
        arguments = {"alpha": 0.3, "gamma": 8.0, "rule": rule}
        got = class_thresholds(*(x.to(backend.device) for x in (confidence, label, theta)), **arguments).cpu()
        with _lib.routed_to(None):
            assert torch.equal(got, class_thresholds(confidence, label, theta, **arguments))


# ---- streaming ----


@pytest.mark.parametrize("rule", RULES)
def test_streaming_equals_all_at_once(backend: Backend, rule: str) -> None:
    """Bit for bit, in any split and order; fp32 updates are rounded to fp16."""
    confidence, label = (x.to(backend.device) for x in _scene((4, 9, 7), 3, torch.float16))
    theta = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64, device=backend.device)
    expected = class_thresholds(confidence, label, theta, rule=rule)
    one, two = (ClassThresholds(3, rule=rule, device=backend.device) for _ in range(2))
    one.update(confidence[3], label[3])
    one.update(confidence[0].float(), label[0].long())
    two.update(confidence[1:3], label[1:3])
    one.merge(two)
    assert torch.equal(one.finish(theta), expected)
    assert torch.equal(one.finish(theta), expected)
    valid = (confidence >= 0).cpu()
    assert one.counts.tolist() == [(valid & (label.cpu() == k)).sum().item() for k in range(3)]
    one.reset()
    assert one.counts.tolist() == [0, 0, 0]
    assert torch.equal(one.finish(theta), class_thresholds(confidence[:0], label[:0], theta, rule=rule))


def test_streaming_rounds_like_torch(backend: Backend) -> None:
    """Every count lands in the bin of torch's own rounding to fp16, halfway cases and subnormals included."""
    bits = torch.cat([torch.randint(0, 0x3F800000, (4000,)), torch.arange(0x38000000, 0x38000000 + (1 << 16), 16)])
    confidence = bits.int().view(torch.float32)
    stream = ClassThresholds(1, device=backend.device)
    stream.update(confidence.to(backend.device), torch.zeros(bits.numel(), dtype=torch.uint8, device=backend.device))
    keys = confidence.half().view(torch.int16).long()
    assert torch.equal(stream.histogram[0].cpu(), torch.bincount(keys, minlength=0x3C01))


# ---- torch citizenship and errors ----


def test_constants_match_the_extension() -> None:
    compiled, reason = _lib.load()
    assert compiled is not None, reason
    assert compiled.half_bins == module._HALF_BINS
    assert compiled.upper_bins == module._UPPER_BINS
    assert compiled.lower_bins == module._LOWER_BINS
    assert compiled.selection_words == module._SELECTION_WORDS


def test_opcheck() -> None:
    confidence, label = _scene((3, 5), 3, torch.float16)
    theta = torch.tensor([0.9, 0.8, 0.7])
    numbers = (0.2, 0.9, 8.0, "iast")
    histogram = ClassThresholds(3).histogram
    ops = torch.ops.vda
    torch.library.opcheck(ops.class_thresholds, (confidence, label, theta, *numbers))
    torch.library.opcheck(ops.class_thresholds, (confidence.float().nan_to_num(0.5), label, theta, *numbers))
    torch.library.opcheck(ops.threshold_histogram, (histogram, confidence, label))
    torch.library.opcheck(ops.threshold_finish, (histogram, theta, *numbers))


def test_numpy_in_numpy_out() -> None:
    confidence, label = _scene((3, 5), 3, torch.float32)
    theta = torch.tensor([0.9, 0.8, 0.7])
    out = class_thresholds(confidence.numpy(), label.numpy(), theta.numpy())
    assert isinstance(out, np.ndarray)
    assert np.array_equal(out, class_thresholds(confidence, label, theta).numpy())


@pytest.mark.parametrize("rule", RULES)
def test_reference_serves_without_the_extension(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    confidence, label = _scene((4, 50), 3, torch.float16)
    theta = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    expected = class_thresholds(confidence, label, theta, rule=rule)
    monkeypatch.setattr("vda.ops._lib.load", lambda: (None, "not built"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once per process
        torch.testing.assert_close(class_thresholds(confidence, label, theta, rule=rule), expected)
        stream = ClassThresholds(3, rule=rule)
        for c, k in zip(confidence, label, strict=True):
            stream.update(c, k.int())
        torch.testing.assert_close(stream.finish(theta), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"confidence": torch.zeros(3).double()}, TypeError, "confidence: wanted element type .* got float64"),
        ({"confidence": 0.5}, TypeError, "confidence: wanted a tensor or DLPack array, got float"),
        ({"label": torch.zeros(4, dtype=torch.uint8)}, ValueError, r"label: wanted shape \[3\], got \[4\]"),
        ({"label": torch.zeros(3)}, TypeError, "label: wanted element type uint8, int32, int64, got float32"),
        ({"label": torch.zeros(3, dtype=torch.uint8, device="meta")}, ValueError, "label: .* device cpu .* got meta"),
        ({"theta": torch.zeros(2).half()}, TypeError, "theta: wanted element type float32, float64, got float16"),
        ({"theta": torch.zeros(2, 2)}, ValueError, r"theta: wanted shape \[K\], got \[2, 2\]"),
        ({"theta": torch.zeros(256)}, ValueError, "theta: wanted at most 255 classes, got 256"),
        ({"theta": torch.zeros(2, requires_grad=True)}, ValueError, "theta: wanted a tensor without gradient"),
        ({"alpha": 1.5}, ValueError, r"alpha: wanted a number in \[0, 1\], got 1.5"),
        ({"alpha": math.nan}, ValueError, r"alpha: wanted a number in \[0, 1\], got nan"),
        ({"beta": -0.1}, ValueError, r"beta: wanted a number in \[0, 1\], got -0.1"),
        ({"gamma": -1.0}, ValueError, "gamma: wanted a finite number >= 0, got -1.0"),
        ({"rule": "cbst"}, ValueError, "rule: wanted 'paper' or 'iast' or 'portion', got 'cbst'"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"confidence": torch.zeros(3), "label": torch.zeros(3, dtype=torch.uint8), "theta": torch.zeros(2)}
    with pytest.raises(error, match=message):
        class_thresholds(**(arguments | change))


def test_bad_streaming_arguments() -> None:
    with pytest.raises(ValueError, match="num_classes: wanted 1 to 255, got 0"):
        ClassThresholds(0)
    with pytest.raises(ValueError, match="rule: wanted"):
        ClassThresholds(3, rule="median")
    stream = ClassThresholds(3)
    with pytest.raises(ValueError, match=r"theta: wanted shape \[3\], got \[2\]"):
        stream.finish(torch.zeros(2))
    with pytest.raises(ValueError, match=r"label: wanted shape \[2\], got \[3\]"):
        stream.update(torch.zeros(2), torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="other: wanted 3 classes, got 2"):
        stream.merge(ClassThresholds(2))
    assert stream.counts.sum() == 0
