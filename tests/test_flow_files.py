"""Flow files: bit-exact, refused where damaged, rounding where the format rounds."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from shared import shared_data

from vda.data.flow_files import read_flow, write_flow
from vda.errors import UsageError


def random_flow(H: int = 5, W: int = 7) -> np.ndarray:
    return np.random.default_rng(0).uniform(-40, 40, (2, H, W)).astype(np.float32)


def test_flo_by_hand(tmp_path: Path) -> None:
    """Two pixels side by side: u0, v0, u1, v1 after tag, width and height."""
    path = tmp_path / "a.flo"
    path.write_bytes(struct.pack("<fii4f", 202021.25, 2, 1, 1.5, -2.0, 3.0, 0.25))
    assert read_flow(path).tolist() == [[[1.5, 3.0]], [[-2.0, 0.25]]]


def test_flo_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    given = shared_data("flow", "chairs0_flow.flo")
    write_flow(tmp_path / "a.flo", read_flow(given))
    assert (tmp_path / "a.flo").read_bytes() == given.read_bytes()
    flow = random_flow()
    write_flow(tmp_path / "b.flo", flow)
    assert np.array_equal(read_flow(tmp_path / "b.flo"), flow)


@pytest.mark.parametrize("suffix", [".flo", ".png", ".npy"])
def test_unknown_pixels(tmp_path: Path, suffix: str) -> None:
    flow = random_flow()
    flow[:, 1, 2] = np.nan
    path = tmp_path / f"a{suffix}"
    write_flow(path, flow)
    found = read_flow(path)
    assert np.isnan(found[:, 1, 2]).all()
    assert np.isfinite(found).sum() == found.size - 2


def test_kitti_by_hand(tmp_path: Path) -> None:
    """Red is u, green is v, blue says known; 64 steps a pixel around 2^15."""
    image = np.zeros((1, 2, 3), np.uint16)
    image[0, 0] = (1, 32768 - 64, 32768 + 96)  # OpenCV's order: blue, green, red
    cv2.imwrite(str(tmp_path / "a.png"), image)
    found = read_flow(tmp_path / "a.png")
    assert found[:, 0, 0].tolist() == [1.5, -1.0]
    assert np.isnan(found[:, 0, 1]).all()


def test_rounding(tmp_path: Path) -> None:
    flow = random_flow()
    for suffix, step in ((".png", 1 / 64), (".npy", 1 / 10)):
        write_flow(tmp_path / f"a{suffix}", flow)
        assert np.abs(read_flow(tmp_path / f"a{suffix}") - flow).max() <= step / 2 + 1e-6
    assert np.load(tmp_path / "a.npy").dtype == np.int16


def test_numpy_files(tmp_path: Path) -> None:
    flow = random_flow()
    np.save(tmp_path / "a.npy", flow.astype(np.float16).transpose(1, 2, 0))
    assert np.array_equal(read_flow(tmp_path / "a.npy"), flow.astype(np.float16).astype(np.float32))
    np.savez(tmp_path / "a.npz", flow=flow, other=np.zeros(3))
    assert np.array_equal(read_flow(tmp_path / "a.npz"), flow)
    np.savez(tmp_path / "b.npz", anything=flow)
    assert np.array_equal(read_flow(tmp_path / "b.npz"), flow)
    np.savez(tmp_path / "c.npz", v=flow[1], u=flow[0])
    assert np.array_equal(read_flow(tmp_path / "c.npz"), flow)


def damaged_flo(kind: str) -> bytes:
    good = struct.pack("<fii4f", 202021.25, 2, 1, 1.5, -2.0, 3.0, 0.25)
    return {
        "tag": b"XXXX" + good[4:],
        "cut": good[:-3],
        "size": good[:4] + struct.pack("<ii", 1 << 20, 1 << 20) + good[12:],
        "negative": good[:4] + struct.pack("<ii", -2, -1) + good[12:],
        "empty": b"",
        "nan": struct.pack("<fii4f", 202021.25, 2, 1, float("nan"), -2.0, 3.0, 0.25),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tag", "wanted a .flo file, which begins with b'PIEH', found b'XXXX'"),
        ("cut", "as the header says, found 25; the file is damaged or cut short"),
        ("size", "wanted 12 . 8 x 1048576 x 1048576 bytes"),
        ("negative", "the file is damaged or cut short"),
        ("empty", "wanted a .flo file"),
        ("nan", "wanted finite flow, found 1 components that are NaN or infinite"),
    ],
)
def test_damaged_flo(tmp_path: Path, kind: str, message: str) -> None:
    (tmp_path / "a.flo").write_bytes(damaged_flo(kind))
    with pytest.raises(UsageError, match=message) as error:
        read_flow(tmp_path / "a.flo")
    assert str(error.value).startswith(str(tmp_path / "a.flo"))
    assert "\n" not in str(error.value)


def test_foreign_files(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((3, 4), np.uint8))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "no.png").write_bytes(b"")
    np.save(tmp_path / "int.npy", np.zeros((2, 3, 4), np.int64))
    np.save(tmp_path / "shape.npy", np.zeros((3, 4, 5), np.float32))
    np.save(tmp_path / "nan.npy", np.full((2, 3, 4), np.nan, np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    for name, message in {
        "grey.png": "wanted a KITTI flow image, 16 bit with three channels, found uint8",
        "no.png": "found no image",
        "text.npy": "wanted a NumPy array, cannot read it",
        "objects.npy": "wanted a NumPy array, cannot read it",
        "text.npz": "wanted a NumPy archive, cannot read it",
        "int.npy": "wanted int16 .* or floating point, found int64",
        "shape.npy": r"wanted shape \[2, H, W\] or \[H, W, 2\], found \[3, 4, 5\]",
        "nan.npy": "wanted finite flow, found 24 components",
        "two.npz": "wanted one array, flow, or u and v, found a, b",
        "missing.flo": "wanted a flow file, cannot read it",
        "flow.txt": r"wanted a flow file \(.flo, .png, .npy, .npz\), found .txt",
    }.items():
        with pytest.raises(UsageError, match=message) as error:
            read_flow(tmp_path / name)
        assert "\n" not in str(error.value)


def test_what_a_format_cannot_hold(tmp_path: Path) -> None:
    for name, value in (("a.png", 600.0), ("a.npy", 4000.0), ("a.npy", np.inf)):
        with pytest.raises(ValueError, match="flow: wanted"):
            write_flow(tmp_path / name, np.full((2, 3, 4), value, np.float32))
    with pytest.raises(ValueError, match=r"flow: wanted shape \[2, H, W\], got \[3, 4\]"):
        write_flow(tmp_path / "a.flo", np.zeros((3, 4), np.float32))
    with pytest.raises(UsageError, match=r"to write a flow, got \.npz"):
        write_flow(tmp_path / "a.npz", random_flow())
    assert not list(tmp_path.iterdir())
