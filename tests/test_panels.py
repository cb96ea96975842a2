"""The strips of a run: which clips and frames, and every picture of a clip whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from clips import ArrayClip, dataset, scrolling_clip

from vda.options import Occlusion, Report
from vda.panels import (
    NOT_VISIBLE,
    WARP_ERROR,
    flow_strips,
    prediction_strips,
    pseudo_strips,
    shown_frames,
    worst_first,
)
from vda.predictions import NetworkPredictor
from vda.pseudo import PseudoLabels


def per_clip(**mious: float | None) -> dict[str, Any]:
    return {"per_clip": [{"clip": c, "frames": 4, "miou": m, "vpq": None} for c, m in mious.items()]}


CLIPS = [scrolling_clip(name, seed=i) for i, name in enumerate("abcd")]


def test_worst_clips_come_first() -> None:
    """By the last stage that is no ceiling; a clip without a score comes last, one of another set not at all."""
    scores = {
        "vat": per_clip(a=0.1, b=0.2, c=0.3, d=0.4),
        "vst": per_clip(a=0.4, b=None, c=0.25, d=0.3, elsewhere=0.0),
        "oracle": per_clip(a=0.9, b=0.8, c=0.7, d=0.6),
    }
    found = worst_first(dataset(*CLIPS), scores, 4)
    assert [(clip.name, note) for clip, note in found] == [
        ("c", "VST: mIoU 25.0, VPQˢ -"),
        ("d", "VST: mIoU 30.0, VPQˢ -"),
        ("a", "VST: mIoU 40.0, VPQˢ -"),
        ("b", "VST: mIoU -, VPQˢ -"),
    ]
    assert [clip.name for clip, _ in worst_first(dataset(*CLIPS), scores, 1)] == ["c"]
    assert [clip.name for clip, _ in worst_first(dataset(*CLIPS), {"oracle": scores["oracle"]}, 2)] == ["d", "c"]


@pytest.mark.parametrize(("count", "names"), [(0, ""), (1, "a"), (2, "ad"), (3, "acd"), (9, "abcd")])
def test_clips_are_spread_where_there_are_no_scores_of_clips(count: int, names: str) -> None:
    found = worst_first(dataset(*CLIPS), {"vst": {"miou": 0.5}}, count)
    assert [(clip.name, note) for clip, note in found] == [(name, "") for name in names]


@pytest.mark.parametrize(
    ("length", "labelled", "count", "wanted"),
    [
        (10, None, 4, range(4)),  # no labels at all
        (10, [0], 4, range(4)),
        (10, [3, 8], 4, range(3, 7)),  # from the first labelled one on
        (10, [9], 4, range(6, 10)),  # as many as wanted, though the label is the last one's
        (3, [2], 24, range(3)),
        (1, None, 4, range(1)),
    ],
)
def test_shown_frames(length: int, labelled: list[int] | None, count: int, wanted: range) -> None:
    class Sparse(ArrayClip):
        def label(self, i: int) -> Any:
            return super().label(i) if i in (labelled or []) else None

    clip = Sparse("x", np.zeros((length, 4, 4, 3), np.uint8), np.zeros((length, 4, 4), np.uint8))
    assert shown_frames(clip, count) == wanted
    if length > 1:
        pairs = shown_frames(clip, count, stop=length - 1)
        assert len(pairs) == min(count, length - 1)
        assert pairs.stop <= length - 1


def test_prediction_strips_by_hand() -> None:
    """One model is always right, one shifts each class by one; void is judged by neither; a third gives nothing."""
    clip = scrolling_clip("a", length=3)
    assert clip.labels is not None
    clip.labels[1, 0] = 255
    data = dataset(clip)
    predictors = {
        "vat": lambda clip, i: np.where(clip.labels[i] == 255, 0, clip.labels[i]).astype(np.uint8),
        "vst": lambda clip, i: ((clip.labels[i].astype(int) + 1) % 3).astype(np.uint8),
        "other": lambda clip, i: None,
    }
    group = prediction_strips(predictors, data, {}, Report(clips=2, frames=2))
    (strip,) = group.strips
    assert group.title == "Clips, evenly over the set: arrays/all"
    assert (strip.title, list(strip.names)) == ("a", ["0000", "0001"])
    rows = {row.caption: row for row in strip.rows}
    assert list(rows) == ["truth", "vat", "errors of VAT", "vst", "errors of VST", "other"]
    np.testing.assert_array_equal(strip.frames[1], clip.frames[1])
    np.testing.assert_array_equal(rows["truth"].pictures[1], clip.labels[1])
    for name, verdict in (("VAT", 0), ("VST", 1)):
        wanted = np.full(clip.labels[1].shape, verdict)
        np.testing.assert_array_equal(rows[f"errors of {name}"].pictures[0], wanted)
        wanted[0] = 2
        np.testing.assert_array_equal(rows[f"errors of {name}"].pictures[1], wanted)
    assert list(rows["other"].pictures) == [None, None]


def test_prediction_strips_without_labels_have_no_truth_and_no_errors() -> None:
    clip = ArrayClip("a", np.zeros((1, 4, 6, 3), np.uint8))
    predict = {"vst": lambda clip, i: np.zeros((4, 6), np.uint8)}
    group = prediction_strips(predict, dataset(clip), {"vst": per_clip(a=None)}, Report())
    assert [row.caption for row in group.strips[0].rows] == ["vst"]
    assert group.title == "Worst clips: arrays/all"


def test_predictions_of_another_size_are_shown_but_not_judged() -> None:
    clip = scrolling_clip("a", length=2)
    group = prediction_strips({"vst": lambda clip, i: np.zeros((5, 7), np.uint8)}, dataset(clip), {}, Report())
    assert [row.caption for row in group.strips[0].rows] == ["truth", "vst"]


def test_large_frames_are_shrunk_at_once() -> None:
    frames = np.zeros((1, 40, 2048, 3), np.uint8)
    labels = np.zeros((1, 40, 2048), np.uint8)
    labels[0, :, :5] = 2
    group = prediction_strips(
        {"m": lambda clip, i: clip.labels[i]}, dataset(ArrayClip("a", frames, labels)), {}, Report()
    )
    (strip,) = group.strips
    assert strip.frames[0].shape == (19, 960, 3)
    assert [row.pictures[0].shape for row in strip.rows] == [(19, 960)] * 3
    assert set(np.unique(strip.rows[0].pictures[0])) == {0, 2}  # sampled, never mixed


def test_network_predictor_is_the_argmax_at_full_size() -> None:
    class Halves(torch.nn.Module):
        """Class 1 where the left quarter of the frame is bright, at an eighth of the size; never in training mode."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            bright = torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 8)
            return torch.cat([torch.full_like(bright, 0.5), bright], 1)

    frame = np.zeros((1, 16, 32, 3), np.uint8)
    frame[..., :16, :] = 255
    found = NetworkPredictor(Halves().train(), torch.device("cpu"))(ArrayClip("a", frame), 0)
    assert found is not None
    assert (found.dtype, found.shape) == (np.uint8, (16, 32))
    assert (found[:, :12] == 1).all()
    assert (found[:, 20:] == 0).all()


