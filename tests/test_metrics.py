"""Scores against the official evaluator's values, hand-worked numbers and a naive implementation."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shared import shared_data

from vda.metrics import (
    ConfusionMatrix,
    Scorer,
    VideoPanopticQuality,
    joint_histogram,
)
from vda.metrics.confusion import _count_on_device, _count_on_host

VOID = 255


def naive_vpq(clips, K, k):
    """Tubes as sets of (frame, pixel), matched by the published rules: exact fractions per class, or None."""
    tp, fp, fn, total = [0] * K, [0] * K, [0] * K, [Fraction(0)] * K
    for preds, labels in clips:
        for start in range(len(preds) - k + 1):
            true, predicted = {}, {}
            for t in range(start, start + k):
                for place, value in enumerate(np.ravel(labels[t]).tolist()):
                    true.setdefault(value, set()).add((t, place))
                for place, value in enumerate(np.ravel(preds[t]).tolist()):
                    predicted.setdefault(value, set()).add((t, place))
            void = true.pop(VOID, set())
            predicted.pop(VOID, None)
            for c in range(K):
                g, p = true.get(c, set()), predicted.get(c, set())
                iou = Fraction(len(g & p), len((g | p) - (p & void))) if g & p else Fraction(0)
                if iou > Fraction(1, 2):
                    tp[c], total[c] = tp[c] + 1, total[c] + iou
                    continue
                fn[c] += bool(g)
                fp[c] += bool(p) and not Fraction(len(p & void), len(p)) > Fraction(1, 2)
    weight = [Fraction(2 * tp[c] + fp[c] + fn[c], 2) for c in range(K)]
    return [total[c] / weight[c] if weight[c] else None for c in range(K)]


def naive_iou(preds, labels, K):
    result = []
    pairs = [(p, g) for p, g in zip(np.ravel(preds).tolist(), np.ravel(labels).tolist(), strict=True) if g != VOID]
    for c in range(K):
        union = sum(p == c or g == c for p, g in pairs)
        result.append(sum(p == c and g == c for p, g in pairs) / union if union else None)
    return result


def measured(clips, K):
    vpq = VideoPanopticQuality(K)
    for preds, labels in clips:
        vpq.add_clip(preds, labels)
    return vpq


def assert_equals_naive(clips, K):
    vpq = measured(clips, K)
    for row, k in enumerate(vpq.windows):
        wanted = [np.nan if value is None else float(value) for value in naive_vpq(clips, K, k)]
        np.testing.assert_allclose(vpq.per_window()[row], wanted, rtol=0, atol=1e-12)


# --- the official evaluator -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v1_tiny", "v2_void_rules", "v3_random_3clips", "v4_varlen", "v5_camvid"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_vpq_equals_official_evaluator(name, kind):
    with np.load(shared_data("vpq_vectors", f"{name}.npz"), allow_pickle=False) as vector:
        v = dict(vector)
    assert int(v["ignore_index"]) == VOID
    assert tuple(v["ks"]) == (1, 2, 3, 4)
    vpq = VideoPanopticQuality(int(v["num_classes"]))
    preds, labels = v["pred"], v["gt"]
    if kind == "torch":
        preds, labels = torch.from_numpy(preds), torch.from_numpy(labels)
    start = 0
    for length in v["lengths"].tolist():
        vpq.add_clip(preds[start : start + length], labels[start : start + length])
        start += length
    assert start == len(preds)
    np.testing.assert_array_equal(vpq.tp, v["tp"])
    np.testing.assert_array_equal(vpq.fp, v["fp"])
    np.testing.assert_array_equal(vpq.fn, v["fn"])
    np.testing.assert_allclose(vpq.iou_sum, v["iou_sum"], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(~np.isnan(vpq.per_window()), v["present"])
    np.testing.assert_allclose(np.nan_to_num(vpq.per_window()), v["vpq_per_class"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(vpq.per_length(), v["vpq_k"], rtol=0, atol=1e-9)
    assert vpq.mean() == pytest.approx(float(v["vpq"]), abs=1e-9)


# --- by hand --------------------------------------------------------------------------------------


def test_vpq_worked_example():
    # One row of six pixels, four frames. k = 1, class 1: IoU 3/3, 3/4, 1/3 (no match: FP and FN), 3/3.
    label = np.array([[0, 0, 0, 1, 1, 1]] * 4, np.uint8)[:, None]
    pred = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1]], np.uint8)[:, None]
    vpq = measured([(pred, label)], 2)
    zero = [(1 + 2 / 3 + 3 / 5 + 1) / 4, (5 / 6 + 5 / 8 + 6 / 8) / 3, 8 / 11, 11 / 14]
    one = [2.75 / 4, (6 / 7 + 4 / 7 + 4 / 6) / 3, 7 / 10, 10 / 13]
    np.testing.assert_allclose(vpq.per_window(), np.array([zero, one]).T, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(vpq.tp, [[4, 3], [3, 3], [2, 2], [1, 1]])
    np.testing.assert_array_equal(vpq.fp, [[0, 1], [0, 0], [0, 0], [0, 0]])
    assert vpq.mean() == pytest.approx(0.740114, abs=5e-7)
    np.testing.assert_allclose(vpq.per_class(), [np.mean(zero), np.mean(one)])


def test_iou_by_hand():
    # labels 0 0 0 1 1 2 . ; predictions 0 0 1 1 . 1 0 ("." = 255)
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([0, 0, 1, 1, VOID, 1, 0], np.uint8), np.array([0, 0, 0, 1, 1, 2, VOID], np.uint8))
    np.testing.assert_allclose(matrix.iou(), [2 / 3, 1 / 4, 0, np.nan])
    assert matrix.miou() == pytest.approx((2 / 3 + 1 / 4) / 3)
    assert matrix.pixel_accuracy() == pytest.approx(3 / 6)
    # Among the covered pixels alone the missing prediction is no error: class 1 is right on 1 of 3.
    np.testing.assert_allclose(matrix.iou(covered_only=True), [2 / 3, 1 / 3, 0, np.nan])
    assert matrix.pixel_accuracy(covered_only=True) == pytest.approx(3 / 5)
    np.testing.assert_allclose(matrix.coverage(), [1, 1 / 2, 1, np.nan])


@pytest.mark.parametrize(
    ("label", "pred", "tp", "fp", "fn"),
    [
        ([0, 0, 1, 1], [0, 1, 1, 1], [0, 1], [1, 0], [1, 0]),  # IoU of exactly 1/2 is no match, 2/3 is one
        (
            [1, 1, VOID, 1],
            [0, 1, 0, 1],
            [0, 1],
            [1, 0],
            [0, 0],
        ),  # exactly half on void: still a false positive
        ([1, 1, VOID, VOID], [0, 1, 0, 0], [0, 0], [0, 1], [0, 1]),  # 2/3 on void: forgiven
        ([0, VOID, VOID, VOID], [0, 0, 0, 0], [1, 0], [0, 0], [0, 0]),  # void leaves the union
        ([0, 0, 0, 0], [0, 0, VOID, 0], [1, 0], [0, 0], [0, 0]),  # void in the prediction is in no tube
        ([VOID] * 4, [VOID] * 4, [0, 0], [0, 0], [0, 0]),
    ],
)
def test_void_rules(label, pred, tp, fp, fn):
    vpq = measured([(np.array([[pred]], np.uint8), np.array([[label]], np.uint8))], 2)
    assert (vpq.tp[0].tolist(), vpq.fp[0].tolist(), vpq.fn[0].tolist()) == (tp, fp, fn)


def test_short_clips_and_empty_sets_have_no_score():
    frame = np.zeros((1, 2, 2), np.uint8)
    vpq = measured([(frame, frame)] * 3, 2)
    assert vpq.tp.tolist() == [[3, 0], [0, 0], [0, 0], [0, 0]]
    assert vpq.per_length()[0] == 1
    assert np.isnan(vpq.per_length()[1:]).all()
    assert vpq.mean() == 1
    assert np.isnan(VideoPanopticQuality(2).mean())
    assert np.isnan(ConfusionMatrix(2).miou())
    assert np.isnan(ConfusionMatrix(2).pixel_accuracy())


# --- a naive implementation -----------------------------------------------------------------------


def test_every_video_of_two_pixels():
    rows = [np.array([pair], np.uint8) for pair in product((0, 1, VOID), repeat=2)]
    for p0, p1, g0 in product(rows, rows, rows):
        assert_equals_naive([([p0, p1], [g0, rows[1]])], 2)


def test_brute_force_3x3_videos():
    rng = np.random.default_rng(3)
    for _ in range(150):
        clips = [rng.choice([0, 1, 2, VOID], (2, n, 3, 3)).astype(np.uint8) for n in rng.integers(1, 7, 2)]
        assert_equals_naive([(pred, label) for pred, label in clips], 3)


values = st.sampled_from([0, 1, 2, 3, VOID])
shapes = st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(shapes.flatmap(lambda shape: arrays(np.uint8, shape, elements=values)), max_size=3))
def test_random_videos(clips):
    assert_equals_naive([(pred, label) for pred, label in clips], 4)
    matrix = ConfusionMatrix(4)
    for pred, label in clips:
        matrix.update(pred, label)
    flat = [np.concatenate([clip[side].ravel() for clip in clips] or [[]]) for side in (0, 1)]
    wanted = [np.nan if value is None else value for value in naive_iou(*flat, 4)]
    np.testing.assert_allclose(matrix.iou(), wanted, atol=1e-12)


# --- exactness, order, merging --------------------------------------------------------------------


def random_clips(seed=0, K=5):
    rng = np.random.default_rng(seed)
    clips = []
    for length in (6, 3, 1, 9):
        label = rng.integers(0, K, (length, 7, 11)).astype(np.uint8)
        keep = rng.random(label.shape) < 0.75
        pred = np.where(keep, label, rng.integers(0, K, label.shape)).astype(np.uint8)
        label[rng.random(label.shape) < 0.1] = VOID
        clips.append((pred, label))
    return clips


def test_order_and_merging_change_no_bit():
    clips = random_clips()
    together, backwards = measured(clips, 5), measured(clips[::-1], 5)
    merged = sum((measured([clip], 5) for clip in clips), VideoPanopticQuality(5))
    for other in (backwards, merged):
        np.testing.assert_array_equal(together.per_window(), other.per_window())
        assert together.mean() == other.mean()
    assert 0.3 < together.mean() < 1


def test_order_within_a_clip_matters():
    # Frames 1 1 0 0 right, against 1 0 1 0 right: windows of two see the difference.
    label = np.zeros((4, 1, 1), np.uint8)
    a = measured([(np.array([0, 0, 1, 1], np.uint8).reshape(4, 1, 1), label)], 2)
    b = measured([(np.array([0, 1, 0, 1], np.uint8).reshape(4, 1, 1), label)], 2)
    np.testing.assert_array_equal(a.per_window()[0], b.per_window()[0])
    assert a.tp[1].tolist() == [1, 0]
    assert b.tp[1].tolist() == [0, 0]


def test_streaming_equals_whole_clips():
    clips = random_clips()
    streamed = VideoPanopticQuality(5)
    for pred, label in clips:
        for one_pred, one_label in zip(pred, label, strict=True):
            streamed.add_frame(one_pred, one_label)
        streamed.end_clip()
    np.testing.assert_array_equal(streamed.per_window(), measured(clips, 5).per_window())


def test_long_sums_stay_exact():
    # IoU 2/3 a thousand times: repeated float addition is off here, the exact sum rounds once.
    vpq = VideoPanopticQuality(2, windows=(1,))
    label, pred = np.array([[0, 0, 1]], np.uint8), np.array([[0, 0, 0]], np.uint8)
    for _ in range(1000):
        vpq.add_frame(pred, label)
    assert vpq.iou_sum[0, 0] == float(1000 * Fraction(2 / 3))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint16])
def test_histogram_of_any_integer_kind(dtype):
    rng = np.random.default_rng(1)
    pred, label = (rng.choice([0, 1, 2, VOID], (5, 13)).astype(dtype) for _ in range(2))
    wanted = np.zeros((4, 4), np.int64)
    for g, p in zip(label.ravel(), pred.ravel(), strict=True):
        wanted[min(int(g), 3), min(int(p), 3)] += 1
    np.testing.assert_array_equal(joint_histogram(pred, label, 3), wanted)
    np.testing.assert_array_equal(joint_histogram(pred[::2, ::-3], label[::2, ::-3], 3).sum(), 3 * 5)
    if dtype is not np.uint16:
        tensors = torch.from_numpy(pred), torch.from_numpy(label)
        np.testing.assert_array_equal(joint_histogram(*tensors, 3), wanted)
        # The path of tensors on an accelerator, run here on the host.
        np.testing.assert_array_equal(_count_on_device(*tensors), _count_on_host(pred, label).ravel())
        np.testing.assert_array_equal(tensors[1].numpy(), label)
    assert joint_histogram(pred[:0], label[:0], 3).sum() == 0


def test_counts_of_many_pixels_are_exact(monkeypatch):
    # OpenCV hands out float32, which skips odd numbers above 2^24.
    many = np.zeros(2**24 + 3, np.uint8)
    assert joint_histogram(many, many, 1)[0, 0] == 2**24 + 3
    rng = np.random.default_rng(2)
    pred, label = (rng.choice([0, 1, 2, VOID], (6, 7, 9)).astype(np.uint8) for _ in range(2))
    whole = joint_histogram(pred, label, 3)
    monkeypatch.setattr("vda.metrics.confusion._EXACT", 50)  # 378 pixels: seven parts and a rest
    np.testing.assert_array_equal(joint_histogram(pred, label, 3), whole)
    np.testing.assert_array_equal(sum(joint_histogram(*frames, 3) for frames in zip(pred, label, strict=True)), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_histogram_on_a_gpu():
    clips = random_clips()
    for pred, label in clips:
        on_device = joint_histogram(torch.from_numpy(pred).cuda(), torch.from_numpy(label).cuda(), 5)
        np.testing.assert_array_equal(on_device, joint_histogram(pred, label, 5))


@pytest.mark.parametrize("name", ["pred", "label"])
@pytest.mark.parametrize("bad", [-1, 256, 0.5])
def test_bad_tensors_on_a_device_are_refused(name, bad):
    tensors = {"pred": torch.zeros(3, dtype=torch.int64), "label": torch.zeros(3, dtype=torch.int64)}
    tensors[name] = torch.tensor([0, bad, 1])
    with pytest.raises((ValueError, TypeError), match=f"^{name}: wanted"):
        _count_on_device(**tensors)


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy])
def test_bad_arrays_are_refused(wrap):
    good = np.zeros((2, 3), np.int64)
    for name, pred, label in [
        ("pred", good + 3, good),
        ("pred", good - 1, good),
        ("pred", good + 256, good),
        ("label", good, good + 7),
        ("label", good, good - 1),
        ("label", good, good[:1]),
    ]:
        with pytest.raises(ValueError, match=f"^{name}: wanted"):
            joint_histogram(wrap(pred), wrap(label), 3)
    with pytest.raises(TypeError, match="pred: wanted an integer dtype"):
        joint_histogram(wrap(good.astype(np.float32)), wrap(good), 3)
    with pytest.raises(TypeError, match="two arrays or two tensors"):
        joint_histogram(good, torch.from_numpy(good), 3)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_classes"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="ignore"):
        ConfusionMatrix(5, ignore=4)
    with pytest.raises(ValueError, match="windows"):
        VideoPanopticQuality(2, windows=(0, 1))
    with pytest.raises(ValueError, match="wanted 2 classes"):
        ConfusionMatrix(2) + ConfusionMatrix(3)
    half = VideoPanopticQuality(2)
    half.add_frame(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    with pytest.raises(ValueError, match="still open"):
        half + VideoPanopticQuality(2)
    with pytest.raises(ValueError, match="zip"):
        VideoPanopticQuality(2).add_clip(np.zeros((2, 1, 1), np.uint8), np.zeros((3, 1, 1), np.uint8))


def test_scorer_agrees_with_its_parts():
    clips = random_clips()
    scorer, matrix = Scorer("abcdef"), ConfusionMatrix(6)
    for pred, label in clips:
        for one in zip(pred, label, strict=True):
            scorer.add_frame(*one)
        scorer.end_clip()
        matrix.update(pred, label)
    scores = json.loads(json.dumps(scorer.scores(), allow_nan=False))
    vpq = measured(clips, 6)
    assert scores["classes"] == list("abcdef")
    assert (scores["frames"], scores["clips"], scores["size"], scores["ignore"]) == (19, 4, [7, 11], 255)
    assert scores["iou"][:5] == matrix.iou()[:5].tolist()
    assert scores["iou"][5] is None
    assert scores["vpq_per_class"][5] is None
    assert (scores["miou"], scores["vpq"]) == (matrix.miou(), vpq.mean())
    assert scores["vpq_k"] == vpq.per_length().tolist()
    assert scores["pixel_accuracy"] == matrix.pixel_accuracy()
    doubled = (scorer + scorer).scores()
    assert (doubled["frames"], doubled["vpq"], doubled["miou"]) == (38, scores["vpq"], scores["miou"])
    with pytest.raises(ValueError, match="first frame's size"):
        scorer.add_frame(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))


def test_coverage_in_the_scorer():
    # labels 0 0 1 1 . ; predictions 0 . 1 0 1: three of four labelled pixels are covered.
    scorer = Scorer(["road", "sky"])
    scorer.add_frame(np.array([[0, VOID, 1, 0, 1]], np.uint8), np.array([[0, 0, 1, 1, VOID]], np.uint8))
    scores = scorer.scores()
    assert (scores["coverage"], scores["pixel_accuracy"]) == (0.75, 0.5)
    assert scores["miou_covered"] == (1 / 2 + 1 / 2) / 2
    assert scores["miou"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert scores["confusion"] == [[1, 0, 1], [1, 1, 0], [0, 1, 0]]


def test_scorers_that_do_not_fit_are_not_added():
    frame = np.zeros((2, 3), np.uint8)
    a, b = Scorer("ab"), Scorer("ab")
    a.add_frame(frame, frame)
    with pytest.raises(ValueError, match="still open"):
        a + b
    a.end_clip("one")
    b.add_frame(frame[:1], frame[:1])
    b.end_clip("two")
    for other in (b, Scorer("ac"), Scorer("ab", ignore=9)):
        with pytest.raises(ValueError, match="wanted scores"):
            a + other
    with pytest.raises(ValueError, match="pred: wanted a class"):
        a.add_frame(frame + 2, frame)
    assert a.scores()["clips"] == 1  # what was refused left nothing behind


def test_scorer_of_nothing_is_json():
    scores = Scorer(["road"]).scores()
    assert json.loads(json.dumps(scores, allow_nan=False))["miou"] is None
    assert scores["vpq_k"] == [None] * 4
