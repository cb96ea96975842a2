"""Clip-consistent augmentation: one draw per tube, the same for all its frames, labels and flows.

A tube is only a tube while its frames share one geometry, and a flow only fits frames that were cut, scaled
and mirrored as it was: the flip negates u, a scale multiplies both components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from vda.errors import UsageError

A = TypeVar("A", NDArray[np.uint8], NDArray[np.float32])

_BLUR = (0.3, 1.2)  # standard deviation, pixels


@dataclass(frozen=True)
class Augment:
    """What is drawn for every tube. The defaults change nothing."""

    flip: float = 0.0
    """Chance of a horizontal flip."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest resize factor, drawn evenly; raised where the crop would not fit otherwise."""
    crop: tuple[int, int] | None = None
    """Height and width of a random crop after resizing; the tube's own size where not given."""
    focus: float = 0.0
    """Chance that the crop is centred on a pixel of a class that the method looks for (CBST, CRST: rare classes)."""
    jitter: float = 0.0
    """Chance of a colour jitter."""
    brightness: float = 0.0
    """Largest relative change of brightness of a jitter."""
    contrast: float = 0.0
    """Largest relative change of contrast of a jitter."""
    blur: float = 0.0
    """Chance of a Gaussian blur with a standard deviation between 0.3 and 1.2 pixels."""
    noise: float = 0.0
    """Largest standard deviation of added Gaussian noise, in grey levels (0..255)."""

    def __post_init__(self) -> None:
        for name in ("flip", "focus", "jitter", "blur"):
            _check(0 <= getattr(self, name) <= 1, name, "a chance of 0..1", getattr(self, name))
        for name in ("brightness", "contrast"):
            _check(
                0 <= getattr(self, name) < 1,
                name,
                "a relative change of at least 0 and below 1",
                getattr(self, name),
            )
        _check(0 <= self.noise < float("inf"), "noise", "at least 0", self.noise)
        _check(0 < self.scale[0] <= self.scale[1] <= 16, "scale", "0 < smallest <= largest <= 16", self.scale)
        _check(self.crop is None or min(self.crop) >= 1, "crop", "a height and width of at least 1", self.crop)


def _check(good: bool, name: str, wanted: str, found: object) -> None:
    if not good:
        raise UsageError(f"augment.{name}: wanted {wanted}, found {found}")