class TrueLabels(PseudoLabels):
    def __call__(self, clip: Any, i: int) -> Any:
        return clip.label(i)


def exact(clip: ArrayClip, i: int, j: int) -> Any:
    return clip.exact_flow(i, j)


@pytest.mark.parametrize("test", ["photometric", "consistency", "both"])
def test_pseudo_strips_of_a_scrolling_clip(test: Any, tmp_path: Any) -> None:
    """Stripes move two pixels to the left: the left two columns leave the frame, all else fits without error."""
    data = dataset(scrolling_clip(shift=2, size=(32, 48)))
    group = pseudo_strips(data, TrueLabels(tmp_path, []), exact, "strict", Occlusion(test=test), Report(frames=3))
    (strip,) = group.strips
    assert list(strip.names) == ["0000", "0001", "0002"]
    rows = {row.caption: row for row in strip.rows}
    left = np.tile(np.arange(48) < 2, (32, 1))
    for i in range(3):
        np.testing.assert_array_equal(rows[NOT_VISIBLE].pictures[i], np.where(left, 0, 255))
        error = rows[WARP_ERROR].pictures[i]
        assert error is not None
        assert (error[:, :2] == (0, 255, 255)).all()
        np.testing.assert_allclose(error[:, 2:].astype(int), np.broadcast_to((0, 0, 4), (32, 46, 3)), atol=1)
        assert (rows["flow to the next frame"].pictures[i] == (0, 209, 255)).all()
        truth = data.clips[0].label(i)
        np.testing.assert_array_equal(rows["pseudo label"].pictures[i], truth)
        # Eq. 13, strict: what leaves the frame has no counterpart to agree with, and has the colour after the classes
        np.testing.assert_array_equal(rows["after refinement"].pictures[i], np.where(left, 3, truth))
    colours = rows["after refinement"].colours
    assert colours is not None
    assert colours.shape == (4, 3)
    assert colours[3].tolist() == [0, 0, 0]
    assert f"Occlusion test: {test}." in group.note


def test_pseudo_strips_begin_with_the_least_covered_clip(tmp_path: Any) -> None:
    single = scrolling_clip("single", length=1)
    covered = {"a": [0.5, 0.2], "b": [0.1, 0.0], "c": [0.3, 0.3], "single": [0.0, 0.0]}
    labels = TrueLabels(tmp_path, [{}, *({"clip": name, "coverage": shares} for name, shares in covered.items())])
    data = dataset(*CLIPS[:3], single)
    group = pseudo_strips(data, labels, exact, "none", Occlusion(), Report(clips=2))
    assert [strip.title for strip in group.strips] == ["b", "c"]


def test_flow_strips_compare_with_true_flow_where_there_is_one() -> None:
    known = scrolling_clip("known", length=2, shift=2)
    unknown = ArrayClip("unknown", known.frames, known.labels)

    def still(clip: Any, i: int, j: int) -> Any:
        return np.zeros((2, *clip.frames.shape[1:3]), np.float32)

    first, second = flow_strips(still, dataset(known, unknown), Report()).strips
    assert [row.caption for row in first.rows] == ["true flow", "estimated flow", WARP_ERROR]
    assert (first.rows[0].pictures[0] == (0, 209, 255)).all()  # to the left, the longest
    assert (first.rows[1].pictures[0] == 255).all()
    assert [row.caption for row in second.rows] == ["estimated flow", WARP_ERROR]


def test_unknown_flow_does_not_set_the_scale() -> None:
    """Right by 4 pixels in one pixel, half as far in the next, and then not a number, and endless."""
    clip = ArrayClip("a", np.zeros((2, 1, 4, 3), np.uint8))

    def odd(clip: Any, i: int, j: int) -> Any:
        return np.array([[[4, 2, np.nan, np.inf]], [[0, 0, 0, 0]]], np.float32)

    (strip,) = flow_strips(odd, dataset(clip), Report()).strips
    assert strip.rows[0].pictures[0] is not None
    assert strip.rows[0].pictures[0][0].tolist() == [[255, 0, 0], [255, 127, 127], [0, 0, 0], [0, 0, 0]]
