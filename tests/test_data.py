"""Reading of frames and labels with every refusal, and CamVid's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared import shared_data

from vda.data.camvid import CLASSES, SPLITS, camvid
from vda.data.clip import IGNORE
from vda.data.labels import id_table, read_image, read_label, to_train_ids, write_label
from vda.errors import UsageError

# ---- files


def test_label_round_trip(tmp_path) -> None:
    label = np.random.default_rng(0).integers(0, 256, (7, 5), dtype=np.uint8)
    path = tmp_path / "new folder" / "a.png"
    write_label(path, label.T)  # not contiguous
    read = read_label(path)
    assert np.array_equal(read, label.T)
    assert read.flags.writeable
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match=r"label: wanted \[H, W\] uint8, got \[7, 5\] int64"):
        write_label(path, label.astype(np.int64))


def test_labels_of_other_kinds_are_refused(tmp_path) -> None:
    grey = np.zeros((4, 6), np.uint8)
    kinds = {
        "8-bit RGB": Image.fromarray(np.zeros((4, 6, 3), np.uint8)),
        "8-bit palette": Image.fromarray(grey).convert("P"),
        "8-bit grey with alpha": Image.fromarray(grey).convert("LA"),
        "16-bit grey": Image.fromarray(np.zeros((4, 6), np.uint16)),
        "1-bit grey": Image.fromarray(grey).convert("1"),
    }
    for found, image in kinds.items():
        path = tmp_path / "l.png"
        image.save(path)
        with pytest.raises(UsageError, match=rf"l\.png: wanted a label PNG of grey with 8 bits, found {found}$"):
            read_label(path)


def test_palette_labels_give_indices_where_allowed(tmp_path) -> None:
    indices = np.array([[0, 3, 7], [255, 1, 0]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image = Image.frombytes("P", (3, 2), indices.tobytes())
    image.putpalette([int(v) for v in np.random.default_rng(0).integers(0, 256, 768)])
    image.save(tmp_path / "p.png")
    assert np.array_equal(read_label(tmp_path / "p.png", palette=True), indices)


def test_unreadable_files_are_refused(tmp_path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name, content in (("i.jpg", picture), ("i.png", picture), ("l.png", picture[..., 0])):
        path, read = tmp_path / name, read_label if name == "l.png" else read_image
        Image.fromarray(content).save(path)
        assert read(path).shape[:2] == (40, 60)
        whole = path.read_bytes()
        for share in (0.9, 0.5, 0.005, 0.0):
            path.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(UsageError, match=rf"{name}: wanted .*found .*(damaged|unreadable|truncated)"):
                read(path)
        path.write_text("no picture at all, but longer than any header")
        with pytest.raises(UsageError, match=rf"{name}: wanted"):
            read(path)
        path.unlink()
        with pytest.raises(UsageError, match=rf"{name}: wanted .*found no"):
            read(path)


@pytest.mark.parametrize("name", ["i.jpg", "i.png", "l.png"])
def test_every_truncation_is_refused_or_harmless(tmp_path, name) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    path, read = tmp_path / name, read_label if name == "l.png" else read_image
    Image.fromarray(picture[..., 0] if name == "l.png" else picture).save(path)
    whole, pixels = path.read_bytes(), read(path)
    refused = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert np.array_equal(read(path), pixels)  # only what follows the pixels was cut
        except UsageError:
            refused += 1
    assert refused > len(whole) - 40


def test_images_become_rgb(tmp_path) -> None:
    Image.fromarray(np.full((2, 3), 7, np.uint8)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").tolist() == [[[7, 7, 7]] * 3] * 2
    Image.new("RGB", (3, 2), (250, 1, 2)).save(tmp_path / "red.png")
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [250, 1, 2]
    Image.fromarray(np.zeros((2, 3), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UsageError, match=r"deep\.png: wanted an 8-bit RGB or grey image, found mode I;16"):
        read_image(tmp_path / "deep.png")


def test_ids_are_mapped_and_unknown_ones_named() -> None:
    table = id_table({7: 0, 8: 1, 0: 255})
    raw = np.array([[7, 8], [0, 7]], np.uint8)
    assert to_train_ids(raw, table, Path("x.png")).tolist() == [[0, 1], [255, 0]]
    raw[0] = 9, 200
    with pytest.raises(UsageError, match=r"x\.png: wanted label values 0, 7, 8, found 9, 200"):
        to_train_ids(raw, table, Path("x.png"))
    with pytest.raises(ValueError, match=r"train_ids: wanted ids of 0\.\.255, got 3 -> 256"):
        id_table({3: 256})


# ---- CamVid

NAMES = {name: [f"{name}_{i:03d}" for i in range(n)] for name, n in
         {"0001TP": 6, "0006R0": 3, "0016E5": 5, "0016E5_15Hz": 2, "Seq05VD": 2}.items()}  # fmt: skip


@pytest.fixture
def small_camvid(tmp_path) -> Path:
    """CamVid's layout with frames of 8 x 6 pixels; 0016E5 has a gap after its second frame."""
    rng = np.random.default_rng(0)
    sequences = {}
    for sequence, names in NAMES.items():
        for kind in ("frames", "labels"):
            (tmp_path / sequence / kind).mkdir(parents=True)
        for name in names:
            Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(frame(tmp_path, name))
            label = rng.choice(np.array([0, 5, 10, 255], np.uint8), (6, 8))
            Image.fromarray(label).save(labelled(tmp_path, name))
        cuts = [0, 2, 5] if sequence == "0016E5" else [0, len(names)]
        runs = [{"start": a, "stop": b} for a, b in pairwise(cuts)]
        sequences[sequence] = {"frames": names, "contiguous_runs": runs}
    (tmp_path / "splits.json").write_text(json.dumps({"classes": CLASSES, "sequences": sequences}))
    return tmp_path


