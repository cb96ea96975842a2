"""Scores of a segmentation of video: mIoU, pixel accuracy, and VPQ^s (steadiness over time).

Both come from one integer histogram per frame, the joint counts of (label, prediction). A score is therefore
exact: it does not depend on batch size, on the order of the clips, or on how many processes shared the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vda.data.clip import IGNORE

Counts = NDArray[np.int64]
LabelArray = NDArray[Any] | torch.Tensor  # any integer dtype, any shape

# A matched IoU lies in (1/2, 1], where every float64 is a whole multiple of 2^-53. Summed as integers in that
# unit, IoUs add up exactly, in whatever order they come.
_IOU_UNIT = 2**53


def joint_histogram(pred: LabelArray, label: LabelArray, num_classes: int, ignore: int = IGNORE) -> Counts:
    """Joint counts of label and prediction: [K + 1, K + 1] int64, rows = label, columns = prediction.

    Row K counts pixels labelled `ignore` (void); column K counts pixels for which nothing was predicted
    (`ignore` in `pred`). `pred` and `label` have one shape, an integer dtype, and are both NumPy arrays or
    both tensors; tensors are counted on the device they live on.

    Raises TypeError for another dtype or kind, ValueError for shapes that differ and for any value that is
    neither in 0 .. K - 1 nor `ignore`: an unknown label is an error of the class map, not a pixel to leave
    out quietly.
    """
    _check_classes(num_classes, ignore)
    if isinstance(pred, torch.Tensor) != isinstance(label, torch.Tensor):
        raise TypeError(f"pred and label: wanted two arrays or two tensors, got {type(pred)} and {type(label)}")
    if tuple(pred.shape) != tuple(label.shape):
        raise ValueError(f"label: wanted the shape of pred, {tuple(pred.shape)}, got {tuple(label.shape)}")
    if isinstance(pred, torch.Tensor) and isinstance(label, torch.Tensor):
        if pred.device.type != "cpu":
            flat = _count_on_device(pred, label)
        else:  # NumPy counts four times faster than torch does on a CPU
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
    # The product is written straight into bincount's own index type: one pass less over the frame.
    place = np.multiply(_array_bytes(label, "label").ravel(), 256, dtype=np.intp)
    place += _array_bytes(pred, "pred").ravel()
    return np.bincount(place, minlength=256 * 256)


def _count_on_device(pred: torch.Tensor, label: torch.Tensor) -> NDArray[Any]:
    place = _tensor_bytes(label, "label").long() * 256 + _tensor_bytes(pred, "pred")
    return torch.bincount(place.flatten(), minlength=256 * 256).cpu().numpy()


def _check_classes(num_classes: int, ignore: int) -> None:
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
        _check_classes(num_classes, ignore)
        self.num_classes = num_classes
        self.ignore = ignore
        self.counts: Counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def update(self, pred: LabelArray, label: LabelArray) -> None:
        """Adds a frame or a batch of frames; errors as in `joint_histogram`."""
        self.counts += joint_histogram(pred, label, self.num_classes, self.ignore)

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        _check_mergeable(self, other)
        total = ConfusionMatrix(self.num_classes, self.ignore)
        total.counts = self.counts + other.counts
        return total

    def iou(self, *, covered_only: bool = False) -> NDArray[np.float64]:
        """Intersection over union per class, [K], fractions; nan for a class with an empty union."""
        K = self.num_classes
        scored = self.counts[:K, :K] if covered_only else self.counts[:K]
        hit = np.diagonal(scored)
        return _ratio(hit, scored.sum(axis=1) + scored[:, :K].sum(axis=0) - hit)

    def miou(self, *, covered_only: bool = False) -> float:
        """Mean of `iou` over the classes that have one; nan when none has."""
        return _nanmean(self.iou(covered_only=covered_only))

    def pixel_accuracy(self, *, covered_only: bool = False) -> float:
        """Share of the labelled pixels that got their own class; nan when nothing is labelled."""
        K = self.num_classes
        scored = self.counts[:K, :K] if covered_only else self.counts[:K]
        return float(_ratio(np.trace(scored), scored.sum()))

    def coverage(self) -> NDArray[np.float64]:
        """Share of each true class's pixels that have a prediction, [K]; nan for a class without pixels."""
        K = self.num_classes
        return _ratio(self.counts[:K, :K].sum(axis=1), self.counts[:K].sum(axis=1))


