"""The embedded driving world: labelled video with exact motion, made on the spot, no files.

A procedural street drive, ray cast in NumPy. Two looks of the same world stand for two domains: a clean
"simulator" (the labelled source) and a "camera" (the unlabelled target), with different layouts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vda.data._looks import CAMERA, SIMULATOR, Look, picture
from vda.data._raycast import Geometry, cast, flow
from vda.data._street import Street
from vda.data._world import CLASSES, Drive
from vda.data.clip import FlowField, Image, LabelMap, VideoDataset
from vda.errors import UsageError

__all__ = [
    "CAMERA",
    "CLASSES",
    "PALETTE",
    "SIMULATOR",
    "SPLITS",
    "Drive",
    "Look",
    "SyntheticClip",
    "embedded",
]

PALETTE: NDArray[np.uint8] = np.array(
    [
        (128, 64, 128),  # road
        (244, 35, 232),  # sidewalk
        (70, 70, 70),  # building
        (190, 153, 153),  # fence
        (153, 153, 153),  # pole
        (220, 220, 0),  # sign: traffic signs and traffic lights
        (107, 142, 35),  # vegetation
        (152, 251, 152),  # terrain
        (70, 130, 180),  # sky
        (220, 20, 60),  # person
        (0, 0, 142),  # car
    ],
    np.uint8,
)  # [K, 3] RGB, the colours of Cityscapes

# split -> (look, number that keeps its layouts apart, clips, frames per clip)
SPLITS: dict[str, tuple[Look, int, int, int]] = {
    "simulator": (SIMULATOR, 1, 24, 12),
    "simulator-val": (SIMULATOR, 2, 6, 12),
    "camera": (CAMERA, 3, 24, 12),
    "camera-val": (CAMERA, 4, 8, 12),
}

_GEOMETRIES = 3  # kept per clip; one costs about ten pictures
_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class _Recent(Generic[_Key, _Value]):
    """The values made last; the least recently used goes first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        if key in self._values:
            self._values.move_to_end(key)
        else:
            self._values[key] = make()
            if len(self._values) > self._limit:
                self._values.popitem(last=False)
        return self._values[key]


