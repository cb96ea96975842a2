"""A few frames of a data set that stand for all of it, and the reads of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vda.data.clip import Clip, FlowField, Image, LabelMap, VideoDataset


@dataclass(frozen=True)
class Start:
    """The first `length` frames of a clip; `reads` gets the time of every read of one."""

    clip: Clip
    length: int
    reads: list[float] = field(default_factory=list, compare=False)

    @property
    def name(self) -> str:
        return self.clip.name

    @property
    def frame_names(self) -> Sequence[str]:
        return self.clip.frame_names[: self.length]

    def __len__(self) -> int:
        return self.length

    def frame(self, i: int) -> Image:
        self.reads.append(time.perf_counter())
        return self.clip.frame(i)

    def label(self, i: int) -> LabelMap | None:
        return self.clip.label(i)

    def exact_flow(self, i: int, j: int) -> FlowField | None:
        return self.clip.exact_flow(i, j)


@dataclass(frozen=True)
class Sampled:
    """The beginnings of some clips of a data set. reads: the times of all reads of their frames."""

    whole: VideoDataset
    dataset: VideoDataset
    reads: list[float]

    @property
    def factor(self) -> float:
        """How many times more frames there are than in the sample."""
        return self.whole.num_frames / self.dataset.num_frames


def sample(dataset: VideoDataset, frames: int, span: int) -> Sampled:
    """About `frames` frames of the first clips that are not shorter than `span`, half of them from the first one."""
    reads: list[float] = []
    chosen: list[Clip] = []
    long = [clip for clip in dataset.clips if len(clip) >= span]
    each = max(span, math.ceil(frames / min(2, len(long) or 1)))
    for clip in long:
        if sum(map(len, chosen)) >= frames:
            break
        chosen.append(Start(clip, min(each, len(clip)), reads))
    return Sampled(dataset, replace(dataset, clips=tuple(chosen)), reads)
