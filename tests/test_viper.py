"""VIPER's layout: lists, downloads that are cut by digits, palette labels, the camera's own car, flow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vda.data import IGNORE, open_dataset
from vda.data.class_maps import CLASS_MAPS, COLOURS, KNOWN, class_table, maps_of
from vda.data.viper import viper
from vda.errors import UsageError

H, W = 6, 10
PAPER = [
    *("road", "sidewalk", "building", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain"),
    *("sky", "person", "car", "truck", "bus", "motorcycle"),
]  # in the order of the columns of Tables 1 and 2


def write(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if mode == "P":  # one colour for two ids, as van and train have in VIPER: only the indices tell them apart
        image = Image.frombytes("P", pixels.shape[::-1], pixels.tobytes())
        image.putpalette([0, 80, 100] * 256)
    image.save(path)
    return path


def add(root: Path, part: str, sequence: str, number: int, ids: np.ndarray | None, suffix: str = "jpg") -> None:
    rng = np.random.default_rng([int(sequence), number])
    stem = f"{sequence}/{sequence}_{number:05d}"
    write(root / part / "img" / f"{stem}.{suffix}", rng.integers(0, 256, (H, W, 3), dtype=np.uint8))
    if ids is not None:
        write(root / part / "cls" / f"{stem}.png", ids, "P")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train 001: frames 9 to 12 and 20, 21; train 002: 1 to 3 as png; val 001: 1, 2; test 001: 1, 2."""
    for number in (9, 10, 11, 12, 20, 21):
        add(tmp_path, "train", "001", number, np.full((H, W), number, np.uint8))
    for number in (1, 2, 3):
        add(tmp_path, "train", "002", number, np.arange(H * W, dtype=np.uint8).reshape(H, W) % 32, "png")
    for number in (1, 2):
        add(tmp_path, "val", "001", number, np.zeros((H, W), np.uint8))
        add(tmp_path, "test", "001", number, None)
    (tmp_path / "day.txt").write_text("# by day\n002\n\nval/001  # of val\n")
    return tmp_path


def test_clips_end_at_gaps(root: Path) -> None:
    data = open_dataset("viper/train", root, (H, W))
    assert data.name == "viper/train"
    assert list(data.classes) == PAPER
    assert {clip.name: list(clip.frame_names) for clip in data.clips} == {
        "train-001-00009": ["001_00009", "001_00010", "001_00011", "001_00012"],
        "train-001-00020": ["001_00020", "001_00021"],
        "train-002-00001": ["002_00001", "002_00002", "002_00003"],
    }
    clip = data.clips[1]
    with Image.open(root / "train/img/001/001_00021.jpg") as file:
        assert np.array_equal(clip.frame(1), np.array(file))
    assert viper("train", root=root, size=(3, 5)).clips[0].label(0).shape == (3, 5)


def test_lists_and_parts(root: Path) -> None:
    def names(split: str) -> list[str]:
        return [clip.name for clip in viper(split, root=root).clips]

    assert names("day") == ["train-002-00001", "val-001-00001"]
    assert names("val") == ["val-001-00001"]
    test = viper("test", root=root).clips[0]
    assert test.label(0) is None
    assert test.frame(0).shape == (720, 1280, 3)


@pytest.mark.parametrize(
    ("class_map", "pairs"),
    [  # VIPER id -> class, by the tables of the papers
        ("paper-15", {3: 0, 4: 1, 9: 2, 11: 3, 10: 4, 13: 5, 14: 6, 7: 7, 8: 7, 6: 8, 2: 9, 20: 10, 24: 11, 27: 12,
                      26: 13, 23: 14}),
        ("paper-15-merged", {3: 0, 4: 1, 9: 2, 11: 3, 10: 4, 13: 5, 14: 6, 7: 7, 8: 7, 6: 8, 2: 9, 20: 10, 24: 11,
                             25: 11, 27: 12, 26: 13, 23: 14}),
        ("davsn-15", {3: 0, 4: 1, 9: 2, 11: 3, 13: 4, 14: 5, 7: 6, 8: 6, 6: 7, 2: 8, 20: 9, 24: 10, 27: 11, 26: 12,
                      23: 13, 22: 14}),
    ],
)  # fmt: skip
def test_palette_indices_become_classes(root: Path, class_map: str, pairs: dict[int, int]) -> None:
    clip = viper(f"day:{class_map}:ego", root=root, size=(H, W)).clips[0]
    raw = np.arange(H * W).reshape(H, W) % 32
    wanted = np.vectorize(lambda i: pairs.get(i, IGNORE))(raw)
    assert np.array_equal(clip.label(0), wanted)
    assert clip.label(0).dtype == np.uint8


