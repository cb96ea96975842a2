"""Video with exact flow for training flow networks, made on the spot: textured layers and drives of the embedded world.

Four of five clips are two frames of layers (vda/data/_layers.py), the fifth is two frames of a drive, of either look.
No labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vda.data._layers import layers
from vda.data.clip import FlowField, Image, VideoDataset
from vda.data.synthetic import CAMERA, SIMULATOR, SyntheticClip
from vda.errors import UsageError

# split -> (number that keeps its clips apart, clips)
SPLITS: dict[str, tuple[int, int]] = {"train": (1, 20_000), "val": (2, 100)}


@dataclass(frozen=True)
class MotionClip:
    """Two frames, rendered when asked for; the last few clips stay in memory."""

    name: str
    key: tuple[int, int]
    size: tuple[int, int]
    frame_names: tuple[str, ...] = ("0", "1")

    def __len__(self) -> int:
        return 2

    def frame(self, i: int) -> Image:
        """RGB [H, W, 3] of frame 0 or 1; IndexError for another, as from `exact_flow`."""
        self._check(i)
        return self._rendered()[0][i].copy()

    def label(self, i: int) -> None:
        return None

    def exact_flow(self, i: int, j: int) -> FlowField:
        self._check(i)
        self._check(j)
        if i == j:
            return np.zeros((2, *self.size), np.float32)
        return self._rendered()[1][i].copy()

    def _rendered(self) -> tuple[list[Image], list[FlowField]]:
        return _render(self.key, self.size)

    def _check(self, i: int) -> None:
        if i not in (0, 1):
            raise IndexError(f"frame {i} of clip {self.name}, which has frames 0 and 1")


@lru_cache(maxsize=4)
def _render(key: tuple[int, int], size: tuple[int, int]) -> tuple[list[Image], list[FlowField]]:
    rng = np.random.default_rng(key)
    if key[1] % 5:
        pair = layers(rng, size)
        return [pair.first, pair.second], [pair.flow, pair.back]
    look = (SIMULATOR, CAMERA)[int(rng.integers(2))]
    drive = SyntheticClip((77, *key), look, size, length=2, first_frame=int(rng.integers(100)))
    return [drive.frame(0), drive.frame(1)], [drive.exact_flow(0, 1), drive.exact_flow(1, 0)]


def motion(split: str, *, root: Path | None = None, size: tuple[int, int] = (256, 448)) -> VideoDataset:
    """The split "train" or "val" at `size` (height, width), no file needed. Raises UsageError for another split."""
    if split not in SPLITS:
        raise UsageError(f"motion: wanted a split of {', '.join(SPLITS)}, found {split!r}")
    if min(size) < 16:
        raise UsageError(f"motion: wanted a size of at least 16 x 16, found {size[0]} x {size[1]}")
    number, count = SPLITS[split]
    clips = tuple(MotionClip(f"{split}-{k:05d}", (number, k), size) for k in range(count))
    return VideoDataset(f"motion/{split}", (), np.zeros((0, 3), np.uint8), clips, size)
