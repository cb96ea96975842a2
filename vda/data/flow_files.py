"""Optical flow in files. In memory a flow is [2, H, W] float32, pixels, (u right, v down), NaN where unknown.

.flo    Middlebury: float32, little-endian; a component beyond 1e9 is unknown
.png    KITTI: 16 bit, 64 steps a pixel, third channel says whether the pixel is known
.npy    [2, H, W] or [H, W, 2]; int16 in tenths of a pixel (the "_int16_x10" files; -32768 is unknown), or floats
.npz    the same, as its only array or the one called "flow", or the components [H, W] as "u" and "v" (VIPER: half
        precision without a mask, so there what is not finite is unknown)
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vda.checkpoint import atomic_write
from vda.data.clip import FlowField
from vda.errors import UsageError

FLO_TAG = b"PIEH"  # 202021.25 as a float32
UNKNOWN = 1e9  # Middlebury: components beyond this are unknown
UNKNOWN_TENTHS = -32768
KITTI_STEPS, KITTI_ZERO = 64.0, 32768.0


def read_flow(path: str | Path) -> FlowField:
    """The flow in a file, by its suffix.

    Raises UsageError, naming the file, for a missing, damaged or foreign one, and for NaN and infinities, which no
    format but VIPER's means: they come from a computation that went wrong.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: wanted a flow file ({', '.join(READERS)}), found {path.suffix or 'no suffix'}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: wanted a flow file, cannot read it ({error.strerror})") from None
    return reader(path, data)


def write_flow(path: str | Path, flow: FlowField) -> None:
    """Writes a flow [2, H, W] in the format of the suffix (.flo, .png or .npy; .npy as int16 in tenths of a pixel).

    A .flo that is read and written again is the same, bit for bit. The others round: .png to 1/64 pixel within 512,
    .npy to 1/10 within 3276. Raises ValueError for a flow that the format cannot hold.
    """
    path = Path(path)
    flow = np.asarray(flow, np.float32)
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow: wanted shape [2, H, W], got {list(flow.shape)}")
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UsageError(
            f"{path}: wanted one of {', '.join(WRITERS)} to write a flow, got {path.suffix or 'no suffix'}"
        )
    atomic_write(path, writer(flow))


# ---- Middlebury .flo ----


def _read_flo(path: Path, data: bytes) -> FlowField:
    if len(data) < 12 or data[:4] != FLO_TAG:
        raise UsageError(f"{path}: wanted a .flo file, which begins with {FLO_TAG!r}, found {data[:4]!r}")
    width, height = struct.unpack("<ii", data[4:12])
    if width < 1 or height < 1 or len(data) != 12 + 8 * width * height:
        raise UsageError(
            f"{path}: wanted 12 + 8 x {width} x {height} bytes, as the header says, found {len(data)}; "
            "the file is damaged or cut short"
        )
    flow = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2).transpose(2, 0, 1).astype(np.float32)
    _refuse_nan(path, flow)
    return np.where((np.abs(flow) > UNKNOWN).any(0), np.float32(np.nan), flow)


def _write_flo(flow: FlowField) -> bytes:
    height, width = flow.shape[1:]
    known = np.isfinite(flow).all(0)
    values = np.where(known, flow, np.float32(1e10)).astype("<f4")
    return FLO_TAG + struct.pack("<ii", width, height) + np.ascontiguousarray(values.transpose(1, 2, 0)).tobytes()


# ---- KITTI .png ----


def _read_kitti(path: Path, data: bytes) -> FlowField:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None or image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        found = "no image" if image is None else f"{image.dtype} {list(image.shape)}"
        raise UsageError(f"{path}: wanted a KITTI flow image, 16 bit with three channels, found {found}")
    valid, v, u = image.astype(np.float32).transpose(2, 0, 1)  # OpenCV's order is BGR
    flow = (np.stack([u, v]) - np.float32(KITTI_ZERO)) / np.float32(KITTI_STEPS)
    return np.where(valid > 0, flow, np.float32(np.nan))


