"""Flow providers: from two frames of a clip to the optical flow between them.

A provider returns F_{i->j} in pixels of the clip's frames, (u right, v down): the point that lies at p in frame i lies
at p + F_{i->j}(p) in frame j, so sampling frame j there brings it onto frame i. NaN where it is unknown. A new provider
is one small class and one line in `PROVIDERS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vda.data.clip import Clip, FlowField, FlowSource, Image
from vda.data.flow_files import READERS, read_flow
from vda.errors import UsageError
from vda.flow.flownet2 import Estimator
from vda.flow.weights import build, family, read_weights
from vda.options import Flow

_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


class FlowProvider(Protocol):
    """Anything with a name (recorded beside whatever its flow was used for) that maps (clip, i, j) to a flow."""

    @property
    def name(self) -> str: ...

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        """Flow from frame i to frame j, [2, H, W] float32."""


def both_ways(flow: FlowSource, clip: Clip, i: int, j: int) -> tuple[FlowField, FlowField]:
    """F_{i->j} and F_{j->i}, in one pass where the source, a provider mostly, has a method `both`."""
    if hasattr(flow, "both"):
        there, back = flow.both(clip, i, j)
        return there, back
    return flow(clip, i, j), flow(clip, j, i)


class ExactFlow:
    """The flow that the data set itself knows (a rendered world). UsageError where it knows none."""

    name = "exact"

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        _check_frames(clip, i, j)
        flow = clip.exact_flow(i, j)
        if flow is None:
            raise UsageError(
                f"--flow.provider exact: clip {clip.name} has no ground-truth flow from frame {clip.frame_names[i]} "
                f"to {clip.frame_names[j]}; estimate it with --flow.provider dis"
            )
        return flow


class DISFlow:
    """OpenCV's Dense Inverse Search on grey frames: no weights, tens of frames per second (Kroeger et al., ECCV 2016).

    preset: "ultrafast", "fast" or "medium" (better and slower). The same frames give the same flow with any number of
    threads; OpenCV versions differ by rounding.
    """

    # With a side below 32 pixels OpenCV's pyramid comes out empty: it throws, returns noise or crashes the process,
    # depending on the shape. Such frames are extended by their border pixels and the flow cut back.
    MIN_SIDE = 32

    def __init__(self, preset: Literal["ultrafast", "fast", "medium"] = "medium") -> None:
        if preset not in _PRESETS:
            raise UsageError(f"DIS flow preset: wanted one of {', '.join(_PRESETS)}, got {preset!r}")
        self.name = f"dis-{preset}"
        self._preset = _PRESETS[preset]

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        _check_frames(clip, i, j)
        return self.between(clip.frame(i), clip.frame(j))

    def both(self, clip: Clip, i: int, j: int) -> tuple[FlowField, FlowField]:
        """F_{i->j} and F_{j->i}; frames are read once."""
        _check_frames(clip, i, j)
        frame, neighbour = clip.frame(i), clip.frame(j)
        return self.between(frame, neighbour), self.between(neighbour, frame)

    def between(self, image: Image, neighbour: Image) -> FlowField:
        """Flow from `image` to `neighbour`, both [H, W, 3] uint8 RGB of one size; ValueError otherwise."""
        check_images(image, neighbour)
        height, width = image.shape[:2]
        grey = [self._extended(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in (image, neighbour)]
        # A fresh object per pair: one that is kept carries buffers over and may not be shared between threads.
        search: Any = cv2.DISOpticalFlow.create(self._preset)
        flow = search.calc(grey[0], grey[1], None)
        return np.ascontiguousarray(flow[:height, :width].transpose(2, 0, 1), dtype=np.float32)

    def _extended(self, grey: NDArray[Any]) -> NDArray[Any]:
        below, right = (max(0, self.MIN_SIDE - side) for side in grey.shape)
        if not below and not right:
            return grey
        return cv2.copyMakeBorder(grey, 0, below, 0, right, cv2.BORDER_REPLICATE)


class NetworkFlow:
    """A flow network with its weights: one of the FlowNet2 family (vda/flow/flownet2.py), RAFT (vda/flow/raft.py).

    name: recorded beside the flow; it has to tell these weights from others.
    """

    def __init__(self, network: Estimator, name: str, device: torch.device) -> None:
        self.network, self.name, self.device = network.to(device), name, device

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        _check_frames(clip, i, j)
        return self.between(clip.frame(i), clip.frame(j))

    def both(self, clip: Clip, i: int, j: int) -> tuple[FlowField, FlowField]:
        """F_{i->j} and F_{j->i}; what the network knows of a frame alone is computed once."""
        _check_frames(clip, i, j)
        frame, neighbour = clip.frame(i), clip.frame(j)
        check_images(frame, neighbour)
        with torch.inference_mode():
            flows = self.network.both(self._tensor(frame), self._tensor(neighbour))
        there, back = (flow[0].cpu().numpy() for flow in flows)
        return there, back

    def between(self, image: Image, neighbour: Image) -> FlowField:
        """Flow from `image` to `neighbour`, both [H, W, 3] uint8 RGB of one size; ValueError otherwise."""
        check_images(image, neighbour)
        with torch.inference_mode():
            flow = self.network(self._tensor(image), self._tensor(neighbour))[0]
        return np.asarray(flow.cpu().numpy())

    def _tensor(self, image: Image) -> torch.Tensor:
        return torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None].float() / 255


class PrecomputedFlow:
    """Files ROOT/CLIP/FRAME_I-FRAME_J.SUFFIX in a format of vda/data/flow_files.py, e.g. those of `vda flow`."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UsageError(f"--flow.root: wanted a folder of flow files, found none at {root}")
        self.root = root
        place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()
        self.name = f"precomputed-{root.name}-{place[:8]}"

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        _check_frames(clip, i, j)
        stem = self.root / clip.name / f"{clip.frame_names[i]}-{clip.frame_names[j]}"
        for suffix in READERS:
            path = stem.with_name(stem.name + suffix)
            if path.exists():
                flow, size = read_flow(path), clip.frame(i).shape[:2]
                if flow.shape[1:] != size:
                    raise UsageError(f"{path}: wanted flow of the frames' size {size}, found {flow.shape[1:]}")
                return flow
        raise UsageError(f"{stem}: wanted a flow file ({', '.join(READERS)}), found none")


