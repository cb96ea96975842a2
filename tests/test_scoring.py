"""Predictions of a network and of a folder, through the scoring loop and `evaluate.py`; and what is refused."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from clips import ArrayClip, dataset, scrolling_clip
from PIL import Image
from torch import nn

import evaluate as script
from vda.data import VideoDataset
from vda.data.labels import write_label
from vda.errors import UsageError
from vda.flow.providers import DISFlow, ExactFlow
from vda.metrics import ConfusionMatrix
from vda.options import Occlusion
from vda.predictions import FolderPredictor, holds_predictions, size_of_predictions
from vda.proportion import pseudo_scores
from vda.pseudo import PseudoLabels
from vda.score_page import markdown
from vda.scoring import Motion, score, score_predictions

VOID = 255


def data(*, labelled: int | None = None) -> VideoDataset:
    """Two clips of five and nine frames; with `labelled` only every so-many-th frame of them has labels."""
    clips = [scrolling_clip("a", 5, seed=1), scrolling_clip("b", 9, seed=2)]
    return dataset(*(Sparse(**vars(clip), every=labelled) if labelled else clip for clip in clips))


class Sparse(ArrayClip):
    def __init__(self, every: int, **fields: Any) -> None:
        super().__init__(**fields)
        self.every = every

    def label(self, i: int) -> Any:
        return super().label(i) if i % self.every == 0 else None


def write_predictions(folder: Path, videos: VideoDataset, *, wrong: float = 0.2, every: int = 1) -> None:
    rng = np.random.default_rng(0)
    for clip in videos.clips:
        for i in range(0, len(clip), every):
            label = clip.labels[i]
            noise = rng.integers(0, 3, label.shape)
            pred = np.where(rng.random(label.shape) < wrong, noise, label).astype(np.uint8)
            write_label(folder / clip.name / f"{clip.frame_names[i]}.png", pred)


# --- the loop


class OfColour(nn.Module):
    """The class whose colour of `dataset` is nearest, at half the size; class 2 is never found."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        red = nn.functional.avg_pool2d(image[:, :1], 2)
        return torch.cat([-red, red - 0.5, torch.full_like(red, -9)], 1)


def test_network_is_scored_at_the_size_of_the_labels() -> None:
    videos, network = data(), OfColour()
    found, matrix = score(network, videos, torch.device("cpu")), ConfusionMatrix(3)
    for clip in videos.clips:
        for i in range(len(clip)):
            image = torch.from_numpy(clip.frame(i)).permute(2, 0, 1)[None] / 255
            logits = nn.functional.interpolate(network(image), scale_factor=2, mode="bilinear", align_corners=True)
            matrix.update(logits.argmax(1)[0], torch.from_numpy(clip.label(i)).long())
    assert found["iou"] == [None if np.isnan(x) else x for x in matrix.iou()]
    assert (found["frames"], found["clips"], found["size"]) == (14, 2, [24, 40])
    assert (found["tc"], found["tc_pairs"], found["dataset"]) == (None, 0, "arrays/all")
    assert "flow" not in found
    assert [entry["clip"] for entry in found["per_clip"]] == ["a", "b"]


def test_mvc_of_a_clip_that_stands_still() -> None:
    clip = scrolling_clip("a", 9, shift=0)
    preds = clip.labels.copy()
    preds[8, :12] = VOID  # half of the last frame is missing: it is in the second of the two windows
    found = score_predictions(lambda _, i: preds[i], dataset(clip))
    assert found["mvc"] == {"8": 0.75, "16": None}


def test_tc_of_labels_that_move_with_the_flow_is_perfect() -> None:
    found = score_predictions(lambda clip, i: clip.labels[i], data(), motion=Motion(ExactFlow()))
    assert (found["tc"], found["tc_unmasked"], found["tc_pairs"]) == (1.0, 1.0, 4 + 8)
    assert (found["flow"], found["occlusion"]["test"]) == ("exact", "photometric")


