"""SYNTHIA-Seq's layouts, its labels of 16 bits, lists of sequences, cameras and frames."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vda.data import IGNORE, open_dataset
from vda.data.labels import read_deep_label
from vda.data.synthia_seq import synthia_seq
from vda.errors import UsageError

H, W, KEPT = 19, 8, 16  # 19 rows to 760 are 16 to 640
FRONT = "Stereo_Left/Omni_F"


def write_label(path: Path, ids: np.ndarray) -> Path:
    """16 bits, three channels: class, instance, nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.stack([ids, ids + 300, np.zeros_like(ids)], -1).astype(np.uint16)
    assert cv2.imwrite(str(path), rgb[..., ::-1])
    return path


def add(folder: Path, images: str, labels: str, numbers: range) -> None:
    rng = np.random.default_rng(len(str(images)))
    (folder / images).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(rng.integers(0, 256, (H, W, 3), dtype=np.uint8)).save(folder / images / f"{number:06d}.png")
        write_label(folder / labels / f"{number:06d}.png", (np.arange(H * W).reshape(H, W) + number) % 16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """04-DAWN as it comes, two cameras; 02-FALL flattened."""
    for camera, numbers in ((FRONT, range(5)), ("Stereo_Right/Omni_B", range(2))):
        add(tmp_path / "SYNTHIA-SEQS-04-DAWN", f"RGB/{camera}", f"GT/LABELS/{camera}", numbers)
    add(tmp_path / "SEQS-02-FALL", "rgb", "label", range(1, 4))
    (tmp_path / "town.txt").write_text(
        f"04-DAWN {FRONT} 0-1  # a part\n04-DAWN 3-4\n02-FALL\n04-DAWN Stereo_Right/Omni_B\n"
    )
    return tmp_path


def test_sequences_and_lists(root: Path) -> None:
    dawn = open_dataset("synthia-seq/04-DAWN", root, (KEPT, W))
    assert dawn.name == "synthia-seq/04-DAWN"
    assert dawn.classes == (
        "road", "sidewalk", "building", "pole", "traffic light", "traffic sign", "vegetation", "sky", "person",
        "rider", "car",
    )  # fmt: skip
    assert [(clip.name, len(clip)) for clip in dawn.clips] == [("04-DAWN-Stereo_Left-Omni_F-000000", 5)]
    assert {clip.name: list(clip.frame_names) for clip in synthia_seq("town", root=root).clips} == {
        "04-DAWN-Stereo_Left-Omni_F-000000": ["000000", "000001"],
        "04-DAWN-Stereo_Left-Omni_F-000003": ["000003", "000004"],
        "02-FALL-000001": ["000001", "000002", "000003"],
        "04-DAWN-Stereo_Right-Omni_B-000000": ["000000", "000001"],
    }
    for kind in ("RGB", "GT/LABELS"):
        (root / "SYNTHIA-SEQS-04-DAWN" / kind / FRONT / "000002.png").unlink()
    assert [len(clip) for clip in synthia_seq("04-DAWN", root=root).clips] == [2, 2]


@pytest.mark.parametrize(
    ("class_map", "pairs"),
    [
        ("paper-11", {3: 0, 4: 1, 2: 2, 7: 3, 15: 4, 9: 5, 6: 6, 1: 7, 10: 8, 11: 9, 8: 10}),
        ("paper-11-merged", {3: 0, 12: 0, 4: 1, 2: 2, 7: 3, 15: 4, 9: 5, 6: 6, 1: 7, 10: 8, 11: 9, 8: 10}),
        ("davsn-12", {3: 0, 4: 1, 2: 2, 5: 3, 7: 4, 15: 5, 9: 6, 6: 7, 1: 8, 10: 9, 11: 10, 8: 11}),
    ],
)
def test_frames_and_labels(root: Path, class_map: str, pairs: dict[int, int]) -> None:
    clip = synthia_seq(f"04-DAWN:{class_map}", root=root, size=(KEPT, W)).clips[0]
    raw = (np.arange(H * W).reshape(H, W) + 3) % 16
    wanted = np.vectorize(lambda i: pairs.get(i, IGNORE))(raw)
    assert np.array_equal(clip.label(3), wanted[:KEPT])
    whole = synthia_seq(f"04-DAWN:bonnet:{class_map}", root=root, size=(H, W)).clips[0]
    assert np.array_equal(whole.label(3), wanted)
    with Image.open(root / "SYNTHIA-SEQS-04-DAWN/RGB" / FRONT / "000003.png") as file:
        assert np.array_equal(whole.frame(3), np.array(file))
        assert np.array_equal(clip.frame(3), np.array(file)[:KEPT])
    assert clip.exact_flow(0, 1) is None


def test_deep_labels(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 16, (H, W))
    path = write_label(tmp_path / "l.png", ids)
    with Image.open(path) as file:
        assert not np.array(file)[..., 0].any()  # why Pillow does not read these
    assert np.array_equal(read_deep_label(path), ids)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"l\.png: wanted"):
            read_deep_label(path)
    for place in range(60, len(whole) - 16, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UsageError, match=r"l\.png: wanted a whole image, found a damaged file"):
            read_deep_label(path)
    path.write_bytes(whole[:16] + b"\x7f\xff\xff\xff" * 2 + whole[24:])
    with pytest.raises(UsageError, match=r"l\.png: wanted a whole image, found a damaged file"):
        read_deep_label(path)
    write_label(path, ids + 256)
    with pytest.raises(UsageError, match=r"l\.png: wanted class ids of at most 255 in the first channel, found 271"):
        read_deep_label(path)
    Image.fromarray(np.zeros((H, W), np.uint16)).save(path)
    with pytest.raises(UsageError, match=r"l\.png: wanted a label PNG of RGB with 16 bits, found 16-bit grey"):
        read_deep_label(path)


