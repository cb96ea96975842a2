"""Clips: the only shape in which video enters the package.

A `Clip` is a run of consecutive frames without a cut; a `VideoDataset` is a list of clips with one class list.
Frames are loaded when asked for, so a data set of any length costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

IGNORE = 255  # label of a pixel that belongs to no class; never trained on, never scored

Image = NDArray[np.uint8]  # [H, W, 3], RGB
LabelMap = NDArray[np.uint8]  # [H, W], class index or IGNORE
FlowField = NDArray[np.float32]  # [2, H, W], pixels, (u right, v down)


class Clip(Protocol):
    """Consecutive frames of one video. `i` and `j` index frames, 0 .. len - 1."""

    @property
    def name(self) -> str:
        """Unique inside its data set; safe as a folder name."""

    @property
    def frame_names(self) -> Sequence[str]:
        """One per frame, unique inside the clip; safe as file names without suffix."""

    def __len__(self) -> int: ...

    def frame(self, i: int) -> Image:
        """RGB image of frame i."""

    def label(self, i: int) -> LabelMap | None:
        """Labels of frame i, or None where the frame has none."""

    def exact_flow(self, i: int, j: int) -> FlowField | None:
        """Ground-truth flow from frame i to frame j, or None where the data set has none.

        Frame j is brought onto frame i by sampling it at p + flow(p).
        """


@runtime_checkable
class OfFiles(Protocol):
    """A clip that is read from files, which can be checked and vouched for."""

    def files(self, i: int) -> tuple[str, str | None]:
        """The files of frame i: its image, or the video that it is in, and its label where it has one."""


FlowSource = Callable[[Clip, int, int], FlowField]  # (clip, i, j) -> flow from frame i to frame j


@dataclass(frozen=True)
class VideoDataset:
    """Clips that share a class list.

    name: as given on the command line, e.g. "camvid/sunny". classes: K names, in label order.
    palette: [K, 3] uint8 RGB. clips: all of one image size (height, width).
    """

    name: str
    classes: tuple[str, ...]
    palette: NDArray[np.uint8]
    clips: tuple[Clip, ...]
    size: tuple[int, int]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def num_frames(self) -> int:
        return sum(len(clip) for clip in self.clips)


def spread(dataset: VideoDataset, count: int) -> list[tuple[Clip, int]]:
    """`count` frames with a successor, evenly over the clips and their lengths."""
    clips = [clip for clip in dataset.clips if len(clip) > 1]
    chosen = [clips[k] for k in np.linspace(0, len(clips) - 1, count).round().astype(int)] if clips else []
    return [(clip, round((k + 0.5) / count * (len(clip) - 2))) for k, clip in enumerate(chosen)]