def test_the_cameras_own_car_is_ignored(root: Path) -> None:
    ids = np.full((H, W), 3, np.uint8)
    ids[4:, 3:8] = 24  # touches the middle of the bottom row
    ids[3, 8] = 24  # by a corner
    ids[0, 0] = ids[3, 0] = 24  # other cars
    write(root / "train/cls/002/002_00002.png", ids, "P")
    mine = np.zeros((H, W), bool)
    mine[4:, 3:8] = mine[3, 8] = True
    label = viper("day", root=root, size=(H, W)).clips[0].label(1)
    assert (label[mine] == IGNORE).all()
    assert np.array_equal(label[~mine], np.where(ids == 24, 11, 0)[~mine])
    kept = viper("day:ego", root=root, size=(H, W)).clips[0].label(1)
    assert np.array_equal(kept, np.where(ids == 24, 11, 0))
    ids[5, 5] = 3  # now the middle is road
    write(root / "train/cls/002/002_00002.png", ids, "P")
    assert np.array_equal(viper("day", root=root, size=(H, W)).clips[0].label(1), np.where(ids == 24, 11, 0))


def test_flow_to_the_next_frame(root: Path) -> None:
    rng = np.random.default_rng(0)
    u, v = rng.normal(0, 3, (2, H, W)).astype(np.float16)
    u[0, 0], v[5, 9] = np.nan, np.inf
    (root / "train/flow/002").mkdir(parents=True)
    np.savez_compressed(root / "train/flow/002/002_00002.npz", u=u, v=v)
    clip = viper("day", root=root, size=(H, W)).clips[0]
    flow = clip.exact_flow(1, 2)
    known = np.ones((H, W), bool)
    known[0, 0] = known[5, 9] = False
    assert np.array_equal(flow[:, known], np.stack([u, v]).astype(np.float32)[:, known])
    assert np.isnan(flow[:, ~known]).all()
    assert clip.exact_flow(0, 1) is clip.exact_flow(1, 0) is clip.exact_flow(1, 1) is None
    np.savez(root / "train/flow/002/002_00001.npz", u=np.full((H, W), 4, np.float16), v=np.full((H, W), 6, np.float16))
    double = viper("day", root=root, size=(2 * H, 3 * W)).clips[0].exact_flow(0, 1)
    assert double.shape == (2, 2 * H, 3 * W)
    assert (double[0] == 12).all()
    assert (double[1] == 12).all()
    np.savez(root / "train/flow/002/002_00001.npz", u=u[:3], v=v[:3])
    with pytest.raises(UsageError, match=r"002_00001\.npz: wanted the size of 002_00001\.png, 10 x 6 .* found 10 x 3"):
        clip.exact_flow(0, 1)


def test_only_downloads_that_are_here_twice_are_used(root: Path) -> None:
    for number in (12,):  # the package of the digits 2 to 9
        (root / f"train/cls/001/001_{number:05d}.png").unlink()
    (root / "train/cls/001/001_00009.png").unlink()
    (root / "train/img/001/001_00011.jpg").unlink()
    (root / "train/img/001/001_00021.jpg").unlink()  # no image of the digit 1 is left
    found = [list(clip.frame_names) for clip in viper("train", root=root).clips[:2]]
    assert found == [["001_00010"], ["001_00020"]]