def frame(root: Path, name: str) -> Path:
    return root / name[: name.rindex("_")] / "frames" / f"{name}.jpg"


def labelled(root: Path, name: str) -> Path:
    return root / name[: name.rindex("_")] / "labels" / f"{name}.png"


def edit(root: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((root / "splits.json").read_text())
    change(index)
    (root / "splits.json").write_text(json.dumps(index))


def test_camvid_clips_are_contiguous_runs(small_camvid) -> None:
    sunny = camvid("sunny", root=small_camvid, size=(6, 8))
    assert sunny.name == "camvid/sunny"
    assert sunny.classes == CLASSES
    assert len(CLASSES) == 11
    assert sunny.palette.shape == (11, 3)
    found = {clip.name: list(clip.frame_names) for clip in sunny.clips}
    assert found == {
        "0006R0": NAMES["0006R0"],
        "0016E5-0": NAMES["0016E5"][:2],
        "0016E5-1": NAMES["0016E5"][2:],
        "0016E5_15Hz": NAMES["0016E5_15Hz"],
        "Seq05VD": NAMES["Seq05VD"],
    }


def test_camvid_dusk_halves_share_nothing(small_camvid) -> None:
    whole, train, val = (
        camvid(split, root=small_camvid, size=(6, 8)).clips for split in ("dusk", "dusk-train", "dusk-val")
    )
    assert [len(c) for c in (whole, train, val)] == [1, 1, 1]
    assert [*train[0].frame_names, *val[0].frame_names] == list(whole[0].frame_names) == NAMES["0001TP"]
    assert len({whole[0].name, train[0].name, val[0].name}) == 3
    assert [len(c) for c in camvid("sunny-15hz", root=small_camvid).clips] == [2]


def test_camvid_frames_and_labels(small_camvid) -> None:
    clip = camvid("dusk", root=small_camvid, size=(6, 8)).clips[0]
    with Image.open(labelled(small_camvid, clip.frame_names[4])) as file:
        assert np.array_equal(clip.label(4), np.array(file))
    with Image.open(frame(small_camvid, clip.frame_names[4])) as file:
        assert np.array_equal(clip.frame(4), np.array(file))
    assert clip.exact_flow(0, 1) is None
    half = camvid("dusk", root=small_camvid, size=(3, 4)).clips[0]
    assert half.label(0).shape == (3, 4)
    assert half.label(0).dtype == np.uint8
    full = clip.frame(0).astype(float)
    blocks = full.reshape(3, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(half.frame(0) - blocks).max() <= 1  # by area: nothing of the image is left out


def test_camvid_wants_its_root(small_camvid, tmp_path) -> None:
    with pytest.raises(UsageError, match="camvid: wanted the folder of the data set as its root, found none given"):
        camvid("sunny", root=None)
    with pytest.raises(UsageError, match=r"nowhere: wanted the folder of CamVid, found nothing there"):
        camvid("sunny", root=tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"splits\.json: wanted the folder of CamVid, found a file"):
        camvid("sunny", root=small_camvid / "splits.json")
    with pytest.raises(UsageError, match=r"splits\.json: wanted the list of sequences of CamVid, or .*, found none"):
        camvid("sunny", root=small_camvid / "0001TP")
    with pytest.raises(UsageError, match="found 'sunni', perhaps you meant sunny"):
        camvid("sunni", root=small_camvid)
    with pytest.raises(UsageError, match="size of at least 1 x 1, found 0 x 8"):
        camvid("sunny", root=small_camvid, size=(0, 8))


def dusk(index: dict) -> dict:
    return index["sequences"]["0001TP"]


def run(index: dict) -> dict:
    return dusk(index)["contiguous_runs"][0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.pop("sequences"), "wanted the key 'sequences'"),
        (lambda d: d.update(classes=["Sky"]), r"wanted 'classes' Sky, .*, found \['Sky'\]"),
        (lambda d: d["sequences"].pop("0001TP"), "sequence 0001TP: wanted 'frames' and .*'0001TP'"),
        (lambda d: dusk(d).pop("frames"), "sequence 0001TP: wanted 'frames'"),
        (lambda d: dusk(d).pop("contiguous_runs"), "wanted 'frames' and 'contiguous_runs'"),
        (lambda d: run(d).pop("stop"), "of start and stop"),
        (lambda d: run(d).update(stop=7), r"its 6 frames, found 0\.\.7"),
        (lambda d: run(d).update(start=5), "the single frame 0001TP_005"),
        (lambda d: dusk(d).update(contiguous_runs=[]), "wanted frames for its all part, found none"),
        (lambda d: dusk(d)["frames"].insert(2, "../secret"), r"plain file names.*'\.\./secret'"),
    ],
)
def test_camvid_refuses_a_wrong_index(small_camvid, change, match) -> None:
    edit(small_camvid, change)
    with pytest.raises(UsageError, match=r"splits\.json: .*" + match):
        camvid("dusk", root=small_camvid)


