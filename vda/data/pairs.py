"""Pairs of images with ground-truth flow, as FlyingChairs publishes them: NAME_img*.ppm twice, NAME_flow.flo.

The images of a pair are the files NAME_img* (png, ppm or jpg) in the order of their names. No labels.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vda.data.clip import FlowField, Image, VideoDataset
from vda.data.flow_files import read_flow
from vda.data.labels import check_same_size, image_size, read_image
from vda.data.transforms import resize_flow, resize_image
from vda.errors import UsageError

FLOW, IMAGES = "_flow.flo", (".png", ".ppm", ".jpg")


@dataclass(frozen=True)
class PairClip:
    """Two images, read at `size` (height, width), or their own, when asked for; the flow from the first to the second
    is known."""

    name: str
    images: tuple[Path, Path]
    flow: Path
    size: tuple[int, int] | None

    @property
    def frame_names(self) -> tuple[str, ...]:
        return tuple(path.stem for path in self.images)

    def __len__(self) -> int:
        return 2

    def frame(self, i: int) -> Image:
        image = read_image(self.images[i])
        self._own_size()
        return image if self.size is None else resize_image(image, self.size)

    def label(self, i: int) -> None:
        return None

    def files(self, i: int) -> tuple[str, None]:
        """The files of frame i: its image, and no label."""
        return str(self.images[i]), None

    def exact_flow(self, i: int, j: int) -> FlowField | None:
        if (i, j) != (0, 1):
            return None
        flow, own = read_flow(self.flow), self._own_size()
        check_same_size((flow.shape[1], flow.shape[2]), own, self.flow, self.images[0])
        return flow if self.size is None else resize_flow(flow, self.size)

    def _own_size(self) -> tuple[int, int]:
        """Height and width of both images' files."""
        first, second = map(image_size, self.images)
        check_same_size(second, first, self.images[1], self.images[0])
        return first


def pairs(split: str, *, root: Path | None, size: tuple[int, int] | None = None) -> VideoDataset:
    """All pairs directly below `root` (split "all"), read at `size` (height, width); flow is scaled with them.

    Without `size` every pair is read at its own, and the size of the data set is that of its first pair.
    Raises UsageError for another split, a folder without pairs, or a flow without its two images; and on reading, for a
    damaged file and for images or a flow of two sizes.
    """
    if split != "all":
        raise UsageError(f"pairs: wanted the split all, found {split!r}")
    if root is None or not root.is_dir():
        raise UsageError(f"pairs: wanted a folder of NAME_img* and NAME{FLOW} as root, found {root or 'none given'}")
    if size is not None and min(size) < 1:
        raise UsageError(f"pairs: wanted a size of at least 1 x 1, found {size[0]} x {size[1]}")
    flows: list[Path] = []
    images: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.iterdir()):  # once: FlyingChairs has 68616 files
        name, found, _ = path.name.rpartition("_img")
        if path.name.endswith(FLOW):
            flows.append(path)
        elif found and path.suffix in IMAGES:
            images[name].append(path)
    if not flows:
        raise UsageError(f"{root}: wanted files NAME{FLOW}, found none")
    clips = [_clip(flow, images[flow.name.removesuffix(FLOW)], size) for flow in flows]
    return VideoDataset(
        "pairs/all", (), np.zeros((0, 3), np.uint8), tuple(clips), size or image_size(clips[0].images[0])
    )


def _clip(flow: Path, images: list[Path], size: tuple[int, int] | None) -> PairClip:
    name = flow.name.removesuffix(FLOW)
    if len(images) != 2:
        raise UsageError(f"{flow}: wanted two images {name}_img* beside it, found {len(images)}")
    return PairClip(name, (images[0], images[1]), flow, size)