@pytest.mark.parametrize("test", ["photometric", "consistency", "both"])
def test_tc_leaves_out_what_the_next_frame_does_not_show(test: str) -> None:
    # In frame 3 a box of another colour hides the left half. Behind it is predicted class 2 in place of what was there.
    clip = scrolling_clip("a", 5, classes=2, seed=1)
    clip.frames[3, :, :20] = (1, 250, 90)
    preds = clip.labels.copy()
    preds[3, :, :20] = 2
    found = score_predictions(
        lambda _, i: preds[i], dataset(clip), motion=Motion(ExactFlow(), Occlusion(test=test, alpha=50))
    )
    assert found["tc_unmasked"] < 0.7
    assert (found["tc"] == 1.0) == (test != "consistency")  # exact flow there and back agrees behind the box too


def test_tc_by_estimated_flow_uses_frames_without_labels() -> None:
    videos = data(labelled=4)
    asked = []

    def predict(clip: Any, i: int) -> Any:
        asked.append((clip.name, i))
        return clip.labels[i]

    without = score_predictions(predict, videos)
    assert asked == [("a", 0), ("a", 4), ("b", 0), ("b", 4), ("b", 8)]
    found = score_predictions(predict, videos, motion=Motion(DISFlow()))
    assert len(asked) == 5 + 14
    assert found["tc_pairs"] == 12
    assert found["tc"] > 0.8
    assert {key: found[key] for key in ("iou", "vpq_k", "mvc", "per_clip")} == {
        key: without[key] for key in ("iou", "vpq_k", "mvc", "per_clip")
    }
    assert found["mvc"] == {"8": None, "16": None}  # no eight successive frames have labels
    assert found["vpq_k"] == [1.0, 1.0, 1.0, None]


def test_nothing_to_score_is_refused_and_tc_alone_is_not() -> None:
    clip = scrolling_clip("a", 3)
    bare = replace(dataset(clip), clips=(ArrayClip("a", clip.frames, None, clip.flow),))
    with pytest.raises(UsageError, match=r"data set arrays/all: wanted labelled frames to score, found none"):
        score_predictions(lambda _, i: clip.labels[i], bare)
    found = score_predictions(lambda _, i: clip.labels[i], bare, motion=Motion(ExactFlow()))
    assert (found["tc"], found["miou"], found["frames"]) == (1.0, None, 0)
    assert "optical flow of TC exact, TC over 2 pairs" in markdown({"x": found | {"rule": "last"}})


# --- a folder of label images


def test_folder_gives_what_the_arrays_give(tmp_path: Path) -> None:
    videos = data()
    write_predictions(tmp_path, videos)
    arrays = {
        (clip.name, i): np.array(Image.open(tmp_path / clip.name / f"{clip.frame_names[i]}.png"))
        for clip in videos.clips
        for i in range(len(clip))
    }
    wanted = score_predictions(lambda clip, i: arrays[clip.name, i], videos)
    assert score_predictions(FolderPredictor(tmp_path, videos), videos) == wanted
    assert 0.5 < wanted["miou"] < 0.9
    assert holds_predictions(tmp_path)
    assert size_of_predictions(tmp_path) == (24, 40)


def test_palette_images_hold_class_numbers(tmp_path: Path) -> None:
    videos = dataset(scrolling_clip("a", 1))
    image = Image.fromarray(videos.clips[0].label(0), mode="P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0] + 253 * [1, 2, 3])
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "0000.png")
    assert score_predictions(FolderPredictor(tmp_path, videos), videos)["miou"] == 1


def test_only_labelled_frames_need_a_prediction_unless_tc_is_wanted(tmp_path: Path) -> None:
    videos = data(labelled=4)
    write_predictions(tmp_path, videos, every=4)
    assert score_predictions(FolderPredictor(tmp_path, videos), videos)["frames"] == 5
    with pytest.raises(UsageError, match=r"a/0001\.png: wanted a prediction for every frame, which TC"):
        FolderPredictor(tmp_path, videos, every_frame=True)


def _small(path: Path) -> None:
    write_label(path, np.zeros((24, 39), np.uint8))


def _colour(path: Path) -> None:
    Image.new("RGB", (40, 24)).save(path)


