"""Reading of frames and labels with every refusal, CamVid's layout, augmentation of moving worlds."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from shared import shared_data

from vda.data.camvid import CLASSES, SPLITS, camvid
from vda.data.clip import IGNORE
from vda.data.labels import id_table, read_image, read_label, to_train_ids, write_label
from vda.data.synthetic import embedded
from vda.data.transforms import Augment, Sample, augment, crop, flip, resize
from vda.errors import UsageError

# ---- a world in motion: labels and colours are fixed to the world, the camera turns, shifts and zooms


def cells(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A chequered world of 5 classes; large cells, so that few pixels lie on a border."""
    return ((np.floor(x / 17) * 2 + np.floor(y / 13)) % 5).astype(np.uint8)


def moving_tube(T: int = 3, H: int = 83, W: int = 121) -> Sample:
    y, x = np.mgrid[:H, :W].astype(np.float64)
    p = np.stack([x.ravel(), y.ravel(), np.ones(H * W)])

    def pose(t: int) -> NDArray[np.float64]:  # pixel of frame t -> world
        a, z = 0.04 * t, 1 + 0.02 * t
        return np.array(
            [[z * np.cos(a), -z * np.sin(a), 7.3 * t], [z * np.sin(a), z * np.cos(a), -4.4 * t], [0, 0, 1]]
        )

    def flow(i: int, j: int) -> NDArray[np.float32]:
        return ((np.linalg.inv(pose(j)) @ pose(i) @ p - p)[:2]).reshape(2, H, W).astype(np.float32)

    world = [(pose(t) @ p)[:2].reshape(2, H, W) for t in range(T)]
    labels = np.stack([cells(*w) for w in world])
    colours = np.array(
        [[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 20], [128, 128, 128]], np.uint8
    )
    flows = np.stack([np.stack([flow(t, t + 1), flow(t + 1, t)]) for t in range(T - 1)])
    return Sample(colours[labels], labels, flows)


