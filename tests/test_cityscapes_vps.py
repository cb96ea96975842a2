"""Cityscapes-VPS: clips of 30 frames with six labels, where their frames may lie, class lists, wrong files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vda.data import IGNORE, open_dataset
from vda.data.cityscapes_vps import cityscapes_vps
from vda.data.class_maps import CLASS_MAPS, maps_of
from vda.errors import UsageError

H, W = 4, 8
TRAIN_IDS = np.array([[*range(19), 255, 255, 255, 255]], np.uint8)
# (part, video, place, first labelled frame), the second as in the real data: the 20th frame is 001751
CLIPS = (("train", 1, "munster_000173", 4), ("val", 5, "frankfurt_000000", 1736), ("val", 9, "lindau_000012", 104))


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the scripts of the data set leave: train without img_all, beside leftImg8bit_sequence."""
    root = tmp_path / "cityscapes_vps"
    for part, video, place, first in CLIPS:
        everything = root / part / "img_all"
        if part == "train":
            everything = tmp_path / "leftImg8bit_sequence/val" / place.split("_")[0]
        for number in range(first - 4, first + 26):
            pixels = np.random.default_rng([video, number]).integers(0, 256, (H, W, 3), dtype=np.uint8)
            write(everything / f"{place}_{number:06d}_leftImg8bit.png", pixels)
            k, between = divmod(number - first, 5)
            if not between:
                stem = f"{video:04d}_{6 * (video - 1) + k + 1:04d}_{place}_{number:06d}"
                own = k == 3  # Cityscapes' own label
                write(root / part / "img" / f"{stem}_{'leftImg8bit' if own else 'newImg8bit'}.png", pixels)
                label = np.full((H, W), k, np.uint8)
                write(root / part / "labelmap" / f"{stem}_{'gtFine_color' if own else 'final_mask'}.png", label)
    return root


def test_clips_are_thirty_frames_with_six_labels(root: Path) -> None:
    data = open_dataset("cityscapes-vps/val", root, (H, W))
    assert data.classes == tuple(CLASS_MAPS["paper-15"])
    assert [clip.name for clip in data.clips] == ["0005", "0009"]
    clip = data.clips[0]
    assert len(clip) == 30
    assert clip.frame_names[0] == "frankfurt_000000_001732"
    assert clip.frame_names[-1] == "frankfurt_000000_001761"
    assert [i for i in range(30) if clip.label(i) is not None] == [4, 9, 14, 19, 24, 29]
    # train ids 0 .. 5 fill the labels: road, sidewalk, building, wall (none of the fifteen), fence, pole
    assert [int(clip.label(i).max()) for i in range(4, 30, 5)] == [0, 1, 2, IGNORE, 3, 4]
    for i, number in ((0, 1732), (19, 1751)):
        wanted = np.random.default_rng([5, number]).integers(0, 256, (H, W, 3), dtype=np.uint8)
        assert np.array_equal(clip.frame(i), wanted)
    assert clip.exact_flow(0, 1) is None
    copy = pickle.loads(pickle.dumps(clip))  # loader processes may need it
    assert np.array_equal(copy.label(4), clip.label(4))


def test_labelled_frames_alone(root: Path) -> None:
    clip = cityscapes_vps("val:labelled", root=root, size=(H, W)).clips[1]
    whole = cityscapes_vps("val", root=root, size=(H, W)).clips[1]
    assert list(clip.frame_names) == [f"lindau_000012_{number:06d}" for number in range(104, 130, 5)]
    for i in range(6):
        assert np.array_equal(clip.frame(i), whole.frame(4 + 5 * i))
        assert np.array_equal(clip.label(i), whole.label(4 + 5 * i))


@pytest.mark.parametrize("inside", [False, True])
def test_frames_of_train(root: Path, inside: bool) -> None:
    sequences = root.parent / "leftImg8bit_sequence"
    if inside:
        sequences.rename(root / sequences.name)
    clip = cityscapes_vps("train", root=root, size=(H, W)).clips[0]
    assert clip.frame_names[0] == "munster_000173_000000"
    assert np.array_equal(clip.frame(7), np.random.default_rng([1, 7]).integers(0, 256, (H, W, 3), dtype=np.uint8))
    assert clip.label(9).max() == 1
    (root / "train/labelmap").rename(root / "train/other")
    assert cityscapes_vps("train", root=root).clips[0].label(9) is None


@pytest.mark.parametrize(
    ("class_map", "wanted"),
    [  # class of the train ids 0 .. 18; -1 is none
        ("paper-15", [0, 1, 2, -1, 3, 4, 5, 6, 7, 8, 9, 10, -1, 11, 12, 13, -1, 14, -1]),
        ("paper-15-merged", [0, 1, 2, -1, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11, 12, 13, -1, 14, -1]),
        ("paper-11", [0, 1, 2, -1, -1, 3, 4, 5, 6, -1, 7, 8, 9, 10, -1, -1, -1, -1, -1]),
        ("davsn-15", [0, 1, 2, -1, 3, -1, 4, 5, 6, 7, 8, 9, 9, 10, 11, 12, -1, 13, 14]),
        ("davsn-12", [0, 1, 2, -1, 3, 4, 5, 6, 7, -1, 8, 9, 10, 11, -1, -1, -1, -1, -1]),
    ],
)
def test_class_lists(root: Path, class_map: str, wanted: list[int]) -> None:
    for path in (root / "val/labelmap").glob("*.png"):
        write(path, TRAIN_IDS)
    for path in [*(root / "val").glob("img*/*.png")]:
        write(path, np.zeros((1, 23, 3), np.uint8))
    data = cityscapes_vps(f"val:{class_map}", root=root, size=(1, 23))
    assert data.clips[0].label(4)[0].tolist() == [IGNORE if k < 0 else k for k in wanted] + [IGNORE] * 4
    assert len(data.classes) == len(data.palette) == max(wanted) + 1