def _deep(path: Path) -> None:
    Image.fromarray(np.zeros((24, 40), np.uint16)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, r"b/0003\.png: wanted a prediction for every labelled frame, found none"),
        (_small, r"b/0003\.png: wanted 40 x 24 pixels, the size at which arrays/all is read, found 39 x 24"),
        (_colour, r"b/0003\.png: wanted a label PNG of grey with 8 bits or a palette, found 8-bit RGB"),
        (_deep, r"b/0003\.png: wanted a label PNG of .* found 16-bit grey"),
        (lambda path: path.write_bytes(b"no image"), r"b/0003\.png: wanted a PNG label image"),
        (lambda path: path.rename(path.with_name("0009.png")), r"b/0003\.png: wanted a prediction"),
        (
            lambda path: _small(path.with_name("0009.png")),
            r"b/0009\.png: wanted a name .* such as a/0000\.png, .* 1 such",
        ),
        (lambda path: _small(path.parents[1] / "c" / "0000.png"), r"c/0000\.png: wanted a name of a frame"),
        (lambda path: _small(path.parents[1] / "0000.png"), r"/0000\.png: wanted a name of a frame"),
    ],
)
def test_folder_is_checked_before_anything_is_scored(spoil: Any, message: str, tmp_path: Path) -> None:
    write_predictions(tmp_path, data())
    spoil(tmp_path / "b" / "0003.png")
    with pytest.raises(UsageError, match=message):
        FolderPredictor(tmp_path, data())


def test_damaged_pixels_and_unknown_classes_are_named(tmp_path: Path) -> None:
    videos = data()
    write_predictions(tmp_path, videos)
    path = tmp_path / "b" / "0003.png"
    label = np.zeros((24, 40), np.uint8)
    label[3, 7], label[4, 7] = 3, VOID
    write_label(path, label)
    with pytest.raises(UsageError, match=r"b/0003\.png: wanted classes 0 \.\. 2 or 255 \(none\), found 3"):
        score_predictions(FolderPredictor(tmp_path, videos), videos)
    label[3, 7] = 2
    write_label(path, label)
    assert score_predictions(FolderPredictor(tmp_path, videos), videos)["coverage"] == 1 - 1 / (14 * 24 * 40)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UsageError, match=r"b/0003\.png: wanted a whole image"):
        score_predictions(FolderPredictor(tmp_path, videos), videos)


def test_bytes_changed_at_random_are_refused_or_give_labels(tmp_path: Path) -> None:
    videos = dataset(scrolling_clip("a", 1))
    write_predictions(tmp_path, videos)
    path, rng = tmp_path / "a" / "0000.png", np.random.default_rng(0)
    good = path.read_bytes()
    messages = []
    for _ in range(300):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), rng.integers(1, 4)):
            bad[place] = rng.integers(0, 256)
        path.write_bytes(bad[: rng.integers(1, len(bad) + 1)] if rng.random() < 0.2 else bad)
        try:
            size_of_predictions(tmp_path)
            label = FolderPredictor(tmp_path, videos)(videos.clips[0], 0)
        except UsageError as error:
            messages.append(str(error))
        else:
            assert label.shape == (24, 40)
            assert set(np.unique(label)) <= {0, 1, 2, VOID}
    assert len(messages) > 200
    assert all("0000.png: wanted" in message for message in messages)


def test_clips_may_be_links_and_sizes_beyond_reason_are_refused(tmp_path: Path) -> None:
    videos = data()
    write_predictions(tmp_path / "elsewhere", videos)
    (tmp_path / "linked").mkdir()
    for name in ("a", "b"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert score_predictions(FolderPredictor(tmp_path / "linked", videos), videos)["frames"] == 14
    path = tmp_path / "elsewhere" / "a" / "0000.png"
    head = bytearray(path.read_bytes())
    head[16:24] = (200_000).to_bytes(4) * 2
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4)
    path.write_bytes(head)
    with pytest.raises(UsageError, match=r"a/0000\.png: wanted an image, found an unreadable file \(Image size"):
        size_of_predictions(tmp_path / "elsewhere")


# --- pseudo labels


