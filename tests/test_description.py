"""Your own data: patterns, the YAML description, its clips and labels, and every way in which they can be wrong."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vda.config import Config, digest, load_yaml
from vda.data import IGNORE, open_dataset
from vda.data.class_maps import CLASS_MAPS, class_table
from vda.data.description import read_description
from vda.data.entries import Entry
from vda.data.patterns import Pattern
from vda.errors import UsageError

H, W = 6, 10
quiet = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def save(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image = Image.frombytes("P", pixels.shape[::-1], pixels.tobytes())
        image.putpalette(palette)
    image.save(path)
    return path


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def describe(folder: Path, content: dict[str, Any], name: str = "town.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


TOWN: dict[str, Any] = {
    "classes": ["road", "sky", "tram"],
    "encoding": {"values": {"road": 7, "sky": [1, 2], "tram": 9}, "ignore": [0]},
    "splits": {"train": {"frames": "sim/*/rgb/*.png", "labels": "sim/*/mask/*_id.png"}},
}


def town(**changes: Any) -> dict[str, Any]:
    return {**TOWN, **changes}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """sim/a: frames 8 to 11 and 14, 15; sim/b: frames 1, 2."""
    for drive, numbers in (("a", (8, 9, 10, 11, 14, 15)), ("b", (1, 2))):
        for n in numbers:
            save(tmp_path / f"sim/{drive}/rgb/f{n}.png", picture(n))
            save(
                tmp_path / f"sim/{drive}/mask/f{n}_id.png", np.array([0, 1, 2, 7, 9], np.uint8)[picture(n)[..., 0] % 5]
            )
    return tmp_path


# ---- patterns


@pytest.mark.parametrize(
    ("pattern", "name", "wildcards"),
    [
        ("a/*.png", "a/1.png", ("1",)),
        ("a/*.png", "a/b/1.png", None),
        ("a/*.png", "a/.1.png", None),
        ("a/*_id.png", "a/x_id_id.png", ("x_id",)),
        ("**/*.png", "1.png", ("", "1")),
        ("**/*.png", "a/b/1.png", ("a/b", "1")),
        ("*/rgb/**/*.png", "a/rgb/c/d/1.png", ("a", "c/d", "1")),
        ("a[1]/?.png", "a[1]/?.png", ()),
        ("a[1]/?.png", "a1/b.png", None),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, name: str, wildcards: tuple[str, ...] | None) -> None:
    found = Pattern(pattern).match(name)
    assert (found and found[1]) == wildcards
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("")
    assert Pattern(pattern).files(tmp_path) == ({} if wildcards is None else {wildcards: name})


@pytest.mark.parametrize("pattern", ["", "*a" * 9, "a\\b", "a\0b"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(UsageError, match="wanted names and folders"):
        Pattern(pattern)


@quiet
@given(st.text("*ab/._1", max_size=12), st.text("ab/._1", max_size=60))
def test_patterns_meet_any_name(pattern: str, name: str) -> None:
    try:
        found = Pattern(pattern).match(name)
    except UsageError:
        return
    if found is not None:  # what the wildcards stand for, put in their place, gives the name
        assert name == Pattern(pattern)._regex.fullmatch(name)[0]  # type: ignore[index]
        assert len(found[1]) == Pattern(pattern).wildcards


# ---- clips


def test_frames_are_ordered_by_number_and_cut_at_gaps(root: Path) -> None:
    data = open_dataset(f"{describe(root, TOWN)}/train", None, None)
    assert data.name == f"{root}/town.yaml/train"
    assert data.classes == ("road", "sky", "tram")
    assert data.size == (H, W)
    assert {clip.name: list(clip.frame_names) for clip in data.clips} == {
        "sim-a-rgb-f-000008": ["f8", "f9", "f10", "f11"],
        "sim-a-rgb-f-000014": ["f14", "f15"],
        "sim-b-rgb-f": ["f1", "f2"],
    }
    clip = data.clips[0]
    assert np.array_equal(clip.frame(2), picture(10))
    classes = np.array([IGNORE, 1, 1, 0, 2], np.uint8)  # of the values 0, 1, 2, 7, 9
    assert np.array_equal(clip.label(2), classes[picture(10)[..., 0] % 5])
    smaller = open_dataset(f"{root}/town.yaml/train", None, (3, 5))
    assert smaller.clips[0].frame(0).shape == (3, 5, 3)


def test_every_step_order_and_upper(root: Path) -> None:
    frames = "sim/a/rgb/*.png"
    splits = {
        "every": {"frames": frames, "every": 3},
        "step": {"frames": "slow/*.png", "step": 30},
        "name": {"frames": frames, "order": "name"},
        "two": [{"frames": "sim/a/rgb/*.png"}, {"frames": "sim/b/rgb/*.png"}],
    }
    for name in ("0", "30", "060", "120"):
        save(root / f"slow/{name}.png", picture(0))
    path = describe(root, town(splits=splits, upper=0.5))
    clips = {
        split: [list(c.frame_names) for c in open_dataset(f"{path}/{split}", None, None).clips] for split in splits
    }
    assert clips["every"] == [["f8", "f11"], ["f14"]]
    assert clips["step"] == [["0", "30", "060"], ["120"]]
    assert clips["name"] == [["f10", "f11", "f14", "f15", "f8", "f9"]]
    assert clips["two"] == [["f8", "f9", "f10", "f11"], ["f14", "f15"], ["f1", "f2"]]
    data = open_dataset(f"{path}/name", None, None)
    assert data.size == (3, W)
    assert np.array_equal(data.clips[0].frame(4), picture(8)[:3])
    assert data.clips[0].label(4) is None


def test_one_folder_of_two_cameras_and_folders_of_frames(tmp_path: Path) -> None:
    for name in ("left_1", "left_2", "right_1", "right_2"):
        save(tmp_path / f"{name}.png", picture(0))
        save(tmp_path / f"shot/{name}/rgb.png", picture(1))
    splits = {"flat": {"frames": "*.png"}, "deep": {"frames": "shot/*/rgb.png"}}
    path = describe(tmp_path, town(splits=splits))
    flat, deep = (open_dataset(f"{path}/{split}", None, None) for split in splits)
    assert {clip.name: list(clip.frame_names) for clip in flat.clips} == {
        "left": ["left_1", "left_2"],
        "right": ["right_1", "right_2"],
    }
    assert [list(clip.frame_names) for clip in deep.clips] == [["left_1", "left_2"], ["right_1", "right_2"]]


def test_sparse_labels(root: Path) -> None:
    (root / "sim/a/mask/f9_id.png").unlink()
    entry = TOWN["splits"]["train"]
    with pytest.raises(UsageError, match=r"rgb/f9\.png: wanted its label, like sim/\*/mask/\*_id\.png, found no file"):
        open_dataset(f"{describe(root, TOWN)}/train", None, None)
    data = open_dataset(f"{describe(root, town(splits={'train': entry | {'sparse': True}}))}/train", None, None)
    assert [data.clips[0].label(i) is None for i in range(4)] == [False, True, False, False]


# ---- labels


def labels_by(folder: Path, label: np.ndarray, encoding: dict[str, Any], classes: Any, palette: Any = None) -> Any:
    save(folder / "i/1.png", picture(1))
    save(folder / "l/1.png", label, palette)
    splits = {"all": {"frames": "i/*.png", "labels": "l/*.png"}}
    path = describe(folder, {"classes": classes, "encoding": encoding, "splits": splits})
    return open_dataset(f"{path}/all", None, None).clips[0].label(0)


IDS = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 4
RED = np.array([[9, 0, 0], [255, 0, 0], [0, 0, 0], [254, 0, 0]], np.uint8)


def test_labels_by_index_and_palette(tmp_path: Path) -> None:
    classes = ["a", "b", "c"]
    assert np.array_equal(labels_by(tmp_path, IDS % 3, {}, classes), IDS % 3)
    assert np.array_equal(labels_by(tmp_path, np.where(IDS == 3, 255, IDS).astype(np.uint8), {}, classes),
                          np.where(IDS == 3, 255, IDS))  # fmt: skip
    got = labels_by(tmp_path, IDS, {"others": "ignore"}, classes)
    assert np.array_equal(got, np.where(IDS == 3, 255, IDS))
    got = labels_by(tmp_path, IDS, {"by": "palette", "ignore": 3}, classes, palette=[0, 0, 0] * 256)
    assert np.array_equal(got, np.where(IDS == 3, 255, IDS))  # one colour for all: only the indices tell
    with pytest.raises(UsageError, match=r"l/1\.png: wanted label values 0, 1, 2, 255, found 3"):
        labels_by(tmp_path, IDS, {}, classes)
    with pytest.raises(UsageError, match=r"l/1\.png: .* grey with 8 bits, found 8-bit palette"):
        labels_by(tmp_path, IDS, {}, classes, palette=[0, 0, 0] * 256)
    with pytest.raises(UsageError, match=r"l/1\.png: .* a palette, found 8-bit grey"):
        labels_by(tmp_path, IDS, {"by": "palette"}, classes)


def test_labels_by_colour(tmp_path: Path) -> None:
    classes = {"a": [9, 0, 0], "b": [255, 0, 0]}
    wanted = np.array([0, 1, 255, 255], np.uint8)[IDS]
    by = {"by": "colour", "ignore": [[0, 0, 0], [254, 0, 0]]}
    assert np.array_equal(labels_by(tmp_path, RED[IDS], by, classes), wanted)
    assert np.array_equal(labels_by(tmp_path, IDS, by, classes, palette=[*RED.ravel().tolist()] + [0] * 756), wanted)
    other = {"by": "colour", "values": {"b": [9, 0, 0], "a": [[255, 0, 0], [0, 0, 0]]}, "others": "ignore"}
    assert np.array_equal(labels_by(tmp_path, RED[IDS], other, classes), np.array([1, 0, 0, 255])[IDS])
    with pytest.raises(UsageError, match=r"wanted the 3 known colours, found 1 others on 15 pixels: 254, 0, 0"):
        labels_by(tmp_path, RED[IDS], {"by": "colour", "ignore": [0, 0, 0]}, classes)
    with pytest.raises(UsageError, match=r"wanted a label PNG of RGB with 8 bits or a palette, found 8-bit grey"):
        labels_by(tmp_path, IDS, by, classes)


def test_named_class_lists_and_ids(tmp_path: Path) -> None:
    raw = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 32
    got = labels_by(tmp_path, raw, {"values": "viper"}, "davsn-15")
    assert np.array_equal(got, class_table("davsn-15", "viper")[raw])
    with pytest.raises(UsageError, match=r"wanted label values .* found 40"):
        labels_by(tmp_path, raw // 31 * 40, {"values": "viper"}, "paper-15")
    assert labels_by(tmp_path, raw // 31 * 40, {"values": "viper", "ignore": 40}, "paper-15").min() == 255
    description = read_description(describe(tmp_path, town(classes="paper-11", encoding={})))
    assert description.classes == tuple(CLASS_MAPS["paper-11"])
    assert description.palette[0].tolist() == [128, 64, 128]


# ---- what is refused

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "key": (town(clases=[]), r"unknown key 'clases', perhaps you meant classes; known are root, classes"),
    "no classes": ({"splits": TOWN["splits"]}, r"classes wants 1 to 254 names .* found none"),
    "class is no name": (town(classes=["road", False]), r"classes wants .* found \['road', False\]"),
    "class twice": (town(classes=["road", "road"]), r"classes wants every name once"),
    "class list": (town(classes="paper-16"), r"classes wants a list of names or one of .* perhaps you meant paper-1"),
    "colour": (town(classes={"road": [1, 2, 256]}), r"classes: road wants a colour \[R, G, B\] of 0 to 255"),
    "by": (
        town(encoding={"by": "color"}),
        r"encoding: by wants one of index, .* found 'color', perhaps you meant colour",
    ),
    "value of no class": (town(encoding={"values": {"rode": 1}}), r"unknown key 'rode', perhaps you meant road"),
    "value twice": (town(encoding={"values": {"road": 1, "sky": [1]}}), r"values: wanted 1 in one class"),
    "value ignored": (town(encoding={"values": {"road": 1}, "ignore": 1}), r"ignore wants values of no class, found 1"),
    "value": (town(encoding={"values": {"road": 256}}), r"road wants a whole number of 0 to 255"),
    "no values": (town(encoding={"by": "colour"}), r"values wants the colours of every class"),
    "colour twice": (
        town(classes={"a": [1, 1, 1], "b": [1, 1, 1]}, encoding={"by": "colour"}),
        r"classes wants a colour of its own for each",
    ),
    "ids of another list": (town(encoding={"values": "viper"}), r"values viper wants `classes` to be one of paper-15"),
    "ids": (town(classes="paper-15", encoding={"values": "kitti"}), r"values wants a mapping .* found 'kitti'"),
    "upper": (town(upper=0), r"upper wants a share of the rows above 0"),
    "no splits": ({"classes": ["a"]}, r"splits wants at least one split, found none"),
    "split without entry": (town(splits={"train": []}), r"train wants at least one mapping"),
    "split is text": (town(splits={"train": "sim"}), r"splits: train wants a mapping, found 'sim'"),
    "entry key": (town(splits={"train": {"frame": "a"}}), r"train: unknown key 'frame', perhaps you meant frames"),
    "neither": (town(splits={"train": {"every": 2}}), r"wanted either frames or video, found neither"),
    "both": (town(splits={"train": {"frames": "a", "video": "b"}}), r"wanted either frames or video, found both"),
    "cuts of frames": (town(splits={"train": {"frames": "*", "cuts": False}}), r"cuts is for video alone"),
    "step of video": (town(splits={"train": {"video": "*", "step": 2}}), r"step is for frames alone"),
    "wildcards": (town(splits={"train": {"frames": "*/*.png", "labels": "*"}}), r"labels wants 2 wildcards"),
    "wildcards of video": (town(splits={"train": {"video": "*.mp4", "labels": "*"}}), r"labels wants 2 wildcards"),
    "every": (
        town(splits={"train": {"frames": "*", "every": 0}}),
        r"every wants a whole number of at least 1, found 0",
    ),
    "order": (town(splits={"train": {"frames": "*", "order": "numbr"}}), r"order wants one of number, name"),
    "sparse": (town(splits={"train": {"frames": "*", "sparse": "yes"}}), r"sparse wants true or false, found 'yes'"),
    "root": (town(root="nowhere"), r"wanted the folder .*nowhere as root, found none"),
    "no frames": (town(splits={"train": {"frames": "x/*"}}), r"train: wanted files like x/\*, found none"),
    "no label of a frame": (
        town(splits={"train": {"frames": "sim/*/rgb/*.png", "labels": "sim/*/mask/*_no.png"}}),
        r"rgb/f10\.png: wanted its label, like",
    ),
    "no frame of a label": (
        town(splits={"train": {"frames": "sim/*/rgb/f1*.png", "labels": "sim/*/mask/f*_id.png"}}),
        r"sim/a/mask/f10_id\.png: wanted its frame",
    ),
    "no number": (
        town(splits={"train": {"frames": "sim/*/rgb/f9.*"}}),
        r"wanted a number .* found 'png'; `order: name`",
    ),
    "no neighbours": (town(splits={"train": {"frames": "sim/a/rgb/*.png", "step": 7}}), r"say `step: 1` where"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_descriptions_are_told_in_one_sentence(root: Path, case: str) -> None:
    content, message = WRONG[case]
    with pytest.raises(UsageError, match=message) as caught:
        open_dataset(f"{describe(root, content)}/train", None, None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_splits_and_files_by_name(root: Path) -> None:
    path = describe(root, TOWN)
    with pytest.raises(UsageError, match=r"wanted a split of train, found 'trian', perhaps you meant train"):
        open_dataset(f"{path}/trian", None, None)
    with pytest.raises(UsageError, match=r"wanted .*town\.yaml/SPLIT with SPLIT one of train"):
        open_dataset(str(path), None, None)
    with pytest.raises(UsageError, match=r"other\.yaml: wanted a description of a data set, found no readable file"):
        open_dataset(f"{root}/other.yaml/train", None, None)


def test_files_that_are_wrong_are_named(root: Path) -> None:
    path = describe(root, TOWN)
    save(root / "sim/b/mask/f2_id.png", np.zeros((H, W + 1), np.uint8))
    with pytest.raises(UsageError, match=r"f2_id\.png: wanted the size of f2\.png, 10 x 6 pixels, found 11 x 6"):
        open_dataset(f"{path}/train", None, None)
    (root / "sim/b/rgb/f2.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"rgb/f2\.png: wanted an image"):
        open_dataset(f"{path}/train", None, None)
    save(root / "sim/b/rgb/f02.png", picture(0))
    save(root / "sim/b/mask/f02_id.png", np.zeros((H, W), np.uint8))
    with pytest.raises(UsageError, match=r"rgb/f2\.png: wanted one file of this frame, found .*f02\.png too"):
        open_dataset(f"{path}/train", None, None)


# ---- any content


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**6000) | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["root", "classes", "encoding", "upper", "cache", "splits"])


@quiet
@given(st.dictionaries(keys, plain, max_size=3), st.dictionaries(st.sampled_from(["by", "values", "ignore", "others"]),
       plain, max_size=2), st.dictionaries(st.sampled_from(["frames", "video", "labels", "order", "step", "every",
       "sparse", "cuts"]), plain, max_size=3))  # fmt: skip
def test_any_values_are_read_or_refused(tmp_path: Path, top: Any, encoding: Any, entry: Any) -> None:
    base = {"classes": ["road", "sky"], "encoding": encoding, "splits": {"train": {"frames": "*.png"} | entry}}
    try:
        text = yaml.safe_dump(base | top)
    except ValueError:  # Python's own limit on printing whole numbers
        return
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    message = ""
    try:
        read_description(path)
    except UsageError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 700


def test_any_byte_of_a_description_may_change(root: Path) -> None:
    path = describe(root, TOWN)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), int(rng.integers(1, 4))):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        try:
            open_dataset(f"{path}/train", None, None)
        except UsageError:
            refused += 1
    assert refused > 100


# ---- the page


def test_descriptions_of_the_page(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/data.md").read_text()
    blocks = dict(re.findall(r"^    # /data/(\w+\.yaml)\n((?:    .*\n)+)", page, re.M))
    assert set(blocks) == {"town.yaml", "drives.yaml"}
    for name, block in blocks.items():
        (tmp_path / name).write_text(textwrap.dedent(block))
    town, drives = (read_description(tmp_path / name) for name in blocks)
    assert town.classes == drives.classes == ("road", "building", "sky", "car")
    assert [*town.splits, *drives.splits] == ["train", "all", "val"]
    for key in (*Entry.KEYS, "root", "classes", "encoding", "upper", "cache", "splits"):
        assert f"`{key}`" in page


# ---- a run


def test_a_run_knows_when_its_description_changes(root: Path) -> None:
    path = describe(root, TOWN)
    settings_file = root / "run.yaml"
    settings_file.write_text(f"data: {{source: {path}/train, target: {path}/train, validation: {path}/train}}")
    config = load_yaml(settings_file, Config())
    before = digest(config)
    assert digest(config) == before
    describe(root, town(upper=0.5))
    assert digest(config) != before