def test_classes_of_source_and_target_agree(root: Path) -> None:
    # the first map is what a source has without a word
    assert cityscapes_vps("val", root=root).classes == tuple(CLASS_MAPS[maps_of("viper")[0]])
    assert cityscapes_vps("val:paper-11", root=root).classes == tuple(CLASS_MAPS[maps_of("synthia")[0]])


def refused(root: Path, split: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        cityscapes_vps(split, root=root)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(root: Path) -> None:
    frame = root / "val/img_all/frankfurt_000000_001740_leftImg8bit.png"
    frame.rename(root / "x.png")
    refused(root, "val", r"frankfurt_000000_001740_leftImg8bit\.png: wanted an image, found no file")
    assert len(cityscapes_vps("val:labelled", root=root).clips) == 2
    (root / "val/img_all").rename(root / "val/other")
    (root.parent / "leftImg8bit_sequence").rename(root.parent / "other")
    refused(
        root, "val", r"img_all: wanted all frames here or in .*found neither; cityscapes-vps/val:labelled needs only"
    )
    label = root / "val/labelmap/0005_0027_frankfurt_000000_001746_final_mask.png"
    label.rename(root / "y.png")
    refused(root, "val:labelled", r"0005_0027_.*_final_mask\.png: wanted a label image, found none")
    (root / "val/labelmap").rename(root / "val/cls")
    refused(root, "val:labelled", r"val/labelmap: wanted the labels, made by create_panoptic_labels\.py .*, found none")
    refused(root, "test", r"test/img.*: wanted")
    refused(root, "test:labelled", r"test/img: wanted the labelled frames, made by fetch_city_images\.py")
    refused(root, "train-day", "wanted a split of train, val, test, found 'train-day'")
    refused(root / "nowhere", "val", "wanted the folder of Cityscapes-VPS, found nothing there")


def test_wrong_frames_are_named(root: Path) -> None:
    image = root / "val/img/0009_0050_lindau_000012_000109_newImg8bit.png"
    other = image.with_name("0009_0050_lindau_000013_000109_newImg8bit.png")
    image.rename(other)
    refused(root, "val", r"wanted 6 frames of clip 0009, 5 apart, found .*lindau_000013_000109, lindau_000012_000114")
    other.unlink()
    refused(root, "val", r"wanted 6 frames of clip 0009, 5 apart, found lindau_000012_000104, lindau_000012_000114")
    write(image.with_name("lindau_000012_000109_leftImg8bit.png"), np.zeros((H, W, 3), np.uint8))
    refused(root, "val", r"lindau_000012_000109_leftImg8bit\.png: wanted a name like VVVV_NNNN_CITY")


def test_the_list_of_a_part_is_kept_to(root: Path) -> None:
    path = root / "panoptic_im_val_city_vps.json"
    images = [{"id": p.stem[:34], "file_name": p.name} for p in (root / "val/img").iterdir()]
    path.write_text(json.dumps({"images": images, "annotations": []}))
    assert len(cityscapes_vps("val", root=root).clips) == 2
    path.write_text(json.dumps({"images": [*images, {"file_name": "0013_0073_lindau_000013_000004_newImg8bit.png"}]}))
    refused(root, "val", r"val/img: wanted the clips that panoptic_im_val_city_vps\.json lists, found none of 0013")
    path.write_text(json.dumps({"images": [image for image in images if image["file_name"] < "0009"]}))
    refused(root, "val", r"val/img: wanted the clips that panoptic_im_val_city_vps\.json lists, found 0009 too")
    for text in ("{", "[]", '{"images": [{"id": 1}]}', '{"images": 7}', "\xff"):
        path.write_bytes(text.encode("latin1"))
        refused(root, "val", r"city_vps\.json: wanted JSON with the file_name of all images, found another file")


def test_wrong_labels_are_named(root: Path) -> None:
    label = root / "val/labelmap/0005_0026_frankfurt_000000_001741_final_mask.png"
    write(label, np.zeros((H, W, 3), np.uint8))  # as in cls
    refused(root, "val", r"001741_final_mask\.png: wanted a label PNG of grey with 8 bits, found 8-bit RGB")
    write(label, np.zeros((2 * H, W), np.uint8))
    refused(root, "val", r"001741_final_mask\.png: wanted the size of .*1741_leftImg8bit\.png, 8 x 4 .*found 8 x 8")
    write(label, np.full((H, W), 26, np.uint8))  # a label id of Cityscapes, not a train id
    clip = cityscapes_vps("val", root=root).clips[0]
    with pytest.raises(UsageError, match=r"001741_final_mask\.png: wanted label values 0, .*, 18, 255, found 26"):
        clip.label(9)
