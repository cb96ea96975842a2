"""Joint counts of label and prediction, and what comes from them: IoU, pixel accuracy, coverage."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vda.data.clip import IGNORE

Counts = NDArray[np.int64]
LabelArray = NDArray[Any] | torch.Tensor  # any integer dtype, any shape

_EXACT = 2**24  # pixels that OpenCV counts at once: it hands counts out as float32, which is exact up to here


def joint_histogram(pred: LabelArray, label: LabelArray, num_classes: int, ignore: int = IGNORE) -> Counts:
    """Joint counts of label and prediction: [K + 1, K + 1] int64, rows = label, columns = prediction.

    Row K counts pixels labelled `ignore` (void); column K counts pixels for which nothing was predicted
    (`ignore` in `pred`). `pred` and `label` have one shape, an integer dtype, and are both NumPy arrays or
    both tensors; tensors are counted on the device they live on.

    Raises TypeError for another dtype or kind, ValueError for shapes that differ and for any value that is
    neither in 0 .. K - 1 nor `ignore`: an unknown label is an error of the class map, not a pixel to leave
    out quietly.
    """
    check_classes(num_classes, ignore)
    if isinstance(pred, torch.Tensor) != isinstance(label, torch.Tensor):
        raise TypeError(f"pred and label: wanted two arrays or two tensors, got {type(pred)} and {type(label)}")
    if tuple(pred.shape) != tuple(label.shape):
        raise ValueError(f"label: wanted the shape of pred, {tuple(pred.shape)}, got {tuple(label.shape)}")
    if isinstance(pred, torch.Tensor) and isinstance(label, torch.Tensor):
        if pred.device.type != "cpu":
            flat = _count_on_device(pred, label)
        else:  # OpenCV counts ten times faster than torch does on a CPU
            flat = _count_on_host(pred.detach().numpy(), label.detach().numpy())
    else:
        flat = _count_on_host(pred, label)
    full = flat.astype(np.int64, copy=False).reshape(256, 256)
    known = np.array([*range(num_classes), ignore])
    counts = full[np.ix_(known, known)]
    if int(counts.sum()) != int(full.sum()):
        _refuse_unknown(full, known)
    return counts


def _count_on_host(pred: Any, label: Any) -> NDArray[Any]:
    pair = [np.ascontiguousarray(x).reshape(1, -1) for x in (_array_bytes(label, "label"), _array_bytes(pred, "pred"))]
    full: Counts = np.zeros((256, 256), np.int64)
    for start in range(0, pair[0].size, _EXACT):
        part = [flat[:, start : start + _EXACT] for flat in pair]
        # a third of np.bincount's time, which wants every pair as one 64-bit number
        full += cv2.calcHist(part, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    return full


def _count_on_device(pred: torch.Tensor, label: torch.Tensor) -> NDArray[Any]:
    place = _tensor_bytes(label, "label").long() * 256 + _tensor_bytes(pred, "pred")
    return torch.bincount(place.flatten(), minlength=256 * 256).cpu().numpy()


def check_classes(num_classes: int, ignore: int) -> None:
    if not 1 <= num_classes <= 255:
        raise ValueError(f"num_classes: wanted 1 .. 255, got {num_classes}")
    if not num_classes <= ignore <= 255:
        raise ValueError(f"ignore: wanted a value from {num_classes} (the number of classes) to 255, got {ignore}")


def _array_bytes(array: Any, name: str) -> NDArray[np.uint8]:
    array = np.asarray(array)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: wanted an integer dtype, got {array.dtype}")
    if array.size and not (array.min() >= 0 and array.max() <= 255):
        raise ValueError(f"{name}: wanted values in 0 .. 255, got {array.min()} .. {array.max()}")
    return array.astype(np.uint8)


def _tensor_bytes(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if tensor.dtype == torch.uint8:
        return tensor
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: wanted an integer dtype, got {tensor.dtype}")
    if tensor.numel():
        low, high = (int(value) for value in tensor.aminmax())
        if low < 0 or high > 255:
            raise ValueError(f"{name}: wanted values in 0 .. 255, got {low} .. {high}")
    return tensor


def _refuse_unknown(full: Counts, known: NDArray[Any]) -> None:
    for name, totals in (("label", full.sum(axis=1)), ("pred", full.sum(axis=0))):
        unknown = sorted(set(np.flatnonzero(totals).tolist()) - set(known.tolist()))
        if unknown:
            wanted = f"a class 0 .. {len(known) - 2} or {known[-1]} (none)"
            raise ValueError(f"{name}: wanted {wanted}, got the value {unknown[0]}")


class ConfusionMatrix:
    """Counts of (label, prediction) over a whole data set; mIoU, pixel accuracy and coverage come from it.

    counts: [K + 1, K + 1] int64 as in `joint_histogram`. Pixels labelled `ignore` are never scored. A pixel
    without a prediction is an error of its true class, unless `covered_only` asks about the predicted pixels
    alone (the quality of pseudo labels, beside their coverage).
    """

    def __init__(self, num_classes: int, ignore: int = IGNORE) -> None:
        check_classes(num_classes, ignore)
        self.num_classes = num_classes
        self.ignore = ignore
        self.counts: Counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def update(self, pred: LabelArray, label: LabelArray) -> None:
        """Adds a frame or a batch of frames; errors as in `joint_histogram`."""
        self.counts += joint_histogram(pred, label, self.num_classes, self.ignore)

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        check_mergeable(self, other)
        total = ConfusionMatrix(self.num_classes, self.ignore)
        total.counts = self.counts + other.counts
        return total

    def hit_and_union(self, *, covered_only: bool = False) -> tuple[Counts, Counts]:
        """Pixels of the intersection and of the union of each class, [K] each; they add up over frames and clips."""
        K = self.num_classes
        scored = self.counts[:K, :K] if covered_only else self.counts[:K]
        hit = np.diagonal(scored)
        return hit, scored.sum(axis=1) + scored[:, :K].sum(axis=0) - hit

    def iou(self, *, covered_only: bool = False) -> NDArray[np.float64]:
        """Intersection over union per class, [K], fractions; nan for a class with an empty union."""
        return ratio(*self.hit_and_union(covered_only=covered_only))

    def miou(self, *, covered_only: bool = False) -> float:
        """Mean of `iou` over the classes that have one; nan when none has."""
        return float(nanmean(self.iou(covered_only=covered_only)))

    def pixel_accuracy(self, *, covered_only: bool = False) -> float:
        """Share of the labelled pixels that got their own class; nan when nothing is labelled."""
        K = self.num_classes
        scored = self.counts[:K, :K] if covered_only else self.counts[:K]
        return float(ratio(np.trace(scored), scored.sum()))

    def coverage(self) -> NDArray[np.float64]:
        """Share of each true class's pixels that have a prediction, [K]; nan for a class without pixels."""
        K = self.num_classes
        return ratio(self.counts[:K, :K].sum(axis=1), self.counts[:K].sum(axis=1))

    def total_coverage(self) -> float:
        """Share of all labelled pixels that have a prediction; nan when nothing is labelled."""
        K = self.num_classes
        return float(ratio(self.counts[:K, :K].sum(), self.counts[:K].sum()))


def check_mergeable(a: Any, b: Any) -> None:
    if type(a) is not type(b):
        raise TypeError(f"wanted another {type(a).__name__}, got {type(b).__name__}")
    if (a.num_classes, a.ignore) != (b.num_classes, b.ignore):
        raise ValueError(f"wanted {a.num_classes} classes (ignore {a.ignore}), got {b.num_classes} ({b.ignore})")


def ratio(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    """Quotient with nan, and no warning, where the denominator is zero."""
    bottom = np.asarray(denominator, np.float64)
    return np.where(bottom > 0, np.asarray(numerator, np.float64) / np.where(bottom > 0, bottom, 1.0), np.nan)


def nanmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not nan; nan, and no warning, where nothing is."""
    present = ~np.isnan(values)
    return ratio(np.where(present, values, 0.0).sum(axis=-1), present.sum(axis=-1))


def plain(value: float) -> float | None:
    """For JSON, which has no nan: None in its place."""
    return None if np.isnan(value) else float(value)
