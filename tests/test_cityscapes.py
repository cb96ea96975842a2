"""Cityscapes' video: snippets found from their labels, both codings of labels, pairs, class lists, wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vda.data import IGNORE, open_dataset
from vda.data.cityscapes import cityscapes
from vda.data.class_maps import CLASS_MAPS, class_table, label_id_table
from vda.data.clip import spread
from vda.data.frame_files import split_words
from vda.errors import UsageError
from vda.recipes import SCENARIOS

H, W = 4, 34
LABEL_IDS = np.tile(np.arange(34, dtype=np.uint8), (H, 1))
# label id -> train id, as Cityscapes' own labels.py has it; all others are void
TO_TRAIN = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
            28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
# label id -> class of the paper's fifteen
PAPER_15 = {7: 0, 8: 1, 11: 2, 13: 3, 17: 4, 19: 5, 20: 6, 21: 7, 22: 8, 23: 9, 24: 10, 26: 11, 27: 12, 28: 13, 32: 14}
# (part, place, labelled frame): an ordinary city, and two snippets of one that was filmed without a stop
SNIPPETS = (
    ("train", "aachen_000000", 19),
    ("train", "hamburg_000000", 42505),
    ("train", "hamburg_000000", 42535),  # its frames follow on those of the one before without a gap
    ("val", "frankfurt_000001", 7973),
    ("test", "berlin_000004", 19),
)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pixels_of(place: str, number: int) -> np.ndarray:
    return np.random.default_rng([len(place), number]).integers(0, 256, (H, W, 3), dtype=np.uint8)


def label_file(root: Path, part: str, place: str, number: int, kind: str = "labelIds") -> Path:
    return root / "gtFine" / part / place.split("_")[0] / f"{place}_{number:06d}_gtFine_{kind}.png"


def image_file(root: Path, part: str, place: str, number: int, folder: str = "leftImg8bit_sequence") -> Path:
    return root / folder / part / place.split("_")[0] / f"{place}_{number:06d}_leftImg8bit.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As downloaded, with the other files of gtFine; aachen has train ids too."""
    for part, place, labelled in SNIPPETS:
        for number in range(labelled - 19, labelled + 11):
            write(image_file(tmp_path, part, place, number), pixels_of(place, number))
        write(label_file(tmp_path, part, place, labelled), LABEL_IDS if part != "test" else np.zeros_like(LABEL_IDS))
        write(label_file(tmp_path, part, place, labelled, "color"), np.zeros((H, W, 3), np.uint8))
        write(label_file(tmp_path, part, place, labelled, "instanceIds"), np.zeros((H, W), np.uint16))
        label_file(tmp_path, part, place, labelled, "polygons").with_suffix(".json").write_text("{}")
    write(label_file(tmp_path, "train", "aachen_000000", 19, "labelTrainIds"), np.full((H, W), 13, np.uint8))
    return tmp_path


def test_snippets_are_found_from_their_labels(root: Path) -> None:
    data = open_dataset("cityscapes/train", root, (H, W))
    assert data.classes == tuple(CLASS_MAPS["paper-15"])
    assert {clip.name: (clip.frame_names[0], clip.frame_names[-1]) for clip in data.clips} == {
        "aachen_000000_000019": ("aachen_000000_000000", "aachen_000000_000029"),
        "hamburg_000000_042505": ("hamburg_000000_042486", "hamburg_000000_042515"),
        "hamburg_000000_042535": ("hamburg_000000_042516", "hamburg_000000_042545"),
    }
    assert [len(clip) for clip in data.clips] == [30] * 3
    for clip in data.clips:
        assert [i for i in range(30) if clip.label(i) is not None] == [19]
    assert np.array_equal(data.clips[1].frame(3), pixels_of("hamburg_000000", 42489))
    assert data.clips[0].exact_flow(0, 1) is None


def test_both_codings_of_labels(root: Path) -> None:
    with_train_ids, with_label_ids, _ = cityscapes("train", root=root, size=(H, W)).clips
    assert (with_train_ids.label(19) == 11).all()  # car: the labelTrainIds are read where they are there
    wanted = [PAPER_15.get(i, IGNORE) for i in range(34)]
    assert with_label_ids.label(19).tolist() == [wanted] * H


@pytest.mark.parametrize("name", CLASS_MAPS)
def test_label_ids_and_train_ids_agree(name: str) -> None:
    ids, train_ids = label_id_table(name), class_table(name, "cityscapes")
    for raw in range(256):
        wanted = train_ids[TO_TRAIN.get(raw, IGNORE)] if raw < 34 else -1
        assert ids[raw] == wanted, raw


