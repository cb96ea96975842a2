"""How good a flow is: against the true flow, and without one by what it makes of the images.

A flow is [2, H, W] or [B, 2, H, W], NumPy or torch, in pixels, (u right, v down), and NaN or infinite where it is
unknown. Frames are as clips give them (NumPy [H, W, 3] uint8) or as networks take them (torch [3, H, W] or
[B, 3, H, W] in [0, 1]). Every score is a mean over pixels as a float, NaN where no pixel counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vda.data.clip import Clip, FlowField, Image, LabelMap
from vda.errors import UsageError
from vda.flow.consistency import consistent, ends_inside
from vda.flow.providers import FlowProvider
from vda.ops import warp

Array = Tensor | NDArray[Any]


def end_point_error(flow: Array, truth: Array) -> float:
    """Mean length of flow - truth in pixels (EPE), over the pixels where both are known.

    Raises ValueError for flows of two shapes, as all functions here do.
    """
    flow, truth = _flow(flow), _flow(truth)
    error = _length(flow - _like(truth, flow, "truth"))
    return _mean(error, error.isfinite())


def outliers(flow: Array, truth: Array, *, pixels: float = 3.0, share: float = 0.05) -> float:
    """Fl-all of KITTI, 0 .. 1: part of the pixels whose error is above `pixels` and above `share` of the true length.

    Over the pixels where the truth is known; where the flow is not, it counts as an outlier (Menze and Geiger, Object
    Scene Flow for Autonomous Vehicles, CVPR 2015).
    """
    flow, truth = _flow(flow), _flow(truth)
    error, length = _length(flow - _like(truth, flow, "truth")), _length(truth)
    return _mean(~((error <= pixels) | (error <= share * length)), length.isfinite())


def photometric_error(image: Array, neighbour: Array, flow: Array) -> float:
    """Mean absolute difference, in grey levels (0..255), between `image` and `neighbour` brought onto it by `flow`.

    Over the pixels whose flow is known and ends inside the frame, and over the colours. Hidden pixels count: even the
    true flow leaves an error. A flow of zero gives the error without flow, over all pixels.
    """
    image, neighbour = _frame(image), _frame(neighbour)
    flow = _flow(flow).to(image.device)
    H, W = image.shape[-2:]
    if flow.shape != (len(image), 2, H, W):
        raise ValueError(f"flow: wanted shape {[len(image), 2, H, W]} for these frames, got {list(flow.shape)}")
    moved = warp(_like(neighbour, image, "neighbour"), flow)
    return _mean((image - moved).abs().mean(1), ends_inside(flow))


def consistent_share(flow: Array, back: Array) -> float:
    """Part of all pixels, 0 .. 1, where `back` leads to where `flow` came from (vda/flow/consistency.py)."""
    flow, back = _flow(flow), _flow(back)
    seen = consistent(flow, _like(back, flow, "back"))
    return _mean(seen, torch.ones_like(seen))


def _flow(flow: Array) -> Tensor:
    """[B, 2, H, W] float32."""
    x = _tensor(flow)
    if x.dim() not in (3, 4) or x.shape[-3] != 2:
        raise ValueError(f"flow: wanted shape [2, H, W] or [B, 2, H, W], got {list(x.shape)}")
    return x.float().reshape(-1, *x.shape[-3:])


def _frame(frame: Array) -> Tensor:
    """[B, 3, H, W] float32 in 0 .. 255."""
    x = _tensor(frame)
    if isinstance(frame, Tensor):
        if not x.is_floating_point() or x.dim() not in (3, 4) or x.shape[-3] != 3:
            found = f"{str(x.dtype)[6:]} {list(x.shape)}"
            raise ValueError(f"frame: wanted a float tensor [3, H, W] or [B, 3, H, W] in [0, 1], got {found}")
        return 255 * x.float().reshape(-1, *x.shape[-3:])
    if x.dtype != torch.uint8 or x.dim() != 3 or x.shape[-1] != 3:
        raise ValueError(f"frame: wanted a uint8 array [H, W, 3], got {str(x.dtype)[6:]} {list(x.shape)}")
    return x.permute(2, 0, 1)[None].float()


def _tensor(x: Array) -> Tensor:
    return x.detach() if isinstance(x, Tensor) else torch.tensor(np.ascontiguousarray(x))


def _like(x: Tensor, other: Tensor, name: str) -> Tensor:
    if x.shape != other.shape:
        raise ValueError(f"{name}: wanted the shape {list(other.shape)} of the other, got {list(x.shape)}")
    return x.to(other.device)


def _length(flow: Tensor) -> Tensor:
    """[B, H, W]; not finite where either component is not."""
    return torch.linalg.vector_norm(flow, dim=1)


def _mean(values: Tensor, counted: Tensor) -> float:
    return float(values[counted].double().mean())


# ---- a provider on a pair of frames ----


@dataclass(frozen=True)
class PairScore:
    """What one flow is worth; NaN where a score is not known. Names as in the functions above."""

    clip: str
    i: int
    j: int
    end_point_error: float
    outliers: float
    photometric_error: float
    without_flow: float  # photometric error of a flow of zero
    consistent_share: float
    milliseconds: float
    no_back: str = ""  # why consistent_share is not known


def score_pair(provider: FlowProvider, clip: Clip, i: int, j: int) -> PairScore:
    """The flow from frame i to frame j of a clip; the time is the provider's own, with both frames in memory.

    Raises UsageError where the provider has no flow from i to j. It may have none back.
    """
    held = _Held(clip, {k: clip.frame(k) for k in (i, j)})
    start = time.perf_counter()
    flow = provider(held, i, j)
    milliseconds = 1e3 * (time.perf_counter() - start)
    share, no_back = math.nan, ""
    try:
        share = consistent_share(flow, provider(held, j, i))
    except UsageError as error:
        no_back = str(error)
    truth, frames = clip.exact_flow(i, j), (held.frame(i), held.frame(j))
    return PairScore(
        clip.name,
        i,
        j,
        math.nan if truth is None else end_point_error(flow, truth),
        math.nan if truth is None else outliers(flow, truth),
        photometric_error(*frames, flow),
        photometric_error(*frames, np.zeros_like(flow)),
        share,
        milliseconds,
        no_back,
    )


@dataclass(frozen=True)
class _Held:
    """A clip some of whose frames are in memory."""

    clip: Clip
    frames: dict[int, Image]

    @property
    def name(self) -> str:
        return self.clip.name

    @property
    def frame_names(self) -> Sequence[str]:
        return self.clip.frame_names

    def __len__(self) -> int:
        return len(self.clip)

    def frame(self, i: int) -> Image:
        return self.frames[i]

    def label(self, i: int) -> LabelMap | None:
        return self.clip.label(i)

    def exact_flow(self, i: int, j: int) -> FlowField | None:
        return self.clip.exact_flow(i, j)
