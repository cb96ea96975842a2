"""Flow providers: from two frames of a clip to the optical flow between them.

A provider returns F_{i->j} in pixels of the clip's frames, (u right, v down): the point that lies at p in
frame i lies at p + F_{i->j}(p) in frame j, so sampling frame j there brings it onto frame i. A new provider
is one small class and one line in `PROVIDERS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from vda.data.clip import Clip, FlowField, Image
from vda.errors import UsageError

_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


class FlowProvider(Protocol):
    """Anything with a name (recorded beside whatever its flow was used for) that maps (clip, i, j) to a
    flow."""

    @property
    def name(self) -> str: ...

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        """Flow from frame i to frame j, [2, H, W] float32."""


class ExactFlow:
    """The flow that the data set itself knows (a rendered world). UsageError where it knows none."""

    name = "exact"

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        _check_frames(clip, i, j)
        flow = clip.exact_flow(i, j)
        if flow is None:
            raise UsageError(
                f"--flow exact: clip {clip.name} has no ground-truth flow from frame {clip.frame_names[i]} "
                f"to {clip.frame_names[j]}; estimate it with --flow dis"
            )
        return flow


class DISFlow:
    """OpenCV's Dense Inverse Search on grey frames: no weights, tens of frames per second (Kroeger et al.,
    ECCV 2016).

    preset: "ultrafast", "fast" or "medium" (better and slower). The same frames give the same flow with any
    number of threads; OpenCV versions differ by rounding.
    """

    # With a side below 32 pixels OpenCV's pyramid comes out empty: it throws, returns noise or crashes the
    # process, depending on the shape. Such frames are extended by their border pixels and the flow cut back.
    MIN_SIDE = 32

    def __init__(self, preset: Literal["ultrafast", "fast", "medium"] = "medium") -> None:
        if preset not in _PRESETS:
            raise UsageError(f"DIS flow preset: wanted one of {', '.join(_PRESETS)}, got {preset!r}")
        self.name = f"dis-{preset}"
        self._preset = _PRESETS[preset]

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        _check_frames(clip, i, j)
        return self.between(clip.frame(i), clip.frame(j))

    def between(self, image: Image, neighbour: Image) -> FlowField:
        """Flow from `image` to `neighbour`, both [H, W, 3] uint8 RGB of one size; ValueError otherwise."""
        for name, frame in (("image", image), ("neighbour", neighbour)):
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
                raise ValueError(f"{name}: wanted uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
        if image.shape != neighbour.shape:
            raise ValueError(f"neighbour: wanted the size {image.shape[:2]} of image, got {neighbour.shape[:2]}")
        height, width = image.shape[:2]
        grey = [self._extended(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in (image, neighbour)]
        # A fresh object per pair: one that is kept carries buffers over and may not be shared between
        # threads.
        search: Any = cv2.DISOpticalFlow.create(self._preset)
        flow = search.calc(grey[0], grey[1], None)
        return np.ascontiguousarray(flow[:height, :width].transpose(2, 0, 1), dtype=np.float32)

    def _extended(self, grey: NDArray[Any]) -> NDArray[Any]:
        below, right = (max(0, self.MIN_SIDE - side) for side in grey.shape)
        if not below and not right:
            return grey
        return cv2.copyMakeBorder(grey, 0, below, 0, right, cv2.BORDER_REPLICATE)


def _check_frames(clip: Clip, i: int, j: int) -> None:
    for name, index in (("i", i), ("j", j)):
        if not 0 <= index < len(clip):
            raise ValueError(f"{name}: wanted a frame 0 .. {len(clip) - 1} of clip {clip.name}, got {index}")


PROVIDERS: dict[str, Callable[[], FlowProvider]] = {
    "exact": ExactFlow,
    "dis": DISFlow,
}


def provider(name: str) -> FlowProvider:
    """The provider called `name` in `PROVIDERS`, with its default settings; UsageError for another name."""
    if name not in PROVIDERS:
        near = difflib.get_close_matches(name, PROVIDERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--flow: wanted one of {', '.join(PROVIDERS)}, got {name!r}{hint}")
    return PROVIDERS[name]()
