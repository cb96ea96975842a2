"""Labels, predictions and flow as RGB images, and images as text for a page."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from vda.data.clip import IGNORE, FlowField, Image, LabelMap

# Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011: hues around the circle,
# with the share of the circle that perception asks for. Position on the wheel (of 55) and RGB there, linear
# in between.
_WHEEL_AT = (0, 15, 21, 25, 36, 49, 55)
_WHEEL_RGB = (
    (255, 255, 0, 0, 0, 255, 255),  # red, yellow, green, cyan, blue, magenta, red
    (0, 255, 255, 255, 0, 0, 0),
    (0, 0, 0, 255, 255, 255, 0),
)


def colour_label(label: LabelMap, palette: NDArray[np.uint8]) -> Image:
    """Label map [H, W] in the colours of `palette` [K, 3]; black where there is no label (255).

    Raises ValueError for a label that the palette does not have.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE] = 0
    unknown = (label >= len(palette)) & (label != IGNORE)
    if unknown.any():
        raise ValueError(f"label: wanted 0 .. {len(palette) - 1} or {IGNORE}, got {label[unknown][0]}")
    return table[label]


def overlay(frame: Image, label: LabelMap, palette: NDArray[np.uint8], alpha: float = 0.55) -> Image:
    """`frame` [H, W, 3] under its label colours, which weigh `alpha`; untouched where there is no label
    (255)."""
    if frame.shape[:2] != label.shape:
        raise ValueError(f"label: wanted the size {frame.shape[:2]} of frame, got {label.shape}")
    mixed = (1 - alpha) * frame + alpha * colour_label(label, palette)
    return np.where((label == IGNORE)[..., None], frame, np.rint(mixed).astype(np.uint8))


def flow_image(flow: FlowField, largest: float | None = None) -> Image:
    """Flow [2, H, W] on the Middlebury colour wheel: hue is direction, saturation is length.

    Right is red, down yellow, left blue-cyan, up violet; still is white; unknown (not finite) is black.
    largest: the length in pixels that gets full saturation, the longest in `flow` where not given; longer
    vectors are darkened.
    """
    u, v = np.asarray(flow, np.float64)
    known = np.isfinite(u) & np.isfinite(v)
    u, v = np.where(known, u, 0), np.where(known, v, 0)
    length = np.hypot(u, v)
    length /= largest or length.max(initial=0) or 1
    place = (np.arctan2(-v, -u) / (2 * np.pi) + 0.5) * 55
    hue = np.stack([np.interp(place, _WHEEL_AT, channel, period=55) for channel in _WHEEL_RGB], axis=-1)
    near = 255 - np.minimum(length, 1)[..., None] * (255 - hue)
    shown = np.where((length > 1)[..., None], 0.75 * hue, near)
    return np.where(known[..., None], np.rint(shown), 0).astype(np.uint8)


def png(image: Image) -> bytes:
    """The image [H, W, 3] as the content of a PNG file."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    if not done:
        raise ValueError(f"image: cannot encode {list(image.shape)} as png")
    return data.tobytes()


def data_uri(image: Image, max_width: int) -> str:
    """The image [H, W, 3] as a data URI, scaled down to `max_width`.

    Flat colours (labels, masks) become PNG, which keeps them exact; photographs become WebP, about a tenth in
    size.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image: wanted uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    height, width = image.shape[:2]
    flat = _is_flat(image)
    if width > max_width:
        size = (max_width, max(1, round(height * max_width / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if flat else cv2.INTER_AREA)  # type: ignore[assignment]
    kind, options = ("png", [cv2.IMWRITE_PNG_COMPRESSION, 9]) if flat else ("webp", [cv2.IMWRITE_WEBP_QUALITY, 82])
    done, data = cv2.imencode(f".{kind}", np.ascontiguousarray(image[..., ::-1]), options)
    if not done:
        raise ValueError(f"image: cannot encode {list(image.shape)} as {kind}")
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def _is_flat(image: Image) -> bool:
    codes = image.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    # A photograph shows itself in a few of its rows; sorting all of it is for the rest.
    return len(np.unique(codes[::16])) <= 256 and len(np.unique(codes)) <= 256