def _write_kitti(flow: FlowField) -> bytes:
    known = np.isfinite(flow).all(0)
    steps = np.rint(np.where(known, flow, 0) * KITTI_STEPS + KITTI_ZERO)
    if steps.min(initial=0) < 0 or steps.max(initial=0) > 65535:
        raise ValueError("flow: wanted components from -512 to 511.98 pixels, which a KITTI image can hold")
    image = np.where(known, np.stack([known.astype(np.float64), steps[1], steps[0]]), 0).transpose(1, 2, 0)
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(image, np.uint16))
    assert done
    return encoded.tobytes()


# ---- NumPy ----


def _read_npy(path: Path, data: bytes) -> FlowField:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UsageError(f"{path}: wanted a NumPy array, cannot read it ({error})") from None
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{path}: wanted a NumPy array, found an archive of them; call it .npz")
    return _from_array(path, array)


def _read_npz(path: Path, data: bytes) -> FlowField:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            names = archive.files
            name = "flow" if "flow" in names else names[0] if len(names) == 1 else None
            viper = name is None and {"u", "v"} <= {*names}
            array = np.stack([archive["u"], archive["v"]]) if viper else archive[name] if name else None
    except Exception as error:  # zipfile and numpy raise many kinds
        raise UsageError(f"{path}: wanted a NumPy archive, cannot read it ({error})") from None
    if array is None:
        raise UsageError(f"{path}: wanted one array, flow, or u and v, found {', '.join(names) or 'none'}")
    if viper and array.dtype.kind == "f":
        known = np.isfinite(array).all(0)
        return np.where(known, _from_array(path, np.where(known, array, 0)), np.float32(np.nan))
    return _from_array(path, array)


def _from_array(path: Path, array: NDArray[Any]) -> FlowField:
    if array.dtype not in (np.int16, np.float16, np.float32, np.float64):
        raise UsageError(f"{path}: wanted int16 (tenths of a pixel) or floating point, found {array.dtype}")
    if array.ndim != 3 or (array.shape[0] == 2) == (array.shape[2] == 2):
        raise UsageError(f"{path}: wanted shape [2, H, W] or [H, W, 2], found {list(array.shape)}")
    flow = array if array.shape[0] == 2 else array.transpose(2, 0, 1)
    if flow.dtype == np.int16:
        return from_tenths(np.ascontiguousarray(flow))
    _refuse_nan(path, flow)
    return np.ascontiguousarray(flow, np.float32)


def in_tenths(flow: FlowField) -> NDArray[np.int16]:
    """Tenths of a pixel; components beyond 3276.7 and unknown ones become -32768, which lies outside every frame."""
    tenths = np.rint(np.asarray(flow, np.float64) * 10)
    return np.where(np.abs(tenths) <= 32767, tenths, UNKNOWN_TENTHS).astype(np.int16)


def from_tenths(stored: NDArray[np.int16]) -> FlowField:
    """The reverse of `in_tenths`: pixels, NaN where unknown."""
    flow = stored.astype(np.float32) / np.float32(10)
    flow[stored == UNKNOWN_TENTHS] = np.nan
    return flow


def _write_npy(flow: FlowField) -> bytes:
    if np.abs(flow).max(initial=0, where=~np.isnan(flow)) > 3276.7:
        raise ValueError("flow: wanted known components within 3276.7 pixels, which int16 in tenths can hold")
    buffer = io.BytesIO()
    np.save(buffer, in_tenths(flow))
    return buffer.getvalue()


def _refuse_nan(path: Path, flow: NDArray[Any]) -> None:
    bad = int(flow.size - np.isfinite(flow).sum())
    if bad:
        raise UsageError(f"{path}: wanted finite flow, found {bad} components that are NaN or infinite")


READERS: dict[str, Callable[[Path, bytes], FlowField]] = {
    ".flo": _read_flo,
    ".png": _read_kitti,
    ".npy": _read_npy,
    ".npz": _read_npz,
}
WRITERS: dict[str, Callable[[FlowField], bytes]] = {".flo": _write_flo, ".png": _write_kitti, ".npy": _write_npy}