def agreement(sample: Sample) -> float:
    """Share of pixels whose label the flow finds again in the other frame, in the worst pair and direction.

    A step of one pixel is forgiven, which takes the rounding of borders out of the count.
    """
    assert sample.labels is not None
    assert sample.flows is not None
    H, W = sample.labels.shape[1:]
    y, x = np.mgrid[:H, :W]
    shares = []
    for t in range(len(sample.flows)):
        for direction, (i, j) in enumerate(((t, t + 1), (t + 1, t))):
            flow = sample.flows[t, direction]
            u, v = np.rint(x + flow[0]).astype(int), np.rint(y + flow[1]).astype(int)
            inside = (u > 0) & (u < W - 1) & (v > 0) & (v < H - 1)
            assert inside.mean() > 0.5
            u, v = u.clip(1, W - 2), v.clip(1, H - 2)
            around = [sample.labels[j][v + dy, u + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            hits = [label == sample.labels[i] for label in around]
            shares.append(np.any(hits, 0)[inside].mean())
    return float(min(shares))


GEOMETRIES = {
    "nothing": Augment(),
    "flip": Augment(flip=1.0),
    "crop": Augment(crop=(50, 71)),
    "larger": Augment(scale=(1.7, 1.7)),
    "smaller": Augment(scale=(0.6, 0.6), crop=(41, 60)),
    "stretched by rounding": Augment(crop=(166, 121)),
    "all": Augment(flip=0.5, scale=(0.7, 1.6), crop=(49, 67)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_flow_still_joins_the_labels_after_augmentation(name) -> None:
    tube, rng = moving_tube(), np.random.default_rng(0)
    for _ in range(6 if name == "all" else 1):
        out = augment(tube, GEOMETRIES[name], rng)
        H, W = GEOMETRIES[name].crop or (83, 121)
        assert out.frames.shape == (3, H, W, 3)
        assert out.labels.shape == (3, H, W)
        assert out.flows.shape == (2, 2, 2, H, W)
        found = agreement(out)  # an enlarged label map has steps of more than the one pixel forgiven
        assert found == 1 if name in ("nothing", "flip", "crop") else found > 0.98
        assert {a.flags.c_contiguous for a in (out.frames, out.labels, out.flows)} == {True}


def test_agreement_notices_a_forgotten_flow() -> None:
    tube = moving_tube()
    mirrored = flip(tube)
    assert agreement(Sample(mirrored.frames, mirrored.labels, tube.flows[..., ::-1])) < 0.9  # u not negated
    larger = resize(tube, (166, 242))
    assert agreement(Sample(larger.frames, larger.labels, larger.flows / 2)) < 0.9  # values not rescaled


def test_labels_stay_on_their_frames() -> None:
    # The colours of the world name the class, so frames and labels must tell the same away from borders.
    out = augment(moving_tube(), Augment(flip=0.5, scale=(1.3, 1.3), crop=(60, 80)), np.random.default_rng(1))
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 20], [128, 128, 128]])
    nearest = np.abs(out.frames[..., None, :].astype(int) - colours).sum(-1).argmin(-1)
    assert (nearest == out.labels).mean() > 0.93


def test_augmentation_agrees_on_the_embedded_world() -> None:
    clip = embedded("camera-val", size=(64, 128)).clips[0]
    pairs = [(0, 1), (1, 2)]
    tube = Sample(
        np.stack([clip.frame(i) for i in range(3)]),
        np.stack([clip.label(i) for i in range(3)]),
        np.stack([np.stack([clip.exact_flow(i, j), clip.exact_flow(j, i)]) for i, j in pairs]),
    )
    before = agreement(tube)
    assert before > 0.95  # not 1: occlusion
    for seed in range(3):
        out = augment(tube, Augment(flip=1.0, scale=(1.0, 1.5), crop=(60, 100)), np.random.default_rng(seed))
        assert agreement(out) > before - 0.03


def test_flip_by_hand() -> None:
    tube = Sample(
        np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3).repeat(2, 0),
        np.array([[[1, 2]], [[3, 255]]], np.uint8),
        np.array([5, 6, 7, 8, 1, 2, 3, 4], np.float32).reshape(1, 2, 2, 1, 2),
    )
    out = flip(tube)
    assert out.frames[0, 0].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert out.labels.tolist() == [[[2, 1]], [[255, 3]]]
    assert out.flows.reshape(-1, 2).tolist() == [[-6, -5], [8, 7], [-2, -1], [4, 3]]
    assert tube.flows.ravel().tolist() == [5, 6, 7, 8, 1, 2, 3, 4]  # the input is left alone
    again = flip(out)
    assert all(np.array_equal(getattr(again, f), getattr(tube, f)) for f in ("frames", "labels", "flows"))


def test_resize_by_hand() -> None:
    tube = Sample(
        np.full((2, 2, 2, 3), 9, np.uint8),
        np.array([[[1, 2], [3, 255]]] * 2, np.uint8),
        np.full((1, 2, 2, 2, 2), 1.5, np.float32),
    )
    out = resize(tube, (4, 6))
    assert out.labels[0].tolist() == [[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 255, 255, 255]] * 2
    assert np.unique(out.flows[:, :, 0]).tolist() == [4.5]  # u by 6 / 2
    assert np.unique(out.flows[:, :, 1]).tolist() == [3.0]  # v by 4 / 2
    assert np.unique(crop(out, 1, 2, 2, 3).flows[:, :, 0]).tolist() == [4.5]


def test_missing_labels_and_flows_stay_missing() -> None:
    out = augment(Sample(moving_tube().frames), GEOMETRIES["all"], np.random.default_rng(0))
    assert out.labels is None
    assert out.flows is None


def test_no_new_label_values_appear() -> None:
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((2, 31, 45)) < 0.5, 3, IGNORE).astype(np.uint8)
    tube = Sample(np.zeros((2, 31, 45, 3), np.uint8), labels)
    for _ in range(5):
        out = augment(tube, Augment(scale=(0.5, 2.0), crop=(23, 19)), rng)
        assert set(np.unique(out.labels)) == {3, IGNORE}


def test_defaults_change_nothing() -> None:
    tube = moving_tube()
    out = augment(tube, Augment(), np.random.default_rng(0))
    assert all(np.array_equal(getattr(out, f), getattr(tube, f)) for f in ("frames", "labels", "flows"))


