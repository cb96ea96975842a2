"""Reading frames and label maps from files, strictly: what is not as it should be is refused by name.

Pillow instead of OpenCV: OpenCV turns palette labels into colours and half a JPEG into half a picture, both without
an error. Except for labels of 16 bits a channel, which Pillow turns into 8-bit zeros without one. Pillow does not look
at the checksums of a PNG's pixels, so that is done here; a JPEG has none.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from vda.checkpoint import atomic_write
from vda.data.clip import Image, LabelMap
from vda.errors import UsageError

IdTable = NDArray[np.int16]  # [256] train id of every raw id, UNKNOWN where there is none
UNKNOWN = -1

Colour = tuple[int, int, int]  # RGB, 0 .. 255
Colours = Mapping[Colour, int]  # colour -> id

# Left to itself, Pillow tries forty formats, and starts Ghostscript for one of them.
_FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP")
_IMAGE_MODES = ("RGB", "L", "RGBA", "P")
_PNG = b"\x89PNG\r\n\x1a\n"
# OpenCV packs runs of equal bytes, which labels are and their differences are not: a sixth of Pillow's time.
_LABEL_PNG = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
_PALETTES = tuple((bits, 3) for bits in (1, 2, 4, 8))
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


class UnknownLabel(UsageError):
    """A label file that is whole, but has values that nobody told the meaning of."""


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image, from its header alone. Raises UsageError naming the file where it is
    unreadable."""
    with _opened(path, path) as file:
        return file.height, file.width


def read_image(path: Path) -> Image:
    """[H, W, 3] uint8 RGB of an 8-bit image file: PNG, JPEG, PPM, BMP or WebP; transparency is left out.

    Raises UsageError naming the file when it is missing, no image, damaged (which the bytes of a JPEG do not always
    tell), an animation, of absurd size, or not of 8 bits a channel.
    """
    data = _content(path, "an image")
    with _opened(path, io.BytesIO(data)) as file:
        deep = data.startswith(_PNG) and data[24] == 16
        if file.mode not in _IMAGE_MODES or deep:  # Pillow drops half of the bits of a deep RGB image
            found = "16 bits a channel" if deep and file.mode in _IMAGE_MODES else f"mode {file.mode}"
            raise UsageError(f"{path}: wanted an 8-bit RGB or grey image, found {found}")
        return np.array(_decoded(file, path, data).convert("RGB"))


def check_label_header(path: Path, *, palette: bool = False) -> tuple[int, int]:
    """(height, width) of a label PNG, from its header alone.

    Raises UsageError naming the file unless it is a PNG of one 8-bit grey channel, or of palette indices
    where `palette` allows them. (Pillow would stretch 1- to 4-bit grey values over 0..255 without a word.)
    """
    kinds = ((8, 0), *_PALETTES) if palette else ((8, 0),)
    return _check_png(path, kinds, f"grey with 8 bits{' or a palette' * palette}")