def refused(root: Path, split: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        synthia_seq(split, root=root)
    assert "\n" not in str(error.value)


def test_wrong_files_are_named(root: Path) -> None:
    refused(root, "05-SPRING", r"05-SPRING\.txt: wanted a sequence, as 04-DAWN, or here a list .*found no file")
    refused(root, "..", "wanted a split of letters")
    refused(root, "04-DAWN:paper-15", "wanted, after the colon, paper-11, paper-11-merged, davsn-12, bonnet; found")
    for line, match in {
        "04-DAWN Omni_F": r"line 1: wanted SEQUENCE \[Stereo_Left/Omni_F\] \[FIRST-LAST\], found '04-DAWN Omni_F'",
        "05-FALL": "line 1: wanted a sequence in .*, found no folder SYNTHIA-SEQS-05-FALL",
        "../04-DAWN": "line 1: wanted SEQUENCE",
        "04-DAWN 3-5": "line 1: wanted frames 3-5 of .*found not all of them",
        "04-DAWN 4-3": "line 1: wanted frames 4-3",
        f"02-FALL {FRONT}": "line 1: wanted no camera, since .*SEQS-02-FALL is of one",
        "04-DAWN Stereo_Left/Omni_R": r"Stereo_Left/Omni_R: wanted a folder of FFFFFF\.png, found none",
        "04-DAWN 0-1\n04-DAWN 0-2": "wanted every run of frames once, found 04-DAWN-Stereo_Left-Omni_F-000000 2 times",
    }.items():
        (root / "bad.txt").write_text(line)
        refused(root, "bad", match)
    label = root / "SEQS-02-FALL/label/000002.png"
    Image.fromarray(np.zeros((H, W), np.uint8)).save(label)
    refused(root, "02-FALL", r"000002\.png: wanted a label PNG of RGB with 16 bits, found 8-bit grey")
    write_label(label, np.zeros((H, W + 1), int))
    refused(root, "02-FALL", r"000002\.png: wanted the size of 000002\.png, 8 x 19 pixels, found 9 x 19")
    write_label(label, np.full((H, W), 16))
    with pytest.raises(UsageError, match=r"000002\.png: wanted label values 0, .*, 15, found 16"):
        synthia_seq("02-FALL", root=root).clips[0].label(1)
    label.unlink()
    refused(root, "02-FALL", r"label/000002\.png: wanted the label of frame 000002\.png, found no file")
    (root / "SEQS-02-FALL/rgb/000002.png").rename(root / "SEQS-02-FALL/rgb/2.png")
    refused(root, "02-FALL", r"rgb/2\.png: wanted a name like FFFFFF\.png, found another")