def test_camvid_refuses_broken_json(small_camvid) -> None:
    (small_camvid / "splits.json").write_text('{"classes": [')
    with pytest.raises(UsageError, match=r"splits\.json: wanted JSON, found an unreadable file"):
        camvid("dusk", root=small_camvid)


def test_camvid_refuses_bad_frames_when_opened(small_camvid) -> None:
    image, label = frame(small_camvid, "0001TP_003"), labelled(small_camvid, "0001TP_003")
    good = label.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(UsageError, match=match):
            camvid("dusk", root=small_camvid)

    label.unlink()
    refused(r"0001TP_003\.png: wanted a label image, found none")
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(label)
    refused(r"0001TP_003\.png: wanted the size of 0001TP_003\.jpg, 8 x 6 pixels, found 9 x 6")
    Image.fromarray(np.zeros((6, 8), np.uint8)).convert("P").save(label)
    refused(r"0001TP_003\.png: wanted a label PNG of grey with 8 bits, found 8-bit palette")
    label.write_bytes(good)
    image.write_bytes(b"")
    refused(r"0001TP_003\.jpg: wanted an image, found an unreadable file")
    image.unlink()
    refused(r"0001TP_003\.jpg: wanted an image, found no file")


def test_camvid_refuses_bad_pixels_when_read(small_camvid) -> None:
    clip = camvid("dusk", root=small_camvid).clips[0]
    Image.fromarray(np.full((6, 8), 11, np.uint8)).save(clip.labels[1])
    with pytest.raises(UsageError, match=r"0001TP_001\.png: wanted label values 0, .*, 255, found 11"):
        clip.label(1)
    image, label = Path(clip.images[2]), Path(clip.labels[2])
    image.write_bytes(image.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"0001TP_002\.jpg: wanted a whole image, found a damaged file"):
        clip.frame(2)
    label.write_bytes(label.read_bytes()[:-40])
    with pytest.raises(UsageError, match=r"0001TP_002\.png: wanted a whole image, found a damaged file"):
        clip.label(2)


def test_real_camvid() -> None:
    root = shared_data("camvid")
    frames = {split: camvid(split, root=root).num_frames for split in SPLITS}
    assert frames == {"sunny": 577, "sunny-15hz": 101, "dusk": 124, "dusk-train": 62, "dusk-val": 62}
    assert [len(c) for c in camvid("sunny", root=root).clips] == [101, 68, 120, 16, 101, 171]
    clip = camvid("dusk-val", root=root, size=(90, 120)).clips[0]
    assert clip.frame(0).shape == (90, 120, 3)
    assert set(np.unique(clip.label(0))) <= {*range(11), IGNORE}
    with Image.open(clip.labels[0]) as file:
        truth = np.array(file)
    road = (truth == 3).mean()
    assert (clip.label(0) == 3).mean() == pytest.approx(road, abs=0.01)