def test_pairs_and_labelled_frames_alone(root: Path) -> None:
    for number in range(42505 - 19, 42505 + 11):
        if number not in (42504, 42505):  # a pair is all that it needs on disk
            image_file(root, "train", "hamburg_000000", number).unlink()
    pairs = cityscapes("train:pairs:davsn-15", root=root, size=(H, W))
    assert pairs.classes == tuple(CLASS_MAPS["davsn-15"])
    assert [list(clip.frame_names) for clip in pairs.clips[:2]] == [
        ["aachen_000000_000018", "aachen_000000_000019"],
        ["hamburg_000000_042504", "hamburg_000000_042505"],
    ]
    clip = pairs.clips[1]
    assert clip.label(0) is None
    assert clip.label(1)[0, 25] == clip.label(1)[0, 24] == 9  # riders are persons
    assert np.array_equal(clip.frame(1), pixels_of("hamburg_000000", 42505))
    assert spread(pairs, 1)
    alone = cityscapes("train:labelled", root=root, size=(H, W))
    assert [list(clip.frame_names) for clip in alone.clips[:2]] == [["aachen_000000_000019"], ["hamburg_000000_042505"]]
    assert alone.clips[0].label(0) is not None
    (root / "leftImg8bit_sequence").rename(root / "leftImg8bit")  # the smaller download has them
    assert np.array_equal(
        cityscapes("train:labelled", root=root, size=(H, W)).clips[1].frame(0), pixels_of("hamburg_000000", 42505)
    )
    refused(root, "train:pairs", r"leftImg8bit_sequence.*aachen_000000_000018_leftImg8bit\.png: wanted an image, found")


def test_blank_labels_of_test_are_none(root: Path) -> None:
    (clip,) = cityscapes("test", root=root, size=(H, W)).clips
    assert len(clip) == 30
    assert clip.label(19) is None


def test_frames_and_labels_are_resized_together(root: Path) -> None:
    (clip,) = cityscapes("val", root=root, size=(2 * H, 2 * W)).clips
    assert clip.frame(19).shape == (2 * H, 2 * W, 3)
    assert np.array_equal(
        clip.label(19), np.kron(cityscapes("val", root=root, size=(H, W)).clips[0].label(19), np.ones((2, 2), np.uint8))
    )


def refused(root: Path, split: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        cityscapes(split, root=root)
    assert "\n" not in str(error.value)


def test_wrong_files_are_named(root: Path) -> None:
    refused(root, "trian", "wanted a split of train, val, test, found 'trian'")
    refused(root, "train:pairs:labelled", "cityscapes/train:pairs:labelled: wanted pairs or labelled, found both")
    refused(root, "train:pair", "wanted, after the colon, .*found 'pair', perhaps you meant pairs")
    refused(root / "nowhere", "train", "wanted the folder of Cityscapes, found nothing there")
    label = label_file(root, "val", "frankfurt_000001", 7973)
    write(label, np.zeros((H, W, 3), np.uint8))
    refused(root, "val", r"007973_gtFine_labelIds\.png: wanted a label PNG of grey with 8 bits, found 8-bit RGB")
    write(label, np.zeros((H, W + 1), np.uint8))
    refused(
        root, "val", r"labelIds\.png: wanted the size of frankfurt_000001_007973_leftImg8bit\.png, 34 x 4 .* 35 x 4"
    )
    write(label, np.full((H, W), 34, np.uint8))
    with pytest.raises(UsageError, match=r"007973_gtFine_labelIds\.png: wanted label values 0, 1, .*, 33, found 34"):
        cityscapes("val", root=root).clips[0].label(19)
    image_file(root, "val", "frankfurt_000001", 7960).unlink()
    refused(root, "val", r"val/frankfurt/frankfurt_000001_007960_leftImg8bit\.png: wanted an image, found no file")
    early = label.with_name("frankfurt_000001_000018_gtFine_labelIds.png")
    label.rename(early)
    refused(
        root, "val", r"000018_gtFine_labelIds\.png: wanted the label of the 20th frame of a snippet, found frame 18"
    )
    early.rename(label.with_name("lindau_000001_007973_gtFine_labelIds.png"))
    refused(root, "val", r"lindau_000001_007973.*: wanted a name like frankfurt_SSSSSS_FFFFFF_gtFine_labelIds\.png")
    label.with_name("lindau_000001_007973_gtFine_labelIds.png").unlink()
    refused(root, "val", r"gtFine/val: wanted folders of cities .*, found none")


def test_train_ids_in_a_file_of_label_ids_are_told(root: Path) -> None:
    """255 is no label id: the usual mistake, train ids under the other name, is an error and not a wrong class."""
    path = write(label_file(root, "val", "frankfurt_000001", 7973), np.full((H, W), 255, np.uint8))
    with pytest.raises(UsageError, match=rf"{path.name}: wanted label values 0, 1, .*, 33, found 255"):
        cityscapes("val", root=root).clips[0].label(19)


@pytest.mark.parametrize(
    ("scenario", "classes"), [("viper-cityscapes", "davsn-15"), ("synthia-cityscapes", "davsn-12")]
)
def test_scenarios_have_the_classes_of_davsn(scenario: str, classes: str) -> None:
    data = SCENARIOS[scenario].base.data
    for name in (data.source, data.target, data.oracle, data.validation):
        dataset, _, split = name.partition("/")
        assert split_words(dataset, split, tuple(CLASS_MAPS), ("pairs", "labelled"))[1] == classes