class VideoPanopticQuality:
    """VPQ^s: video panoptic quality with every class seen as stuff, i.e. as one instance.

    A window of k successive labelled frames holds at most one true and one predicted tube per class. They
    match if their IoU over the whole window, pixels predicted on void left out, exceeds 1/2. A prediction of
    which more than half lies on void is not counted against the class. Over all windows of all clips, for
    each k, VPQ^s_{k,c} = sum of matched IoU / (TP + FP / 2 + FN / 2), and VPQ^s is the mean over classes,
    then over k. A clip shorter than k has no window of that k. Kim et al., Video Panoptic Segmentation, CVPR
    2020, restricted to stuff as the paper does.

    Only per-class counts of the last max(k) frames are held, so memory does not grow with the clip. Give the
    labelled frames only, in time order: `add_frame` ... `end_clip`, or `add_clip`.
    """

    def __init__(self, num_classes: int, ignore: int = IGNORE, windows: Sequence[int] = (1, 2, 3, 4)) -> None:
        _check_classes(num_classes, ignore)
        if not windows or min(windows) < 1:
            raise ValueError(f"windows: wanted lengths of at least one frame, got {tuple(windows)}")
        self.num_classes = num_classes
        self.ignore = ignore
        self.windows = tuple(windows)
        shape = (len(self.windows), num_classes)
        self.tp: Counts = np.zeros(shape, np.int64)
        self.fp: Counts = np.zeros(shape, np.int64)
        self.fn: Counts = np.zeros(shape, np.int64)
        self._iou_units = np.zeros(shape, object)  # Python integers: no overflow, no rounding
        self._recent: deque[Counts] = deque(maxlen=max(self.windows))

    def add_frame(self, pred: LabelArray, label: LabelArray) -> None:
        """Adds the next labelled frame of the present clip; errors as in `joint_histogram`."""
        self.add_counts(joint_histogram(pred, label, self.num_classes, self.ignore))

    def add_counts(self, counts: Counts) -> None:
        """`add_frame` for a frame whose `joint_histogram` is known already."""
        K = self.num_classes
        # [4, K]: true G, predicted P, both I, predicted on void V
        self._recent.append(
            np.stack([counts[:K].sum(axis=1), counts[:, :K].sum(axis=0), np.diagonal(counts)[:K], counts[K, :K]])
        )
        newest_first = np.cumsum(np.stack(list(self._recent)[::-1]), axis=0)
        for row, length in enumerate(self.windows):
            if length <= len(newest_first):
                self._add_window(row, newest_first[length - 1])

    def _add_window(self, row: int, window: Counts) -> None:
        truth, predicted, both, on_void = window
        union = truth + predicted - both - on_void
        match = 2 * both > union
        self.tp[row] += match
        self.fn[row] += ~match & (truth > 0)
        self.fp[row] += ~match & (predicted > 0) & (2 * on_void <= predicted)
        iou = both[match] / union[match]
        self._iou_units[row, match] += (iou * _IOU_UNIT).astype(np.int64).astype(object)

    def end_clip(self) -> None:
        """Ends the present clip: no window crosses this point."""
        self._recent.clear()

    def add_clip(self, preds: Iterable[LabelArray], labels: Iterable[LabelArray]) -> None:
        """Adds one whole clip, frame by frame; `preds` and `labels` may be generators of one length."""
        self.end_clip()
        for pred, label in zip(preds, labels, strict=True):
            self.add_frame(pred, label)
        self.end_clip()

    def __add__(self, other: VideoPanopticQuality) -> VideoPanopticQuality:
        """Sum over clips seen by either. Both must stand between two clips (`end_clip`)."""
        _check_mergeable(self, other)
        if self.windows != other.windows:
            raise ValueError(f"windows: wanted {self.windows}, got {other.windows}")
        if self._recent or other._recent:
            raise ValueError("a clip is still open: call end_clip() on both before adding them")
        total = VideoPanopticQuality(self.num_classes, self.ignore, self.windows)
        total.tp, total.fp, total.fn = self.tp + other.tp, self.fp + other.fp, self.fn + other.fn
        total._iou_units = self._iou_units + other._iou_units
        return total

    @property
    def iou_sum(self) -> NDArray[np.float64]:
        """Sum of the matched tubes' IoU, [windows, K]."""
        return np.array([[units / _IOU_UNIT for units in row] for row in self._iou_units], np.float64)

    def per_window(self) -> NDArray[np.float64]:
        """VPQ^s_{k,c}, [windows, K], fractions; nan where class c occurs in no window of k frames."""
        return _ratio(2 * self.iou_sum, 2 * self.tp + self.fp + self.fn)

    def per_class(self) -> NDArray[np.float64]:
        """Mean of VPQ^s_{k,c} over the window lengths in which class c occurs, [K]; nan if in none."""
        return np.array([_nanmean(column) for column in self.per_window().T])

    def per_length(self) -> NDArray[np.float64]:
        """VPQ^s_k, [windows]: mean over the classes that occur; nan where no clip is long enough."""
        return np.array([_nanmean(row) for row in self.per_window()])

    def mean(self) -> float:
        """VPQ^s: mean of `per_length` over the lengths that have a window; nan when none has."""
        return _nanmean(self.per_length())


