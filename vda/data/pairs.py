"""Pairs of images with ground-truth flow, as FlyingChairs publishes them: NAME_img*.ppm twice, NAME_flow.flo.

The images of a pair are the files NAME_img* (png, ppm or jpg) in the order of their names. No labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vda.data.clip import FlowField, Image, VideoDataset
from vda.data.flow_files import read_flow
from vda.data.labels import image_size, read_image
from vda.data.transforms import Sample, resize, resize_image
from vda.errors import UsageError

FLOW, IMAGES = "_flow.flo", (".png", ".ppm", ".jpg")


@dataclass(frozen=True)
class PairClip:
    """Two images, read at `size` (height, width) when asked for; the flow from the first to the second is known."""

    name: str
    images: tuple[Path, Path]
    flow: Path
    size: tuple[int, int]

    @property
    def frame_names(self) -> tuple[str, ...]:
        return tuple(path.stem for path in self.images)

    def __len__(self) -> int:
        return 2

    def frame(self, i: int) -> Image:
        return resize_image(read_image(self.images[i]), self.size)

    def label(self, i: int) -> None:
        return None

    def exact_flow(self, i: int, j: int) -> FlowField | None:
        if (i, j) != (0, 1):
            return None
        flow, size = read_flow(self.flow), image_size(self.images[0])
        if flow.shape[1:] != size:
            raise UsageError(f"{self.flow}: wanted flow of the images' size {size}, found {flow.shape[1:]}")
        pair = Sample(np.zeros((2, *size, 3), np.uint8), flows=np.stack([flow, flow])[None])
        resized = resize(pair, self.size).flows
        assert resized is not None
        return resized[0, 0]


def pairs(split: str, *, root: Path | None, size: tuple[int, int]) -> VideoDataset:
    """All pairs directly below `root` (split "all"), read at `size` (height, width); flow is scaled with them.

    Raises UsageError for another split, a folder without pairs, or a flow without its two images.
    """
    if split != "all":
        raise UsageError(f"pairs: wanted the split all, found {split!r}")
    if root is None or not root.is_dir():
        raise UsageError(f"pairs: wanted a folder of NAME_img* and NAME{FLOW} as root, found {root or 'none given'}")
    clips = []
    for flow in sorted(root.glob(f"*{FLOW}")):
        name = flow.name.removesuffix(FLOW)
        images = sorted(path for path in root.glob(f"{name}_img*") if path.suffix in IMAGES)
        if len(images) != 2:
            raise UsageError(f"{flow}: wanted two images {name}_img* beside it, found {len(images)}")
        clips.append(PairClip(name, (images[0], images[1]), flow, size))
    if not clips:
        raise UsageError(f"{root}: wanted files NAME{FLOW}, found none")
    return VideoDataset("pairs/all", (), np.zeros((0, 3), np.uint8), tuple(clips), size)