def refused(root: Path, split: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        viper(split, root=root)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(root: Path) -> None:
    label = root / "train/cls/001/001_00020.png"
    whole = label.read_bytes()
    label.unlink()
    refused(root, "train", r"cls/001/001_00020\.png: wanted the label of frame 001_00020\.jpg, found no file")
    label.write_bytes(whole)
    image = root / "train/img/001/001_00010.jpg"
    image.rename(image.with_name("001_10.jpg"))
    refused(root, "train", r"001_10\.jpg: wanted a name like 001_FFFFF, found another")
    image.with_name("001_10.jpg").unlink()
    refused(root, "train", r"img/001/001_00010\.\*: wanted the frame of label .*001_00010\.png, found no file")
    add(root, "train", "001", 10, None, "png")
    add(root, "train", "001", 10, None, "jpg")
    refused(root, "train", r"001_00010\.png: wanted one file of this frame, found 001_00010\.jpg too")
    (root / "train/img/003").mkdir()
    (root / "night.txt").write_text("003")
    refused(root, "night", r"img/003: wanted 003_FFFFF, found none")
    add(root, "train", "003", 1, None)
    refused(root, "night", r"cls/003: wanted a folder of 003_FFFFF, found none")
    write(root / "train/cls/003/003_00020.png", np.zeros((H, W), np.uint8), "P")
    refused(root, "night", r"cls/003: wanted labels of the frames in .*img/003, found those of others")


def test_bad_lists_are_named(root: Path) -> None:
    refused(root, "snow", r"snow\.txt: wanted the split train, val, test, or here a list of sequences, .*found no file")
    for text, match in {
        "2": r"line 1: wanted a sequence, as 001, train/001 or val/001, found '2'",
        "002\ntest/../1": r"line 2: wanted a sequence.*found 'test/\.\./1'",
        "# nothing": "found no line",
        "002\n002": "wanted every run of frames once, found train-002-00001 2 times",
        "078": r"img/078: wanted a folder of 078_FFFFF, found none",
    }.items():
        (root / "snow.txt").write_text(text)
        refused(root, "snow", match)
    (root / "snow.txt").write_bytes(b"\xff\xfe\x80")
    refused(root, "snow", r"snow\.txt: wanted .* found an unreadable file")


def test_bad_splits_are_refused(root: Path, tmp_path: Path) -> None:
    refused(
        root, "day:paper-51", r"viper/day:paper-51: wanted, after the colon, paper-15, .*perhaps you meant paper-15"
    )
    refused(
        root, "day:paper-11", r"wanted, after the colon, paper-15, paper-15-merged, davsn-15, ego; found 'paper-11'"
    )
    refused(root, "day:davsn-15:paper-15", "wanted one class list, found davsn-15 and paper-15")
    refused(root, "../day", r"wanted a split of letters.*found '\.\./day'")
    refused(root, ":ego", "wanted a split of letters")
    refused(root / "nowhere", "day", "nowhere: wanted the folder of VIPER, found nothing there")
    refused(root / "train", "train", r"train/img: wanted folders of sequences, 001 and on, found none")


def test_bad_labels_are_refused(root: Path) -> None:
    path = root / "train/cls/002/002_00002.png"
    write(path, np.full((H, W), 32, np.uint8), "P")
    clip = viper("day", root=root).clips[0]
    with pytest.raises(UsageError, match=r"002_00002\.png: wanted label values 0, 1, .*, 31, found 32"):
        clip.label(1)
    write(path, np.zeros((H, W, 3), np.uint8))
    refused(root, "day", r"002_00002\.png: wanted a label PNG of grey with 8 bits or a palette, found 8-bit RGB")
    write(path, np.zeros((H, W + 1), np.uint8), "P")
    refused(root, "day", r"002_00002\.png: wanted the size of 002_00002\.png, 10 x 6 pixels, found 11 x 6")
    write(path, np.zeros((H, W), np.uint8), "P")
    (root / "train/img/002/002_00003.png").write_bytes(b"no image")
    refused(root, "day", r"002_00003\.png: wanted an image, found an unreadable file")


def test_class_maps_are_whole() -> None:
    assert maps_of("viper") == ("paper-15", "paper-15-merged", "davsn-15")
    assert maps_of("synthia") == ("paper-11", "paper-11-merged", "davsn-12")
    assert maps_of("cityscapes") == tuple(CLASS_MAPS)
    assert [len(CLASS_MAPS[name]) for name in CLASS_MAPS] == [15, 15, 11, 11, 15, 12]
    for coding in ("cityscapes", "viper", "synthia"):
        for name in maps_of(coding):
            table, classes = class_table(name, coding), CLASS_MAPS[name]
            assert {*np.flatnonzero(table >= 0)} == {*KNOWN[coding]}
            ids = [raw for each in classes.values() for raw in getattr(each, coding)]
            assert len(ids) == len({*ids}) == ((table >= 0) & (table < IGNORE)).sum()
            assert {*classes} <= {*COLOURS}
