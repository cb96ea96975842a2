"""One pass over a data set: everything that stands in a table of scores."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vda.data.clip import IGNORE, FlowField, LabelMap
from vda.metrics.bootstrap import intervals
from vda.metrics.confusion import ConfusionMatrix, LabelArray, joint_histogram, plain
from vda.metrics.consistency import TemporalConsistency, VideoConsistency
from vda.metrics.vpq import VideoPanopticQuality


@dataclass
class ClipCounts:
    """What is counted of one clip, or of several together. frames: those that have labels."""

    num_classes: int
    ignore: int
    name: str = ""
    frames: int = 0
    confusion: ConfusionMatrix = field(init=False)
    vpq: VideoPanopticQuality = field(init=False)
    video: VideoConsistency = field(init=False)
    temporal: TemporalConsistency = field(init=False)

    def __post_init__(self) -> None:
        self.confusion = ConfusionMatrix(self.num_classes, self.ignore)
        self.vpq = VideoPanopticQuality(self.num_classes, self.ignore)
        self.video = VideoConsistency(self.num_classes, self.ignore)
        self.temporal = TemporalConsistency(self.num_classes, self.ignore)

    def state(self) -> dict[str, Any]:
        """All counts in lists and Python's own numbers. The clip must be over."""
        vpq, video, temporal = self.vpq, self.video, self.temporal
        return {
            "name": self.name,
            "frames": self.frames,
            "confusion": self.confusion.counts.tolist(),
            "vpq": [counts.tolist() for counts in (vpq.tp, vpq.fp, vpq.fn, vpq.iou_units)],
            "video": [video.windows.tolist(), video.share_units],
            "temporal": [temporal.matrix.counts.tolist(), temporal.unmasked.counts.tolist(), temporal.pairs],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], num_classes: int, ignore: int) -> ClipCounts:
        clip = cls(num_classes, ignore, state["name"], state["frames"])
        vpq, video, temporal = clip.vpq, clip.video, clip.temporal
        clip.confusion.counts = np.array(state["confusion"])
        vpq.tp, vpq.fp, vpq.fn = map(np.array, state["vpq"][:3])
        vpq.iou_units = np.array(state["vpq"][3], object)
        video.windows, video.share_units = np.array(state["video"][0]), list(state["video"][1])
        temporal.matrix.counts, temporal.unmasked.counts = map(np.array, state["temporal"][:2])
        temporal.pairs = state["temporal"][2]
        return clip

    def __add__(self, other: ClipCounts) -> ClipCounts:
        total = ClipCounts(self.num_classes, self.ignore, frames=self.frames + other.frames)
        for part in ("confusion", "vpq", "video", "temporal"):
            setattr(total, part, getattr(self, part) + getattr(other, part))
        return total