def check_images(image: Image, neighbour: Image) -> None:
    """Raise ValueError unless both are [H, W, 3] uint8 of one size."""
    for name, frame in (("image", image), ("neighbour", neighbour)):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise ValueError(f"{name}: wanted uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
    if image.shape != neighbour.shape:
        raise ValueError(f"neighbour: wanted the size {image.shape[:2]} of image, got {neighbour.shape[:2]}")


def _check_frames(clip: Clip, i: int, j: int) -> None:
    for name, index in (("i", i), ("j", j)):
        if not 0 <= index < len(clip):
            raise ValueError(f"{name}: wanted a frame 0 .. {len(clip) - 1} of clip {clip.name}, got {index}")


def _network(settings: Flow, device: torch.device) -> FlowProvider:
    name = settings.provider
    if settings.weights is None:
        raise UsageError(
            f"--flow.provider {name}: wanted --flow.weights, a file made by `python -m vda weights import CHECKPOINT`"
        )
    variant, state, sha256 = read_weights(settings.weights)
    if family(variant) != name:
        raise UsageError(
            f"--flow.provider {name}: wanted weights of that network, {settings.weights} has those of {variant}; "
            f"use --flow.provider {family(variant)}"
        )
    return NetworkFlow(build(variant, state), f"{variant}-{sha256[:12]}", device)


def _precomputed(settings: Flow, device: torch.device) -> FlowProvider:
    if settings.root is None:
        raise UsageError("--flow.provider precomputed: wanted --flow.root, the folder of the flow files")
    return PrecomputedFlow(settings.root)


PROVIDERS: dict[str, Callable[[Flow, torch.device], FlowProvider]] = {
    "exact": lambda settings, device: ExactFlow(),
    "dis": lambda settings, device: DISFlow(),
    "flownet2": _network,
    "raft": _network,
    "precomputed": _precomputed,
}


def provider(settings: Flow, device: torch.device | str = "cpu") -> FlowProvider:
    """The provider that the settings name; UsageError for what it lacks."""
    return PROVIDERS[settings.provider](settings, torch.device(device))
