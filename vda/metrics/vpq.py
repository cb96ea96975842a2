"""VPQ^s: video panoptic quality with every class seen as stuff."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vda.data.clip import IGNORE
from vda.metrics.confusion import Counts, LabelArray, check_classes, check_mergeable, joint_histogram, nanmean, ratio

# A matched IoU lies in (1/2, 1], where every float64 is a whole multiple of 2^-53. Summed as integers in that
# unit, IoUs add up exactly, in whatever order they come.
_IOU_UNIT = 2**53


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
        check_classes(num_classes, ignore)
        if not windows or min(windows) < 1:
            raise ValueError(f"windows: wanted lengths of at least one frame, got {tuple(windows)}")
        self.num_classes = num_classes
        self.ignore = ignore
        self.windows = tuple(windows)
        shape = (len(self.windows), num_classes)
        self.tp: Counts = np.zeros(shape, np.int64)
        self.fp: Counts = np.zeros(shape, np.int64)
        self.fn: Counts = np.zeros(shape, np.int64)
        self.iou_units = np.zeros(shape, object)  # Python integers: no overflow, no rounding
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
        self.iou_units[row, match] += (iou * _IOU_UNIT).astype(np.int64).astype(object)

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
        check_mergeable(self, other)
        if self.windows != other.windows:
            raise ValueError(f"windows: wanted {self.windows}, got {other.windows}")
        if self._recent or other._recent:
            raise ValueError("a clip is still open: call end_clip() on both before adding them")
        total = VideoPanopticQuality(self.num_classes, self.ignore, self.windows)
        total.tp, total.fp, total.fn = self.tp + other.tp, self.fp + other.fp, self.fn + other.fn
        total.iou_units = self.iou_units + other.iou_units
        return total

    @property
    def weight(self) -> Counts:
        """2 TP + FP + FN, [windows, K]: the denominator of VPQ^s_{k,c}, doubled."""
        return 2 * self.tp + self.fp + self.fn

    @property
    def iou_sum(self) -> NDArray[np.float64]:
        """Sum of the matched tubes' IoU, [windows, K]."""
        return np.array([[units / _IOU_UNIT for units in row] for row in self.iou_units], np.float64)

    def per_window(self) -> NDArray[np.float64]:
        """VPQ^s_{k,c}, [windows, K], fractions; nan where class c occurs in no window of k frames."""
        return ratio(2 * self.iou_sum, self.weight)

    def per_class(self) -> NDArray[np.float64]:
        """Mean of VPQ^s_{k,c} over the window lengths in which class c occurs, [K]; nan if in none."""
        return nanmean(self.per_window().T)

    def per_length(self) -> NDArray[np.float64]:
        """VPQ^s_k, [windows]: mean over the classes that occur; nan where no clip is long enough."""
        return nanmean(self.per_window())

    def mean(self) -> float:
        """VPQ^s: mean of `per_length` over the lengths that have a window; nan when none has."""
        return float(nanmean(self.per_length()))