@dataclass(frozen=True)
class Sample:
    """One tube of T frames.

    frames [T, H, W, 3] uint8 RGB. labels [T, H, W] uint8 or None. flows [T - 1, 2, 2, H, W] float32 in pixels
    or None: flows[t, 0] = F_{t -> t+1}, flows[t, 1] = F_{t+1 -> t}, component 0 is u (right), 1 is v (down).
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8] | None = None
    flows: NDArray[np.float32] | None = None


def augment(sample: Sample, what: Augment, rng: np.random.Generator, focus: Sequence[int] = ()) -> Sample:
    """A new sample, drawn by `rng` alone: scale, crop, flip, colour jitter, blur, noise, in this order.

    focus: classes that crops are centred on with the chance `what.focus`. The size of the result is that of
    `what.crop`, else the sample's own, whatever was drawn. The arrays are contiguous and
    never those that came in, where anything was changed.
    """
    H, W = sample.frames.shape[1:3]
    height, width = what.crop or (H, W)
    factor = max(rng.uniform(*what.scale), height / H, width / W)
    size = (max(round(H * factor), height), max(round(W * factor), width))
    sample = resize(sample, size)
    centre = _focused(sample, focus, rng) if focus and rng.random() < what.focus else None
    if centre is None:
        top = int(rng.integers(size[0] - height + 1))
        left = int(rng.integers(size[1] - width + 1))
    else:
        top = min(max(centre[0] - height // 2, 0), size[0] - height)
        left = min(max(centre[1] - width // 2, 0), size[1] - width)
    sample = crop(sample, top, left, height, width)
    if rng.random() < what.flip:
        sample = flip(sample)
    return replace(sample, frames=_recolour(sample.frames, what, rng))


def _focused(sample: Sample, classes: Sequence[int], rng: np.random.Generator) -> tuple[int, int] | None:
    """Row and column of a random pixel of a random one of the classes that the tube shows, None where it shows none."""
    if sample.labels is None:
        return None
    shown = [k for k in classes if (sample.labels == k).any()]
    if not shown:
        return None
    _, rows, columns = np.nonzero(sample.labels == shown[rng.integers(len(shown))])
    chosen = rng.integers(len(rows))
    return int(rows[chosen]), int(columns[chosen])


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample at `size` (height, width): frames by area or bilinear, labels nearest, flows bilinear and
    rescaled."""
    H, W = sample.frames.shape[1:3]
    if size == (H, W):
        return sample
    flows = None
    if sample.flows is not None:
        maps = sample.flows.reshape(-1, 2, H, W)
        flows = np.stack([resize_flow(m, size) for m in maps]).reshape(*sample.flows.shape[:-2], *size)
    labels = sample.labels
    return Sample(
        frames=np.stack([resize_image(f, size) for f in sample.frames]),
        labels=None if labels is None else np.stack([resize_label(m, size) for m in labels]),
        flows=flows,
    )


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """[H, W, 3] at `size` (height, width): by area where it shrinks (no aliasing), else bilinear."""
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    return _resize(image, size, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_label(label: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """[H, W] at `size` (height, width) by the nearest pixel centre; plain INTER_NEAREST is off by up to half
    a pixel."""
    return _resize(label, size, cv2.INTER_NEAREST_EXACT)


def resize_flow(flow: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """[2, H, W] at `size` (height, width), bilinear, in pixels of the new size."""
    H, W = flow.shape[1:]
    if size == (H, W):
        return flow
    factors = np.array([size[1] / W, size[0] / H], np.float32).reshape(2, 1, 1)
    return np.stack([_resize(component, size, cv2.INTER_LINEAR) for component in flow]) * factors


def _resize(array: A, size: tuple[int, int], how: int) -> A:
    if array.shape[:2] == size:
        return array
    out = cv2.resize(np.ascontiguousarray(array), (size[1], size[0]), interpolation=how)
    return out.astype(array.dtype, copy=False)


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Rows top .. top + height - 1 and columns left .. left + width - 1 of everything; flow values stay."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    labels, flows = sample.labels, sample.flows
    return Sample(
        frames=np.ascontiguousarray(sample.frames[:, rows, columns]),
        labels=None if labels is None else np.ascontiguousarray(labels[:, rows, columns]),
        flows=None if flows is None else np.ascontiguousarray(flows[..., rows, columns]),
    )


def flip(sample: Sample) -> Sample:
    """Left and right exchanged: columns reversed, u negated."""
    labels, flows = sample.labels, sample.flows
    if flows is not None:
        flows = np.ascontiguousarray(flows[..., ::-1])
        flows[..., 0, :, :] *= -1
    return Sample(
        frames=np.ascontiguousarray(sample.frames[:, :, ::-1]),
        labels=None if labels is None else np.ascontiguousarray(labels[:, :, ::-1]),
        flows=flows,
    )


def _recolour(frames: NDArray[np.uint8], what: Augment, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Jitter and blur are those of a camera's settings, equal in all frames; noise is drawn anew for each."""
    if rng.random() < what.jitter:
        brightness = 1 + rng.uniform(-what.brightness, what.brightness)
        contrast = 1 + rng.uniform(-what.contrast, what.contrast)
        mean = float(frames.mean())
        levels = ((np.arange(256) - mean) * contrast + mean) * brightness
        frames = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[frames]
    if rng.random() < what.blur:
        sigma = rng.uniform(*_BLUR)
        frames = np.stack([cv2.GaussianBlur(f, (0, 0), sigma) for f in frames])
    if what.noise > 0:
        noise = rng.standard_normal(frames.shape, dtype=np.float32) * np.float32(rng.uniform(0, what.noise))
        frames = np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)
    return frames