def test_colour_changes_are_those_of_the_tube() -> None:
    frames = np.tile(np.random.default_rng(3).integers(0, 256, (1, 20, 30, 3), dtype=np.uint8), (3, 1, 1, 1))
    what = Augment(jitter=1.0, brightness=0.4, contrast=0.4, blur=1.0)
    for seed in range(3):
        out = augment(Sample(frames), what, np.random.default_rng(seed)).frames
        assert not np.array_equal(out, frames)
        assert np.array_equal(out[0], out[1])
        assert np.array_equal(out[0], out[2])
    noisy = augment(Sample(frames), Augment(noise=20.0), np.random.default_rng(0)).frames
    assert not np.array_equal(noisy[0], noisy[1])
    assert np.abs(noisy.astype(float) - frames).mean() < 25


def test_brightness_scales_all_levels_alike() -> None:
    frames = np.array([10, 50, 100], np.uint8).reshape(1, 1, 1, 3).repeat(2, 0)
    out = augment(Sample(frames), Augment(jitter=1.0, brightness=0.5), np.random.default_rng(5)).frames
    ratios = out[0, 0, 0] / np.array([10, 50, 100])
    assert np.ptp(ratios) < 0.06
    assert 0.5 <= ratios[2] <= 1.5


def test_one_seed_gives_one_result() -> None:
    tube = moving_tube()
    what = Augment(flip=0.5, scale=(0.7, 1.6), crop=(49, 67), jitter=0.5, brightness=0.2, noise=3.0, blur=0.5)
    a, b, c = (augment(tube, what, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("frames", "labels", "flows"))
    assert not np.array_equal(a.frames, c.frames)


@pytest.mark.parametrize(
    "bad",
    [
        {"flip": 1.5},
        {"jitter": -0.1},
        {"brightness": 1.0},
        {"scale": (1.2, 0.8)},
        {"scale": (0.0, 1.0)},
        {"crop": (0, 5)},
        {"noise": float("nan")},
    ],
)
def test_bad_augmentation_is_refused_by_name(bad) -> None:
    with pytest.raises(UsageError, match=rf"augment\.{next(iter(bad))}: wanted .*, found"):
        Augment(**bad)


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
        with pytest.raises(
            UsageError, match=rf"l\.png: wanted a label PNG of grey with 8 bits, found {found}$"
        ):
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
    with pytest.raises(
        UsageError, match="camvid: wanted the folder of the data set as its root, found none given"
    ):
        camvid("sunny", root=None)
    with pytest.raises(UsageError, match=r"nowhere: wanted the folder of CamVid, found nothing there"):
        camvid("sunny", root=tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"splits\.json: wanted the folder of CamVid, found a file"):
        camvid("sunny", root=small_camvid / "splits.json")
    with pytest.raises(
        UsageError, match=r"splits\.json: wanted the list of sequences of CamVid, found no file"
    ):
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
    refused(r"0001TP_003\.png: wanted the label of frame 0001TP_003\.jpg, found no file")
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(label)
    refused(r"0001TP_003\.png: wanted the size of 0001TP_003\.jpg, 8 x 6 pixels, found 9 x 6")
    Image.fromarray(np.zeros((6, 8), np.uint8)).convert("P").save(label)
    refused(r"0001TP_003\.png: wanted a label PNG of grey with 8 bits, found 8-bit palette")
    label.write_bytes(good)
    image.write_bytes(b"")
    refused(r"0001TP_003\.jpg: wanted an image, found an unreadable file")
    image.unlink()
    refused(r"0001TP_003\.jpg: wanted a frame that splits\.json names, found no file")


def test_camvid_refuses_bad_pixels_when_read(small_camvid) -> None:
    clip = camvid("dusk", root=small_camvid).clips[0]
    Image.fromarray(np.full((6, 8), 11, np.uint8)).save(clip.label_path(1))
    with pytest.raises(UsageError, match=r"0001TP_001\.png: wanted label values 0, .*, 255, found 11"):
        clip.label(1)
    whole = clip.frame_path(2).read_bytes()
    clip.frame_path(2).write_bytes(whole[:-20])
    with pytest.raises(UsageError, match=r"0001TP_002\.jpg: wanted a whole image, found a damaged file"):
        clip.frame(2)
    clip.label_path(2).write_bytes(clip.label_path(2).read_bytes()[:-40])
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
    with Image.open(clip.label_path(0)) as file:
        truth = np.array(file)
    road = (truth == 3).mean()
    assert (clip.label(0) == 3).mean() == pytest.approx(road, abs=0.01)
