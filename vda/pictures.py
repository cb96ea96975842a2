"""Labels, predictions and flow as RGB images, and images as text for a page."""

from __future__ import annotations

import base64
import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from vda.data.clip import IGNORE, FlowField, Image, LabelMap

# Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011: seven corners of the colour circle,
# and as many of the 55 hues from each to the next as perception asks for.
_CORNERS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]])
_STEPS = (15, 6, 4, 11, 13, 6)


def _wheel() -> NDArray[np.float64]:
    """The 55 hues, [55, 3], 0 .. 255; whole numbers, since Middlebury's own code walks in whole numbers."""
    arcs = zip(_CORNERS[:-1], _CORNERS[1:], _STEPS, strict=True)
    walks = [255 * start + (end - start) * (255 * np.arange(n)[:, None] // n) for start, end, n in arcs]
    return np.concatenate(walks).astype(np.float64)


_WHEEL = _wheel()
_ERROR_SCALE = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_INFERNO).reshape(256, 3)[:, ::-1]
_UNSEEN = (0, 255, 255)  # cyan: inferno goes from black by red to yellow, and none of its colours comes near


def colour_label(label: LabelMap, palette: NDArray[np.uint8]) -> Image:
    """Label map [H, W] in the colours of `palette` [K, 3]; black where there is no label (255).

    Raises ValueError for a label that the palette does not have.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE] = 0
    _check_label(label, len(palette))
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
    vectors are darkened to three quarters. What the code of the Middlebury benchmark draws.
    """
    u, v = np.asarray(flow, np.float64)
    known = np.isfinite(u) & np.isfinite(v)
    u, v = np.where(known, u, 0) + 0.0, np.where(known, v, 0) + 0.0  # negative zero would turn the hue
    length = np.hypot(u, v)
    length /= largest or length.max(initial=0) or 1
    # A full turn is 54 steps, so hues 0 and 54 meet at the right: Middlebury's code does so, and so do its copies.
    place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(_WHEEL) - 1)
    first = place.astype(int)
    share = (place - first)[..., None]
    hue = (1 - share) * _WHEEL[first] + share * _WHEEL[(first + 1) % len(_WHEEL)]
    near = 255 - np.minimum(length, 1)[..., None] * (255 - hue)
    shown = np.where((length > 1)[..., None], 0.75 * hue, near)
    return np.where(known[..., None], shown, 0).astype(np.uint8)


def error_image(frame: Image, brought: NDArray[np.floating], visible: NDArray[np.bool_], largest: float = 64) -> Image:
    """Warp error: how far `frame` is from its neighbour brought onto it by flow, the mean over the channels.

    frame: [H, W, 3], 0 .. 255; brought: the same of any float type, NaN where the flow leads nowhere; visible: [H, W].
    The scale (inferno) goes from black for no error by red to light yellow for `largest` grey levels or more. What is
    not visible is half cyan, so that its error still shows, and all cyan where there is no error to show.

    Raises ValueError where the sizes differ.
    """
    for name, image in (("brought", brought), ("visible", visible)):
        if image.shape[:2] != frame.shape[:2]:
            raise ValueError(f"{name}: wanted the size {frame.shape[:2]} of frame, got {image.shape[:2]}")
    error = np.abs(frame - brought).mean(axis=-1)
    known = np.isfinite(error)
    level = np.rint(255 * np.minimum(np.where(known, error, 0) / largest, 1)).astype(np.uint8)
    shown = _ERROR_SCALE[level]
    marked = (shown.astype(int) + _UNSEEN) // 2
    shown = np.where(visible[..., None], shown, marked)
    return np.where(known[..., None], shown, _UNSEEN).astype(np.uint8)


def png(image: Image) -> bytes:
    """The image [H, W, 3] as the content of a PNG file."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    if not done:
        raise ValueError(f"image: cannot encode {list(image.shape)} as png")
    return data.tobytes()


def shrink(picture: NDArray[np.uint8], max_width: int) -> NDArray[np.uint8]:
    """An image [H, W, 3], averaged, or a map [H, W], sampled, scaled down to at most `max_width` pixels a row."""
    if picture.dtype != np.uint8 or picture.shape[2:] not in ((), (3,)) or picture.ndim < 2 or not picture.size:
        raise ValueError(f"picture: wanted uint8 [H, W, 3] or [H, W], got {picture.dtype} {list(picture.shape)}")
    height, width = picture.shape[:2]
    if width <= max_width:
        return picture
    size = (max_width, max(1, round(height * max_width / width)))
    how = cv2.INTER_NEAREST if picture.ndim == 2 else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)


def photo_uri(image: Image) -> str:
    """The image [H, W, 3] as a data URI of WebP, with losses: about a tenth of its PNG."""
    done, data = cv2.imencode(".webp", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, 80])
    if not done:
        raise ValueError(f"image: cannot encode {list(image.shape)} as webp")
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode()}"


def map_uri(label: LabelMap, colours: NDArray[np.uint8]) -> str:
    """The map [H, W] as a data URI of PNG: exact, in `colours` [K, 3], transparent where there is no label (255).

    Raises ValueError for a value that has no colour.
    """
    K = len(colours)
    _check_label(label, K)
    # 255 becomes the colour after the last: fewer colours take fewer bits a pixel
    picture = Pillow.fromarray(np.where(label == IGNORE, K, label).astype(np.uint8))
    picture.putpalette([*np.asarray(colours, np.uint8).ravel().tolist(), 0, 0, 0])
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=K, compress_level=7)  # 9 takes six times as long for a tenth less
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _check_label(label: LabelMap, classes: int) -> None:
    unknown = (label >= classes) & (label != IGNORE)
    if unknown.any():
        raise ValueError(f"label: wanted 0 .. {classes - 1} or {IGNORE}, got {label[unknown][0]}")
