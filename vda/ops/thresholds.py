r"""Class-adaptive confidence thresholds, Eq. 11.

    theta_k <- min( beta theta_k + (1 - beta) Psi_k, 0.999 )                               rule "portion": at most 1

    rule "paper":    Psi_k = element floor(alpha theta_k^gamma n) of the n confidences of class k, in descending order
    rule "iast":     Psi_k = numpy.percentile([theta_k, confidences of class k], 100 (1 - alpha theta_k^gamma))
    rule "portion":  Psi_k = the last of the m = floor(alpha theta_k^gamma n) highest confidences of class k; 1 if m = 0

    label kept where confidence > theta_label (rules "iast" and "portion": >=)             last line of Algorithm 1

A class without pixels keeps its theta; by rule "portion" its m is 0. The cap of the first two exists because 16-bit
confidences round to 1, which nothing exceeds. Rule "portion" with beta = gamma = 0 is CBST's (Zou et al., ECCV 2018):
barring ties m pixels reach the threshold, and a threshold of 1 still admits a confidence of 1.

The order statistics are exact and need neither a sort nor a copy: confidences in [0, 1] are ordered like their bit
patterns, so counting patterns is enough, and counts do not depend on the order of threads. Everything, the index
included, is computed on the device in float64: no host synchronisation, the same bits on every run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _lib

IGNORE = 255
CAP = 0.999  # kCap of csrc/thresholds.h
RULES = ("paper", "iast", "portion")

# csrc/thresholds.h
_HALF_BINS = 0x3C00 + 1
_UPPER_BINS = 0x3F80 + 1
_LOWER_BINS = 1 << 16
_SELECTION_WORDS = 7
_PIXELS_PER_TABLE = 1 << 18
_LABELS = (torch.uint8, torch.int32, torch.int64)


# ---- reference ----


def class_thresholds_reference(
    confidence: Tensor,
    label: Tensor,
    theta: Tensor,
    *,
    alpha: float = 0.2,
    beta: float = 0.9,
    gamma: float = 8.0,
    rule: str = "paper",
) -> Tensor:
    """Plain-torch `class_thresholds`: same signature, same results, any device; sorts every class."""
    confidence = confidence.double()
    valid = confidence >= 0  # not NaN
    lists = [confidence[valid & (label == k)].clamp(max=1) for k in range(theta.numel())]
    return _from_lists(lists, theta, alpha, beta, gamma, rule)


def _from_lists(lists: list[Tensor], theta: Tensor, alpha: float, beta: float, gamma: float, rule: str) -> Tensor:
    result = theta.to(torch.float64, copy=True)
    for k, values in enumerate(lists):
        old, n = float(result[k]), values.numel()
        if n > 0 or rule == "portion":
            portion = alpha * _powered(old, gamma)
            if rule == "paper":
                index = max(0, min(math.floor(portion * n), n - 1))
                psi = float(values.sort(descending=True).values[index])
            elif rule == "portion":
                m = min(math.floor(portion * n), n)
                psi = float(values.sort(descending=True).values[m - 1]) if m >= 1 else 1.0
            else:
                ascending = torch.cat([values, result[k : k + 1]]).sort().values
                position = min(max((1 - portion) * n, 0), n)
                low = math.floor(position)
                high = min(low + 1, n)
                psi = float(ascending[low] + (ascending[high] - ascending[low]) * (position - low))
            result[k] = beta * old + (1 - beta) * psi
    return result.clamp(max=1.0 if rule == "portion" else CAP).to(theta.dtype)


def _powered(theta: float, gamma: float) -> float:
    """theta^gamma; by products where gamma is whole, as the kernels: pow may differ in the last bit, and floor in 1."""
    return math.prod([theta] * int(gamma), start=1.0) if gamma <= 64 and gamma == int(gamma) else theta**gamma


def _histogram_reference(histogram: Tensor, confidence: Tensor, label: Tensor) -> None:
    """Plain-torch `torch.ops.vda.threshold_histogram`."""
    valid = (confidence >= 0) & (label < histogram.shape[0])
    key = confidence[valid].clamp(max=1).half().abs().view(torch.int16)
    cell = label[valid].long() * _HALF_BINS + key
    histogram += torch.bincount(cell, minlength=histogram.numel()).view_as(histogram)


def _finish_reference(histogram: Tensor, theta: Tensor, alpha: float, beta: float, gamma: float, rule: str) -> Tensor:
    """Plain-torch `torch.ops.vda.threshold_finish`."""
    values = torch.arange(_HALF_BINS, dtype=torch.int16, device=histogram.device).view(torch.float16).double()
    lists = [values.repeat_interleave(counts) for counts in histogram]
    return _from_lists(lists, theta, alpha, beta, gamma, rule)


# ---- checks and calls ----


@_lib.arrays
def class_thresholds(
    confidence: Tensor,
    label: Tensor,
    theta: Tensor,
    *,
    alpha: float = 0.2,
    beta: float = 0.9,
    gamma: float = 8.0,
    rule: str = "paper",
) -> Tensor:
    """New threshold of every class from one clip's predictions (Eq. 11).

    Args:
        confidence: any shape, probability of the predicted class, float32, float16 or bfloat16. Compared exactly in
            its own type. NaN and negative values are skipped; a value above 1 counts as 1.
        label: the same shape, predicted class, uint8, int32 or int64; labels outside [0, K), 255 among them, are
            skipped. Anything but uint8 is copied to uint8.
        theta: [K], thresholds so far (0.9 at first), float32 or float64; K at most 255.
        alpha: share of the pixels of a class that would be selected at theta = 1, in [0, 1].
        beta: weight of the old thresholds, in [0, 1].
        gamma: how much less a class of low theta is selected, at least 0.
        rule: "paper", "iast" or "portion", see the top of this file.

    Returns:
        [K], element type of theta, at most 0.999, or 1 with rule "portion". With float16 confidences equal, bit for
        bit, to `ClassThresholds` fed with any split of them. Memory besides the arguments is constant: K * 15361
        counts for float16, for the others K * (16257 + 65536), with rule "iast" K * (16257 + 3 * 65536), of 8 bytes.

    Not differentiable: order statistics select, and thresholds only decide which pixels are labelled.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found.
    """
    _check_theta(theta)
    label = _check_pixels(confidence, label, theta.shape[0])
    _check_numbers(alpha, beta, gamma, rule)
    _lib.check_devices(confidence=confidence, label=label, theta=theta)
    _lib.refuse_gradient(confidence=confidence, theta=theta)
    if _lib.use_reference(confidence):
        return class_thresholds_reference(confidence, label, theta, alpha=alpha, beta=beta, gamma=gamma, rule=rule)
    return _class_thresholds_op(confidence, label, theta, alpha, beta, gamma, rule)


class ClassThresholds:
    """`class_thresholds` for frames that arrive one after another, in constant memory.

        thresholds = ClassThresholds(K)
        for frame in clip: thresholds.update(confidence, label)
        theta = thresholds.finish(theta)

    Confidences are compared as float16: an update rounds other types. float16 updates give what `class_thresholds`
    gives for all of them at once, bit for bit, in any order and split.

    Args:
        num_classes: K, 1 to 255.
        alpha, beta, gamma, rule: as in `class_thresholds`.
        device: where the counts live; updates have to be there too.
    """

    histogram: Tensor  # [K, 15361] int64, how often each float16 pattern of [0, 1] was seen; add two to merge

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 0.2,
        beta: float = 0.9,
        gamma: float = 8.0,
        rule: str = "paper",
        device: torch.device | str = "cpu",
    ) -> None:
        _lib.check_number(num_classes, "num_classes", "an int")
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes: wanted 1 to {IGNORE}, got {num_classes}")
        _check_numbers(alpha, beta, gamma, rule)
        self.alpha, self.beta, self.gamma, self.rule = float(alpha), float(beta), float(gamma), rule
        self.histogram = torch.zeros((num_classes, _HALF_BINS), dtype=torch.int64, device=device)

    @property
    def counts(self) -> Tensor:
        """[K] int64, pixels counted so far per class."""
        return self.histogram.sum(1)

    @_lib.arrays
    def update(self, confidence: Tensor, label: Tensor) -> None:
        """Count one or more frames; arguments and what is skipped as in `class_thresholds`."""
        label = _check_pixels(confidence, label, self.histogram.shape[0])
        _lib.check_devices(histogram=self.histogram, confidence=confidence, label=label)
        _lib.refuse_gradient(confidence=confidence)
        if _lib.use_reference(confidence):
            _histogram_reference(self.histogram, confidence, label)
        else:
            _threshold_histogram_op(self.histogram, confidence, label)

    def merge(self, other: ClassThresholds) -> None:
        """Add the counts of another instance, such as one that saw other frames of the clip on another machine."""
        if not isinstance(other, ClassThresholds):
            raise TypeError(f"other: wanted a ClassThresholds, got {type(other).__name__}")
        if other.histogram.shape != self.histogram.shape:
            K, got = self.histogram.shape[0], other.histogram.shape[0]
            raise ValueError(f"other: wanted {K} classes, got {got}")
        self.histogram += other.histogram.to(self.histogram.device)

    @_lib.arrays
    def finish(self, theta: Tensor) -> Tensor:
        """New thresholds from theta [K] and all updates since the last `reset`; the counts stay as they are."""
        _check_theta(theta)
        _lib.check(theta, "theta", (torch.float32, torch.float64), self.histogram.shape[:1])
        _lib.check_devices(histogram=self.histogram, theta=theta)
        _lib.refuse_gradient(theta=theta)
        arguments = (self.histogram, theta, self.alpha, self.beta, self.gamma, self.rule)
        if _lib.use_reference(theta):
            return _finish_reference(*arguments)
        return _threshold_finish_op(*arguments)

    def reset(self) -> None:
        """Forget all updates, for the next clip."""
        self.histogram.zero_()


def _check_theta(theta: Tensor) -> None:
    _lib.check(theta, "theta", (torch.float32, torch.float64), ("K",))
    if theta.shape[0] > IGNORE:
        raise ValueError(f"theta: wanted at most {IGNORE} classes, got {theta.shape[0]}")


def _check_pixels(confidence: Tensor, label: Tensor, classes: int) -> Tensor:
    """The labels as uint8, everything that is no class as 255."""
    _lib.check(confidence, "confidence", _lib.FLOAT, None)
    _lib.check(label, "label", _LABELS, confidence.shape)
    if label.dtype == torch.uint8:
        return label
    return torch.where((label >= 0) & (label < classes), label, IGNORE).to(torch.uint8)


def _check_numbers(alpha: float, beta: float, gamma: float, rule: str) -> None:
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        _lib.check_number(value, name)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: wanted a number in [0, 1], got {value}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma: wanted a finite number >= 0, got {gamma}")
    _lib.check_option(rule, "rule", RULES)


# ---- torch.ops.vda.threshold_* ----


def _run(
    step: str,
    histogram: Tensor,
    confidence: Tensor | None = None,
    label: Tensor | None = None,
    workspace: Tensor | None = None,
    selection: Tensor | None = None,
    lower: Tensor | None = None,
    theta: Tensor | None = None,
    out: Tensor | None = None,
    alpha: float = 0.0,
    beta: float = 0.0,
    gamma: float = 0.0,
    rule: str = "paper",
) -> None:
    _lib.call(
        f"thresholds_{step}",
        histogram,
        histogram=histogram,
        confidence=confidence,
        label=label,
        workspace=workspace,
        selection=selection,
        lower=lower,
        theta=theta,
        out=out,
        pixels=0 if confidence is None else confidence.numel(),
        dtype="float32" if confidence is None else _lib.dtype_name(confidence),
        classes=histogram.shape[0],
        bins=histogram.shape[1],
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        rule=rule,
    )


def _count(histogram: Tensor, confidence: Tensor, label: Tensor) -> None:
    """histogram [K, bins] += confidences by key; contiguous arguments."""
    workspace = None
    tables = min(torch.get_num_threads(), confidence.numel() // _PIXELS_PER_TABLE)
    if tables > 1 and not _lib.on_cuda(histogram):
        workspace = histogram.new_empty((tables, *histogram.shape), dtype=torch.int32)
    _run("count", histogram, confidence, label, workspace)


def _threshold_histogram(histogram: Tensor, confidence: Tensor, label: Tensor) -> None:
    _count(histogram, confidence.contiguous(), label.contiguous())


def _threshold_finish(histogram: Tensor, theta: Tensor, alpha: float, beta: float, gamma: float, rule: str) -> Tensor:
    return _finish(histogram.contiguous(), theta, None, None, alpha, beta, gamma, rule)


def _finish(
    histogram: Tensor,
    theta: Tensor,
    confidence: Tensor | None,
    label: Tensor | None,
    alpha: float,
    beta: float,
    gamma: float,
    rule: str,
) -> Tensor:
    """Select, refine (where confidence is given) and update."""
    K = histogram.shape[0]
    old = theta.double().contiguous()
    out = torch.empty_like(old)
    selection = histogram.new_empty((K, _SELECTION_WORDS))
    lower = None
    settings: dict[str, Any] = {
        "theta": old,
        "alpha": alpha,
        "beta": beta,
        "gamma": gamma,
        "rule": rule,
        "selection": selection,
    }
    _run("select", histogram, **settings)
    if confidence is not None:
        lower = histogram.new_zeros((K, 3 if rule == "iast" else 1, _LOWER_BINS))
        _run("refine", histogram, confidence, label, lower=lower, selection=selection, rule=rule)
    _run("update", histogram, lower=lower, out=out, **settings)
    return out.to(theta.dtype)


def _class_thresholds(
    confidence: Tensor, label: Tensor, theta: Tensor, alpha: float, beta: float, gamma: float, rule: str
) -> Tensor:
    confidence, label = confidence.contiguous(), label.contiguous()
    exact_at_once = confidence.dtype == torch.float16
    bins = _HALF_BINS if exact_at_once else _UPPER_BINS
    histogram = theta.new_zeros((theta.shape[0], bins), dtype=torch.int64)
    _count(histogram, confidence, label)
    again = None if exact_at_once else confidence
    return _finish(histogram, theta, again, label, alpha, beta, gamma, rule)


_threshold_histogram_op = _lib.define(
    "threshold_histogram(Tensor(a!) histogram, Tensor confidence, Tensor label) -> ()",
    _threshold_histogram,
    lambda histogram, confidence, label: None,
)
_threshold_finish_op = _lib.define(
    "threshold_finish(Tensor histogram, Tensor theta, float alpha, float beta, float gamma, str rule) -> Tensor",
    _threshold_finish,
    lambda histogram, theta, alpha, beta, gamma, rule: theta.new_empty(theta.shape),
)
_class_thresholds_op = _lib.define(
    "class_thresholds(Tensor confidence, Tensor label, Tensor theta, float alpha, float beta, float gamma, str rule) "
    "-> Tensor",
    _class_thresholds,
    lambda confidence, label, theta, alpha, beta, gamma, rule: theta.new_empty(theta.shape),
)