class Scorer:
    """Scores of a set of clips from integer counts, kept by clip: exact under any order and any share of the work.

    Feed the frames of a clip in time order: `add_frame`, or `add_gap` for one without a label; with optical flow also
    `add_pair`; at the end of the clip `end_clip`. Scorers of parts of a set add up with +.
    """

    def __init__(self, classes: Sequence[str], ignore: int = IGNORE) -> None:
        self.classes = tuple(classes)
        self.ignore = ignore
        self.size: tuple[int, int] | None = None
        self.clips: list[ClipCounts] = []
        self._open = self._nothing()

    def _nothing(self) -> ClipCounts:
        return ClipCounts(len(self.classes), self.ignore)

    def add_frame(self, pred: LabelArray, label: LabelArray) -> None:
        """pred, label: [H, W], one size for the whole data set; errors as in `joint_histogram`."""
        size = (int(label.shape[0]), int(label.shape[1])) if label.ndim == 2 else None
        if size is None or self.size not in (None, size):
            raise ValueError(f"label: wanted [H, W] of the first frame's size {self.size}, got {tuple(label.shape)}")
        counts = joint_histogram(pred, label, len(self.classes), self.ignore)
        self._open.confusion.counts += counts
        self._open.vpq.add_counts(counts)
        self._open.video.add_frame(pred, label)
        self._open.frames += 1
        self.size = size

    def add_gap(self) -> None:
        """A frame without a label: VPQ^s goes on with the next labelled one, mVC does not count across it."""
        self._open.video.end_clip()

    def add_pair(self, pred: LabelMap, following: LabelMap, flow: FlowField, visible: NDArray[np.bool_]) -> None:
        """Predictions for a frame and for the next, for TC; arguments and errors as `TemporalConsistency.update`."""
        self._open.temporal.update(pred, following, flow, visible)

    def end_clip(self, name: str = "") -> None:
        """Ends the present clip; one of which nothing was counted is forgotten."""
        clip, self._open = self._open, self._nothing()
        clip.name = name
        clip.vpq.end_clip()
        clip.video.end_clip()
        if clip.frames or clip.temporal.pairs:
            self.clips.append(clip)

    def state(self) -> dict[str, Any]:
        """What was counted, in lists and Python's own numbers, so that it can be sent. The present clip is ended."""
        self.end_clip()
        return {"size": self.size, "clips": [clip.state() for clip in self.clips]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], classes: Sequence[str], ignore: int = IGNORE) -> Scorer:
        scorer = cls(classes, ignore)
        scorer.size = state["size"]
        scorer.clips = [ClipCounts.from_state(clip, len(scorer.classes), ignore) for clip in state["clips"]]
        return scorer

    def __add__(self, other: Scorer) -> Scorer:
        """Sum over clips seen by either. Both must stand between two clips (`end_clip`)."""
        if self.classes != other.classes or (self.size and other.size and self.size != other.size):
            raise ValueError(f"wanted scores of {self.classes} at {self.size}, got {other.classes} at {other.size}")
        if self.ignore != other.ignore:
            raise ValueError(f"wanted scores that ignore {self.ignore}, got {other.ignore}")
        if any(scorer._open.frames or scorer._open.temporal.pairs for scorer in (self, other)):
            raise ValueError("a clip is still open: call end_clip() on both before adding them")
        total = Scorer(self.classes, self.ignore)
        total.clips = self.clips + other.clips
        total.size = self.size or other.size
        return total

    def scores(self) -> dict[str, Any]:
        """JSON-able scores, fractions of 1; None where a class, a window length or the set has no score.

        The present clip is ended. docs/scores.md says what each entry is.
        """
        self.end_clip()
        # By name, then by content: the draws of the bootstrap must not depend on the order in which clips came.
        clips = sorted(self.clips, key=lambda clip: (clip.name, clip.frames, clip.confusion.counts.tobytes()))
        labelled = [clip for clip in clips if clip.frames]
        total = reduce(operator.add, clips, self._nothing())
        confusion, vpq, video, temporal = total.confusion, total.vpq, total.video, total.temporal
        return {
            "classes": list(self.classes),
            "iou": [plain(value) for value in confusion.iou()],
            "miou": plain(confusion.miou()),
            "pixel_accuracy": plain(confusion.pixel_accuracy()),
            "coverage": plain(confusion.total_coverage()),
            "miou_covered": plain(confusion.miou(covered_only=True)),
            "vpq": plain(vpq.mean()),
            "vpq_k": [plain(value) for value in vpq.per_length()],
            "vpq_per_class": [plain(value) for value in vpq.per_class()],
            "vpq_k_per_class": [[plain(value) for value in row] for row in vpq.per_window()],
            "tc": plain(temporal.mean()),
            "tc_unmasked": plain(temporal.mean_unmasked()),
            "tc_pairs": temporal.pairs,
            "mvc": {str(n): plain(value) for n, value in zip(video.lengths, video.per_length(), strict=True)},
            "interval": intervals([clip.confusion for clip in labelled], [clip.vpq for clip in labelled]),
            "per_clip": [_of_clip(clip) for clip in labelled],
            "confusion": confusion.counts.tolist(),
            "frames": total.frames,
            "clips": len(labelled),
            "size": list(self.size) if self.size else None,
            "ignore": self.ignore,
        }


def _of_clip(clip: ClipCounts) -> dict[str, Any]:
    miou, vpq = plain(clip.confusion.miou()), plain(clip.vpq.mean())
    return {"clip": clip.name, "frames": clip.frames, "miou": miou, "vpq": vpq}