class Scorer:
    """One pass over a data set: everything that stands in a table of scores.

    Feed the labelled frames of a clip in time order with `add_frame`, close the clip with `end_clip`.
    """

    def __init__(self, classes: Sequence[str], ignore: int = IGNORE) -> None:
        self.classes = tuple(classes)
        self.confusion = ConfusionMatrix(len(self.classes), ignore)
        self.vpq = VideoPanopticQuality(len(self.classes), ignore)
        self.frames = 0
        self.clips = 0
        self.size: tuple[int, int] | None = None
        self._clip_frames = 0

    def add_frame(self, pred: LabelArray, label: LabelArray) -> None:
        """pred, label: [H, W], one size for the whole data set; errors as in `joint_histogram`."""
        size = (int(label.shape[0]), int(label.shape[1])) if label.ndim == 2 else None
        if size is None or self.size not in (None, size):
            raise ValueError(f"label: wanted [H, W] of the first frame's size {self.size}, got {tuple(label.shape)}")
        counts = joint_histogram(pred, label, len(self.classes), self.confusion.ignore)
        self.confusion.counts += counts
        self.vpq.add_counts(counts)
        self.size = size
        self.frames += 1
        self._clip_frames += 1

    def end_clip(self) -> None:
        """Ends the present clip; one without a labelled frame is not counted."""
        self.vpq.end_clip()
        self.clips += self._clip_frames > 0
        self._clip_frames = 0

    def __add__(self, other: Scorer) -> Scorer:
        if self.classes != other.classes or (self.size and other.size and self.size != other.size):
            raise ValueError(f"wanted scores of {self.classes} at {self.size}, got {other.classes} at {other.size}")
        total = Scorer(self.classes, self.confusion.ignore)
        total.confusion, total.vpq = self.confusion + other.confusion, self.vpq + other.vpq
        total.frames, total.clips = self.frames + other.frames, self.clips + other.clips
        total.size = self.size or other.size
        return total

    def scores(self) -> dict[str, Any]:
        """JSON-able scores, fractions of 1; None where a class, a window length or the set has no score."""
        self.end_clip()
        confusion, vpq = self.confusion, self.vpq
        return {
            "classes": list(self.classes),
            "iou": [_plain(value) for value in confusion.iou()],
            "miou": _plain(confusion.miou()),
            "pixel_accuracy": _plain(confusion.pixel_accuracy()),
            "vpq": _plain(vpq.mean()),
            "vpq_k": [_plain(value) for value in vpq.per_length()],
            "vpq_per_class": [_plain(value) for value in vpq.per_class()],
            "frames": self.frames,
            "clips": self.clips,
            "size": list(self.size) if self.size else None,
            "ignore": confusion.ignore,
        }


def _check_mergeable(a: Any, b: Any) -> None:
    if type(a) is not type(b):
        raise TypeError(f"wanted another {type(a).__name__}, got {type(b).__name__}")
    if (a.num_classes, a.ignore) != (b.num_classes, b.ignore):
        raise ValueError(f"wanted {a.num_classes} classes (ignore {a.ignore}), got {b.num_classes} ({b.ignore})")


def _ratio(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    """Quotient with nan, and no warning, where the denominator is zero."""
    bottom = np.asarray(denominator, np.float64)
    return np.where(bottom > 0, np.asarray(numerator, np.float64) / np.where(bottom > 0, bottom, 1.0), np.nan)


def _nanmean(values: NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