class SyntheticClip:
    """One drive through one street; a `Clip` (vda/data/clip.py) that also knows depth and occlusion.

    seed: the layout; any whole number >= 0 or a tuple of them. look: how it is pictured. size: (H, W).
    length: frames. first_frame: where in the drive the clip begins; frame i of a clip that begins at n equals
    frame i + n of one that begins at 0. drive: motion of the camera. cache: frames whose picture, labels and
    two flows stay in memory (at most 0.7 MB per frame at 128 x 256).
    Frames are rendered when asked for, about 30 ms each at 128 x 256, and are the same bytes in any order.
    Raises UsageError for a size, length or seed that makes no video.
    """

    def __init__(
        self,
        seed: int | tuple[int, ...],
        look: Look = SIMULATOR,
        size: tuple[int, int] = (128, 256),
        length: int = 12,
        first_frame: int = 0,
        *,
        drive: Drive | None = None,
        name: str | None = None,
        cache: int = 6,
    ) -> None:
        numbers = seed if isinstance(seed, tuple) else (seed,)
        for number in numbers or (None,):
            _whole("seed", number, 0)
        if not isinstance(size, tuple) or len(size) != 2:
            raise UsageError(f"size: wanted (height, width), found {size!r}")
        sizes = {"height": size[0], "width": size[1], "length": length, "cache": cache}
        for argument, value in sizes.items():
            _whole(argument, value, 1)
        _whole("first_frame", first_frame, 0)
        self.look, self.size = look, (int(size[0]), int(size[1]))
        self.length, self.first_frame = length, first_frame
        self._street = Street(numbers, drive or Drive())
        self._name = name or "-".join([look.name, *(str(n) for n in numbers)])
        self._seen = _Recent[int, Geometry](_GEOMETRIES)
        self._pictures = _Recent[int, Image](cache)
        self._labels = _Recent[int, LabelMap](cache)
        self._flows = _Recent[tuple[int, int], FlowField](2 * cache)

    @property
    def name(self) -> str:
        return self._name

    @property
    def frame_names(self) -> Sequence[str]:
        return [f"{self.first_frame + i:06d}" for i in range(self.length)]

    def __len__(self) -> int:
        return self.length

    def frame(self, i: int) -> Image:
        """RGB [H, W, 3] uint8 of frame i. Raises IndexError outside 0 .. len - 1, as all methods here do."""
        self._check(i)
        return self._pictures.get(i, lambda: self._render(i)).copy()

    def label(self, i: int) -> LabelMap:
        """Classes [H, W] uint8 of frame i."""
        self._check(i)
        return self._labels.get(i, lambda: self._geometry(i).label).copy()

    def depth(self, i: int) -> NDArray[np.float32]:
        """Distance along the optical axis [H, W] in metres; inf at the sky and the skyline."""
        return self._geometry(i).depth.copy()

    def exact_flow(self, i: int, j: int) -> FlowField:
        """Motion [2, H, W] in pixels of the points seen in frame i, from frame i to frame j (any pair).

        From the geometry: point, motion of its object, projection into frame j, whether visible there or not.
        Points that frame j has behind the camera get a large finite flow out of the picture.
        """
        return self._motion(i, j).copy()

    def occlusion(self, i: int, j: int) -> NDArray[np.bool_]:
        """[H, W]: True where the point seen in frame i cannot be found in frame j.

        It lies outside the picture, or the nearest pixel of frame j shows another surface. Surfaces are told
        apart by identity, not by a tolerance on depth, so half a pixel along silhouettes counts as occluded.
        """
        here, there = self._geometry(i), self._geometry(j)
        H, W = self.size
        field = self._motion(i, j)
        u = np.rint(field[0] + np.arange(W)).astype(np.int64)
        v = np.rint(field[1] + np.arange(H)[:, None]).astype(np.int64)
        inside = (u >= 0) & (u < W) & (v >= 0) & (v < H)
        other = there.surface[v.clip(0, H - 1), u.clip(0, W - 1)]
        return np.asarray(~(inside & (other == here.surface)))

    exact_occlusion = occlusion

    def _motion(self, i: int, j: int) -> FlowField:
        self._check(i)
        self._check(j)
        return self._flows.get((i, j), lambda: flow(self._street, self._geometry(i), self.first_frame + j))

    def _check(self, i: int) -> None:
        if not 0 <= i < self.length:
            raise IndexError(f"frame {i} of clip {self.name}, which has frames 0 to {self.length - 1}")

    def _geometry(self, i: int) -> Geometry:
        self._check(i)
        return self._seen.get(i, lambda: cast(self._street, self.first_frame + i, self.size))

    def _render(self, i: int) -> Image:
        seen = self._geometry(i)
        ahead = np.zeros((2, *self.size), np.float32)
        if self.look.shutter:  # the last frame is smeared too, so this looks one frame past the clip's end
            ahead = flow(self._street, seen, seen.t + 1)
        return picture(self._street, self.look, seen, ahead)


def _whole(argument: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UsageError(f"{argument}: wanted a whole number of at least {least}, found {value!r}")


def embedded_by_name(split: str, root: Path | None = None, size: tuple[int, int] = (128, 256)) -> VideoDataset:
    """`SPLIT` of the embedded world, or `SPLIT:N` for its first N clips; needs no root. Errors as `embedded`."""
    name, _, clips = split.partition(":")
    if clips and not clips.isdecimal():
        raise UsageError(f"embedded/{split}: wanted a number of clips after the colon, found {clips!r}")
    # Clips are short and drawn many times: each keeps all its rendered frames.
    return embedded(name, size=size, clips=int(clips) if clips else None, cache=64)


def embedded(
    split: str,
    *,
    size: tuple[int, int] = (128, 256),
    clips: int | None = None,
    length: int | None = None,
    seed: int = 0,
    look: Look | None = None,
    drive: Drive | None = None,
    cache: int = 6,
) -> VideoDataset:
    """A split of the embedded world: "simulator", "simulator-val", "camera" or "camera-val".

    Every clip has a layout of its own; splits share none. clips, length: how many and how long, by default as
    in SPLITS. look: in place of the split's own. cache: frames each clip keeps.
    Raises UsageError for an unknown split or bad numbers.
    """
    if split not in SPLITS:
        raise UsageError(f"split: wanted one of {', '.join(SPLITS)}, found {split!r}")
    usual, key, count, frames = SPLITS[split]
    count, frames = count if clips is None else clips, frames if length is None else length
    _whole("clips", count, 1)
    _whole("seed", seed, 0)
    drives = tuple(
        SyntheticClip((seed, key, k), look or usual, size, frames, drive=drive, name=f"{split}-{k:03d}", cache=cache)
        for k in range(count)
    )
    return VideoDataset(f"embedded/{split}", CLASSES, PALETTE, drives, drives[0].size)
