"""Steadiness over time beside VPQ^s: TC, which needs optical flow and no labels, and mVC, which needs dense labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vda.data.clip import IGNORE, FlowField, LabelMap
from vda.metrics.confusion import ConfusionMatrix, Counts, LabelArray, check_classes, check_mergeable, ratio
from vda.ops import warp


class TemporalConsistency:
    """TC: mIoU between the prediction for a frame and that for the next frame, brought back to it by optical flow.

        TC = mIoU(Q_t, W(Q_{t+1}, F_{t -> t+1}))

    Intersections and unions are added up over all pairs of all clips. Labels are sampled at the nearest pixel, so no
    class is invented along a border. Left out are pixels that the next frame does not show (occluded, or beyond its
    border), and those without a prediction in either frame. Liu et al., Efficient Semantic Video Segmentation with
    Per-frame Inference, ECCV 2020, whose code warps class numbers bilinearly and takes no occlusion test.

    matrix: counts of the visible pixels; unmasked: those of all pixels that stay inside the frame, occluded or not.
    """

    def __init__(self, num_classes: int, ignore: int = IGNORE) -> None:
        self.num_classes = num_classes
        self.ignore = ignore
        self.matrix = ConfusionMatrix(num_classes, ignore)
        self.unmasked = ConfusionMatrix(num_classes, ignore)
        self.pairs = 0

    def update(self, pred: LabelMap, following: LabelMap, flow: FlowField, visible: NDArray[np.bool_]) -> None:
        """Adds one pair of frames.

        pred, following: [H, W] uint8, predictions for a frame and for the next. flow: [2, H, W] float32 from the frame
        to the next, pixels, nan where it is unknown. visible: [H, W], where the next frame shows what the frame shows.
        ValueError for shapes that differ, and as `joint_histogram`.
        """
        for name, array in (("following", following), ("flow", flow[0]), ("visible", visible)):
            if array.shape != pred.shape:
                raise ValueError(f"{name}: wanted the size of pred, {pred.shape}, got {array.shape}")
        tensors = [torch.from_numpy(np.ascontiguousarray(x))[None] for x in (following, flow)]
        back = warp(*tensors, mode="nearest", fill=self.ignore)[0].numpy()
        self.unmasked.update(back, pred)
        self.matrix.update(np.where(visible, back, np.uint8(self.ignore)), pred)
        self.pairs += 1

    def __add__(self, other: TemporalConsistency) -> TemporalConsistency:
        check_mergeable(self, other)
        total = TemporalConsistency(self.num_classes, self.ignore)
        total.matrix, total.unmasked = self.matrix + other.matrix, self.unmasked + other.unmasked
        total.pairs = self.pairs + other.pairs
        return total

    def mean(self) -> float:
        """TC over the visible pixels; nan when no class has any."""
        return self.matrix.miou(covered_only=True)

    def mean_unmasked(self) -> float:
        """TC over all pixels that stay inside the frame; nan when no class has any."""
        return self.unmasked.miou(covered_only=True)


# The share of a window, cut to a multiple of 2^-64 and summed as an integer, adds up exactly in whatever order.
_SHARE_BITS = 64


class VideoConsistency:
    """mVC_n: how much of what stands still for n frames is right in all of them.

        VC_n(window) = |{x : n equal labels, n predictions equal to them}| / |{x : n equal labels}|

    and mVC_n is its mean over all windows of n successive frames of all clips. This is the strict reading of Miao et
    al., VSPW: A Large-scale Dataset for Video Scene Parsing in the Wild, CVPR 2021: a constant wrong prediction does
    not count. A pixel that is void in one of the n frames is left out. A clip of L frames has L - n + 1 windows, so a
    shorter one has none; a frame without a label ends a run of frames, and no window crosses it. A window in which
    no labelled pixel stands still has no score and is left out of the mean.
    """

    def __init__(self, num_classes: int, ignore: int = IGNORE, lengths: Sequence[int] = (8, 16)) -> None:
        check_classes(num_classes, ignore)
        if not lengths or not 1 <= min(lengths) <= max(lengths) <= 255:
            raise ValueError(f"lengths: wanted windows of 1 .. 255 frames, got {tuple(lengths)}")
        self.num_classes = num_classes
        self.ignore = ignore
        self.lengths = tuple(lengths)
        self.windows: Counts = np.zeros(len(self.lengths), np.int64)
        self.share_units = [0] * len(self.lengths)  # Python integers: no overflow, no rounding
        self._label: NDArray[Any] | None = None  # of the last frame
        self.end_clip()

    def add_frame(self, pred: LabelArray, label: LabelArray) -> None:
        """Adds the next frame of the present clip: [H, W], values as `joint_histogram` wants them, not checked here."""
        truth = _host(label)
        labelled = truth != self.ignore
        right = (truth == _host(pred)) & labelled
        if self._label is None:
            self._steady, self._right = labelled.astype(np.uint8), right.astype(np.uint8)
        else:
            same = truth == self._label
            for run, goes_on in ((self._steady, labelled), (self._right, right)):
                run *= same
                run += run < max(self.lengths)
                run *= goes_on
        self._label = truth.copy()
        self._frames += 1
        for row, length in enumerate(self.lengths):
            if length <= self._frames:
                self._add_window(row, length)

    def _add_window(self, row: int, length: int) -> None:
        steady, right = (int(np.count_nonzero(run >= length)) for run in (self._steady, self._right))
        if steady:
            self.windows[row] += 1
            self.share_units[row] += (right << _SHARE_BITS) // steady

    def end_clip(self) -> None:
        """Ends the present clip, or its present run of labelled frames: no window crosses this point."""
        self._frames = 0
        self._label = None
        # Of each pixel, for how many frames up to the last one its label has stood still, and its prediction was right.
        self._steady = self._right = np.zeros((0, 0), np.uint8)

    def __add__(self, other: VideoConsistency) -> VideoConsistency:
        """Sum over clips seen by either. Both must stand between two clips (`end_clip`)."""
        check_mergeable(self, other)
        if self.lengths != other.lengths:
            raise ValueError(f"lengths: wanted {self.lengths}, got {other.lengths}")
        if self._frames or other._frames:
            raise ValueError("a clip is still open: call end_clip() on both before adding them")
        total = VideoConsistency(self.num_classes, self.ignore, self.lengths)
        total.windows = self.windows + other.windows
        total.share_units = [a + b for a, b in zip(self.share_units, other.share_units, strict=True)]
        return total

    def per_length(self) -> NDArray[np.float64]:
        """mVC_n of each length, fractions; nan where there is no window."""
        return ratio([units / 2**_SHARE_BITS for units in self.share_units], self.windows)


def _host(array: LabelArray) -> NDArray[Any]:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
