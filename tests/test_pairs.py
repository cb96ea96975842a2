"""pairs: the layout of FlyingChairs, in files that the test makes, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from vda.data import open_dataset
from vda.data.flow_files import write_flow
from vda.data.pairs import pairs
from vda.errors import UsageError

H, W = 12, 20
IMAGES = ("_img1.ppm", "_img2.ppm")


def image(seed: int, size: tuple[int, int] = (H, W)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write(root: Path, name: str, images: tuple[str, ...] = IMAGES, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """One pair; its flow, (3, -2) everywhere but for an unknown pixel in the corner."""
    for k, suffix in enumerate(images):
        Pillow.fromarray(image(k, size)).save(root / f"{name}{suffix}")
    flow = np.tile(np.array([3, -2], np.float32)[:, None, None], (1, *size))
    flow[:, 0, 0] = np.nan
    write_flow(root / f"{name}_flow.flo", flow)
    return flow


def test_layout(tmp_path: Path) -> None:
    flow = write(tmp_path, "00002")
    write(tmp_path, "00001")
    write(tmp_path, "a_img[1]", ("_img0.png", "_img1.png"))  # what a pattern would take for its own
    for other in ("README.md", "00001_img3.txt", "thumbs_img1.png"):
        (tmp_path / other).write_text("")
    data = open_dataset("pairs/all", tmp_path, None)
    assert (data.name, data.classes, data.size) == ("pairs/all", (), (H, W))
    assert [clip.name for clip in data.clips] == ["00001", "00002", "a_img[1]"]
    clip = data.clips[1]
    assert len(clip) == 2
    assert clip.frame_names == ("00002_img1", "00002_img2")
    for i in (0, 1):
        np.testing.assert_array_equal(clip.frame(i), image(i))
        assert clip.label(i) is None
    np.testing.assert_array_equal(clip.exact_flow(0, 1), flow)
    assert clip.exact_flow(1, 0) is None


def test_every_pair_at_its_own_size(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b", size=(7, 9))
    sizes = []
    for clip in pairs("all", root=tmp_path).clips:
        flow = clip.exact_flow(0, 1)
        assert flow is not None
        sizes.append((clip.frame(0).shape[:2], clip.frame(1).shape[:2], flow.shape[1:]))
    assert sizes == [((H, W),) * 3, ((7, 9),) * 3]


@pytest.mark.parametrize("size", [(H, W), (6, 10), (24, 20), (12, 10), (5, 33)])
def test_flow_is_scaled_with_the_images(tmp_path: Path, size: tuple[int, int]) -> None:
    write(tmp_path, "a")
    data = pairs("all", root=tmp_path, size=size)
    clip = data.clips[0]
    flow = clip.exact_flow(0, 1)
    assert data.size == size
    assert clip.frame(0).shape == clip.frame(1).shape == (*size, 3)
    assert flow is not None
    assert (flow.dtype, flow.shape) == (np.float32, (2, *size))
    known = np.isfinite(flow).all(0)
    assert not known[0, 0]
    assert known.mean() > 0.8
    wanted = np.float32([3 * size[1] / W, -2 * size[0] / H])
    np.testing.assert_allclose(flow[:, known].T, np.tile(wanted, (known.sum(), 1)), rtol=1e-5)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for root in (None, tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(
            UsageError, match=r"^pairs: wanted a folder of NAME_img\* and NAME_flow.flo as root, found "
        ):
            pairs("all", root=root)
    with pytest.raises(UsageError, match=r"wanted files NAME_flow.flo, found none"):
        pairs("all", root=tmp_path)
    write(tmp_path, "a")
    with pytest.raises(UsageError, match=r"^pairs: wanted the split all, found 'train'$"):
        pairs("train", root=tmp_path)
    with pytest.raises(UsageError, match=r"^pairs: wanted a size of at least 1 x 1, found 0 x 9$"):
        pairs("all", root=tmp_path, size=(0, 9))


@pytest.mark.parametrize("images", [(), IMAGES[:1], (*IMAGES, "_img3.png")])
def test_a_flow_wants_two_images(tmp_path: Path, images: tuple[str, ...]) -> None:
    write(tmp_path, "a", images)
    with pytest.raises(UsageError, match=rf"a_flow.flo: wanted two images a_img\* beside it, found {len(images)}$"):
        pairs("all", root=tmp_path)


@pytest.mark.parametrize("size", [None, (6, 10)])
def test_files_of_two_sizes(tmp_path: Path, size: tuple[int, int] | None) -> None:
    write(tmp_path, "a")
    clip = pairs("all", root=tmp_path, size=size).clips[0]
    write_flow(tmp_path / "a_flow.flo", np.zeros((2, W, H), np.float32))
    with pytest.raises(UsageError, match=r"a_flow.flo: wanted the size of a_img1.ppm, 20 x 12 pixels, found 12 x 20"):
        clip.exact_flow(0, 1)
    Pillow.fromarray(image(0, (H, W + 1))).save(tmp_path / "a_img2.ppm")
    for read in (lambda: clip.frame(0), lambda: clip.frame(1), lambda: clip.exact_flow(0, 1)):
        with pytest.raises(UsageError, match=r"a_img2.ppm: wanted the size of a_img1.ppm, .* found 21 x 12"):
            read()


@pytest.mark.parametrize("content", [b"", b"half of a file"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, "a")
    clip = pairs("all", root=tmp_path).clips[0]
    (tmp_path / "a_flow.flo").write_bytes(content)
    with pytest.raises(UsageError, match=r"a_flow.flo: wanted a .flo file"):
        clip.exact_flow(0, 1)
    (tmp_path / "a_img1.ppm").write_bytes(content)
    with pytest.raises(UsageError, match=r"a_img1.ppm: wanted an image"):
        clip.frame(0)