def _check_png(path: Path, kinds: Collection[tuple[int, int]], wanted: str) -> tuple[int, int]:
    """(height, width) of a PNG whose (bits, colour type) is one of `kinds`."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError as error:
        raise UsageError(f"{path}: wanted a label image, found none ({error.strerror})") from None
    if len(head) < 26 or not head.startswith(_PNG):
        raise UsageError(f"{path}: wanted a PNG label image, found another or a truncated file")
    depth, kind = head[24], head[25]
    if (depth, kind) not in kinds:
        found = f"{depth}-bit {_PNG_KINDS.get(kind, 'unknown')}"
        raise UsageError(f"{path}: wanted a label PNG of {wanted}, found {found}")
    return int.from_bytes(head[20:24]), int.from_bytes(head[16:20])


def read_label(path: Path, *, palette: bool = False) -> LabelMap:
    """[H, W] uint8 raw ids of a label PNG. Errors as `check_label_header`, and for a truncated file."""
    check_label_header(path, palette=palette)
    data = _content(path, "a label image")
    with _opened(path, io.BytesIO(data)) as file:
        return np.array(_decoded(file, path, data))


def check_deep_label_header(path: Path) -> tuple[int, int]:
    """(height, width) of a label PNG of RGB with 16 bits, from its header alone. UsageError for another file."""
    return _check_png(path, ((16, 2),), "RGB with 16 bits")


def read_deep_label(path: Path) -> LabelMap:
    """[H, W] uint8 raw ids: the first channel of a label PNG of RGB with 16 bits.

    Errors as `check_deep_label_header`, and for a damaged file and an id above 255.
    """
    check_deep_label_header(path)
    data = _content(path, "a label image")
    _check_whole(path, data)
    with _opened(path, io.BytesIO(data)):  # refuses an absurd size
        pass
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise UsageError(f"{path}: wanted a whole image, found a damaged file")
    ids = image[..., 2]  # OpenCV's order is BGR
    if ids.max() > 255:
        raise UsageError(f"{path}: wanted class ids of at most 255 in the first channel, found {ids.max()}")
    return ids.astype(np.uint8)


def check_palette_label_header(path: Path) -> tuple[int, int]:
    """(height, width) of a palette PNG, from its header alone. UsageError for another file."""
    return _check_png(path, _PALETTES, "a palette")


def check_colour_label_header(path: Path) -> tuple[int, int]:
    """(height, width) of a label PNG of 8-bit colours or a palette, from its header alone. UsageError for another."""
    return _check_png(path, ((8, 2), *_PALETTES), "RGB with 8 bits or a palette")


def read_colour_label(path: Path, table: Colours, *, other: int | None = None) -> LabelMap:
    """[H, W] uint8 ids of the colours of a label PNG; a colour is exactly one of the table, never the nearest.

    table: colour -> id. other: the id of all colours that are not in the table; where it is None, such a colour is an
    UnknownLabel that names it. Errors as `check_colour_label_header`, and for a damaged file.
    """
    check_colour_label_header(path)
    data = _content(path, "a label image")
    with _opened(path, io.BytesIO(data)) as file:
        rgb = np.array(_decoded(file, path, data).convert("RGB"))
    codes = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA).view("<u4")[..., 0] & 0xFFFFFF
    ids = _id_of_every_colour(tuple(table.items()))[codes]
    unknown = ids == UNKNOWN
    if other is not None:
        ids[unknown] = other
    elif unknown.any():
        found = np.unique(rgb[unknown], axis=0)
        named = "; ".join(", ".join(map(str, colour)) for colour in found[:5].tolist())
        raise UnknownLabel(
            f"{path}: wanted the {len(table)} known colours, found {len(found)} others on {unknown.sum()} pixels: "
            f"{named}{' ...' if len(found) > 5 else ''}"
        )
    return ids.astype(np.uint8)


@lru_cache(maxsize=4)
def _id_of_every_colour(table: tuple[tuple[Colour, int], ...]) -> NDArray[np.int16]:
    """[2^24] ids by 65536 red + 256 green + blue: 32 MiB, and a tenth of the time of a search for each pixel."""
    ids = np.full(1 << 24, UNKNOWN, np.int16)
    for (red, green, blue), number in table:
        ids[red << 16 | green << 8 | blue] = number
    return ids


def write_label(path: Path, label: LabelMap) -> None:
    """Writes [H, W] uint8 ids as an 8-bit grey PNG, atomically; the folder is made where it is missing."""
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(f"label: wanted [H, W] uint8, got {list(label.shape)} {label.dtype}")
    _, png = cv2.imencode(".png", np.ascontiguousarray(label), _LABEL_PNG)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, png.tobytes())


def _content(path: Path, wanted: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: wanted {wanted}, found no file") from None
    except OSError as error:
        raise UsageError(f"{path}: wanted {wanted}, found an unreadable file ({_reason(error)})") from None


def _opened(path: Path, source: Path | io.BytesIO) -> Pillow.Image:
    """The image in `source`, which is the file at `path` or its content; only its header has been read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            return Pillow.open(source, formats=_FORMATS)
    except FileNotFoundError:
        raise UsageError(f"{path}: wanted an image, found no file") from None
    except Pillow.UnidentifiedImageError:
        raise UsageError(f"{path}: wanted an image, found an unreadable file (no {', '.join(_FORMATS)})") from None
    except (
        *(OSError, SyntaxError, ValueError, OverflowError, struct.error),
        *(Pillow.DecompressionBombError, Pillow.DecompressionBombWarning),
    ) as error:
        raise UsageError(f"{path}: wanted an image, found an unreadable file ({_reason(error)})") from None


def _decoded(file: Pillow.Image, path: Path, data: bytes) -> Pillow.Image:
    """`file`, opened from `data`, with its pixels."""
    if data.startswith(_PNG):
        _check_whole(path, data)
    try:
        pictures = getattr(file, "n_frames", 1)
        file.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UsageError(f"{path}: wanted a whole image, found a damaged file ({_reason(error)})") from None
    if pictures > 1 and file.format != "MPO":  # a camera's JPEG with its own preview behind it
        raise UsageError(f"{path}: wanted a single image, found an animation of {pictures}")
    return file


def _check_whole(path: Path, data: bytes) -> None:
    """Raises UsageError for a PNG in which a part is missing or differs from its checksum."""
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        checksum = data[end : end + 4]
        if len(checksum) < 4 or zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(checksum):
            raise UsageError(f"{path}: wanted a whole image, found a damaged file (checksum of byte {at} and on)")
        at = end + 4


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def id_table(train_ids: Mapping[int, int]) -> IdTable:
    """Table for `to_train_ids` from raw id -> train id (255 is ignored); raw ids not named are unknown."""
    table = np.full(256, UNKNOWN, np.int16)
    for raw, train in train_ids.items():
        if not (0 <= raw <= 255 and 0 <= train <= 255):
            raise ValueError(f"train_ids: wanted ids of 0..255, got {raw} -> {train}")
        table[raw] = train
    return table


def to_train_ids(raw: LabelMap, table: IdTable, path: Path) -> LabelMap:
    """[H, W] train ids of raw ids. Raises UsageError naming the file and the ids unknown to the table."""
    present = np.flatnonzero(np.bincount(raw.ravel(), minlength=256))
    unknown = [int(i) for i in present if table[i] == UNKNOWN]
    if unknown:
        known = ", ".join(str(i) for i in np.flatnonzero(table != UNKNOWN))
        raise UnknownLabel(f"{path}: wanted label values {known}, found {', '.join(map(str, unknown))}")
    return table[raw].astype(np.uint8)


def check_same_size(label: tuple[int, int], image: tuple[int, int], label_path: Path, image_path: Path) -> None:
    """Raises UsageError naming both files where two sizes (height, width) differ."""
    if label != image:
        raise UsageError(
            f"{label_path}: wanted the size of {image_path.name}, {image[1]} x {image[0]} pixels, "
            f"found {label[1]} x {label[0]}"
        )