def test_pseudo_labels_by_hand(tmp_path: Path) -> None:
    # truth 0 0 1 1 | void, labels 0 - 1 0 | 0: class 0 is covered 1 of 2 and right 1 of 2, class 1 2 of 2 and 1 of 2.
    truth = np.array([[[0, 0, 1, 1, VOID]]], np.uint8)
    clip = ArrayClip("a", np.zeros((1, 1, 5, 3), np.uint8), truth)
    write_label(tmp_path / "a" / "0000.png", np.array([[0, VOID, 1, 0, 0]], np.uint8))
    entry = {"clip": "a", "frames": 1, "coverage": [0.6, 0.2, 0.0], "theta": [0.5] * 3}
    labels = PseudoLabels(tmp_path, [{"size": [1, 5]}, entry])
    found = json.loads(json.dumps(pseudo_scores(dataset(clip), labels), allow_nan=False))
    assert found["coverage"] == [0.5, 1.0, None]
    assert found["iou"] == [0.5, 0.5, None]
    assert (found["miou"], found["frames"]) == (0.5, 1)
    scores = score_predictions(FolderPredictor(tmp_path, dataset(clip)), dataset(clip))
    assert (scores["miou_covered"], scores["coverage"]) == (0.5, 0.75)
    assert scores["miou"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert "| 75.0 (mIoU 50.0) |" in markdown({"x": scores | {"rule": "none"}})


# --- evaluate.py


def evaluate(*arguments: object) -> None:
    words = [str(word) for word in arguments]
    script.evaluate(tyro.cli(script.Evaluate, args=words))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """evaluate.py reads the arrays; tmp_path has predictions of two qualities."""
    videos = data()
    monkeypatch.setattr(script, "open_dataset", lambda name, root, size: videos)
    write_predictions(tmp_path / "good", videos, wrong=0.1)
    write_predictions(tmp_path / "bad|", videos, wrong=0.5)
    return tmp_path


def test_runs_side_by_side_in_three_files(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = served / "good", served / "bad|"
    evaluate(good, bad, good, "--data", "arrays/all", "--flow", "exact", "--out", served / "new" / "compared")
    folder = served / "new" / "compared"
    assert sorted(path.name for path in folder.iterdir()) == ["scores.html", "scores.json", "scores.md"]
    scores = json.loads((folder / "scores.json").read_text())
    assert list(scores) == [str(good), str(bad)]
    assert scores[str(good)]["miou"] > scores[str(bad)]["miou"] + 0.2
    assert scores[str(good)]["tc"] > scores[str(bad)]["tc"] + 0.2
    text = (folder / "scores.md").read_text()
    assert text.startswith("# Scores on arrays/all\n\n|")
    shown = scores[str(good)]
    low, high = shown["interval"]["miou"]
    for words in (
        f"{100 * shown['miou']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        "3 classes (class0, class1, class2)",
        "14 labelled frames in 2 clips of 24 × 40 pixels",
        "label 255 ignored",
        "checkpoint rule none, label images",
        "optical flow of TC exact, TC over 12 pairs, occlusion test photometric",
        r"bad\|",
    ):
        assert words in text
    assert text.partition("\n\n")[2] == capsys.readouterr().out
    assert "class2" in (folder / "scores.html").read_text()
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace(r"\|", "").count("|") in (11, 7, 5), line


def test_all_are_checked_before_the_first_is_scored(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "score_predictions", lambda *_, **__: pytest.fail("scored"))
    (served / "bad|" / "b" / "0008.png").unlink()
    with pytest.raises(UsageError, match=r"b/0008\.png: wanted a prediction"):
        evaluate(served / "good", served / "bad|", "--data", "arrays/all")


@pytest.mark.parametrize("name", ["s.json", "s.md", "s.html"])
def test_one_file(served: Path, name: str) -> None:
    evaluate(served / "good", "--data", "arrays/all", "--out", served / "out" / name)
    assert [path.name for path in (served / "out").iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good", "--ensemble"], "--ensemble: wanted checkpoints alone, found a folder of label images"),
        (["."], "wanted a checkpoint, or label images named CLIP/FRAME.png, found neither"),
        (["nowhere"], "nowhere: wanted a checkpoint folder, found nothing"),
        (["good", "--out", "good/a/0000.png"], "wanted a folder, or a file that ends in .json, .md, .html"),
        (["good", "--out", "folder.json"], r"folder\.json: wanted a file for the scores, found a folder"),
        (["good", "--flow-root", "x"], "--flow-root: wanted --flow beside it"),
        (["good", "--flow", "precomputed"], "precomputed: wanted --flow.root"),
        ([], "wanted at least one"),
    ],
)
def test_bad_arguments(served: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(served)
    (served / "folder.json").mkdir()
    with pytest.raises(UsageError, match=message):
        evaluate(*arguments, "--data", "arrays/all")
