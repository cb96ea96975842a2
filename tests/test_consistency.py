"""TC and mVC: hand-worked numbers, naive twins, what is left out, order and merging."""

from __future__ import annotations

import io
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vda.metrics import Scorer, TemporalConsistency, VideoConsistency

VOID = 255


def maps(*rows: list[int]) -> np.ndarray:
    """Frames of one row of pixels each, [N, 1, W]."""
    return np.array(rows, np.uint8)[:, None]


def constant_flow(u: float, v: float, size: tuple[int, int]) -> np.ndarray:
    return np.broadcast_to(np.array([u, v], np.float32)[:, None, None], (2, *size)).copy()


# --- TC


def test_tc_by_hand() -> None:
    # Everything moves right by one pixel, so frame t shows at p what frame t + 1 shows at p + 1:
    #   now    0 0 1 1 2 2
    #   next   9 0 0 1 2 2    brought back: 0 0 1 2 2 -
    # The last pixel leaves the frame. Class 0: 2 / 2. Class 1: 1 / 2. Class 2: 1 / 2.
    now, following = maps([0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2])
    tc, seen = TemporalConsistency(4), np.ones((1, 6), bool)
    tc.update(now, following, constant_flow(1, 0, (1, 6)), seen)
    assert tc.mean() == tc.mean_unmasked() == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert tc.pairs == 1
    # With the fourth pixel occluded nothing disagrees any more; the unmasked score does not look.
    seen[0, 3] = False
    masked = TemporalConsistency(4)
    masked.update(now, following, constant_flow(1, 0, (1, 6)), seen)
    assert masked.mean() == 1
    assert masked.mean_unmasked() == tc.mean()
    # Counts of pairs are added up before the division: hits 4, 2, 2 of unions 4, 3, 3.
    both = tc + masked
    assert (both.pairs, both.mean()) == (2, pytest.approx((4 / 4 + 2 / 3 + 2 / 3) / 3))


def test_tc_samples_the_nearest_pixel_and_invents_no_class() -> None:
    # Halfway between classes 0 and 2 a bilinear warp of class numbers would find class 1.
    tc, now = TemporalConsistency(3), maps([0, 0, 2, 2])[0]
    tc.update(now, now, constant_flow(0.4, 0, (1, 4)), np.ones((1, 4), bool))
    assert tc.matrix.counts.tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]


def test_tc_leaves_out_what_cannot_be_compared() -> None:
    now = maps([0, 0, 0, 0, VOID])[0]
    following = maps([1, 1, VOID, 0, 0])[0]
    flow = constant_flow(0, 0, (1, 5))
    flow[:, 0, 0] = (np.nan, 0)  # unknown
    flow[:, 0, 1] = (0, 1)  # below the frame
    tc = TemporalConsistency(2)  # no prediction in the third pixel's next frame, nor in the fifth's own
    tc.update(now, following, flow, np.ones((1, 5), bool))
    assert tc.mean() == tc.mean_unmasked() == 1
    assert tc.matrix.counts[:2, :2].sum() == 1
    empty = TemporalConsistency(2)
    empty.update(now, following, flow, np.zeros((1, 5), bool))
    assert math.isnan(empty.mean())
    assert empty.mean_unmasked() == 1


def test_tc_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    H, W, K = 7, 13, 4
    hit, union = np.zeros(K), np.zeros(K)
    tc = TemporalConsistency(K)
    for _ in range(5):
        now, following = rng.choice([*range(K), VOID], (2, H, W)).astype(np.uint8)
        flow, seen = rng.normal(0, 3, (2, H, W)).astype(np.float32), rng.random((H, W)) < 0.7
        tc.update(now, following, flow, seen)
        for y in range(H):
            for x in range(W):
                i, j = round(float(y + flow[1, y, x])), round(float(x + flow[0, y, x]))
                if not (seen[y, x] and 0 <= i < H and 0 <= j < W) or VOID in (now[y, x], following[i, j]):
                    continue
                a, b = now[y, x], following[i, j]
                hit[a] += a == b
                for c in {a, b}:
                    union[c] += 1
    assert tc.mean() == pytest.approx(float(np.mean(hit / union)), abs=1e-12)


def test_tc_refuses_what_does_not_fit() -> None:
    tc, label = TemporalConsistency(2), np.zeros((3, 5), np.uint8)
    flow, seen = np.zeros((2, 3, 5), np.float32), np.ones((3, 5), bool)
    for name, arguments in {
        "following": (label, label[1:], flow, seen),
        "flow": (label, label, flow[:, 1:], seen),
        "visible": (label, label, flow, seen[:, 1:]),
        "pred": (label, label + 2, flow, seen),
        "label": (label + 2, label, flow, seen),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: wanted"):
            tc.update(*arguments)
    with pytest.raises(ValueError, match="wanted 2 classes"):
        tc + TemporalConsistency(3)


# --- mVC


def test_mvc_by_hand() -> None:
    # Five pixels, three frames, windows of two and of three.
    label = maps([0, 0, 1, 0, VOID], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0])
    pred = maps([0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0])
    vc = VideoConsistency(2, lengths=(2, 3))
    for frames in zip(pred, label, strict=True):
        vc.add_frame(*frames)
    vc.end_clip()
    # n = 2: pixels 1, 2, 3 stand still first; 1 and 3 are right twice (2 is wrong, but constant: the strict reading).
    #        Then all five do, and 1, 4, 5 are right twice. n = 3: pixels 1, 2, 3; only 1 is right three times.
    np.testing.assert_allclose(vc.per_length(), [(2 / 3 + 3 / 5) / 2, 1 / 3])
    assert vc.windows.tolist() == [2, 1]


def naive_vc(clips: list[tuple[np.ndarray, np.ndarray]], n: int) -> Fraction | None:
    shares = []
    for pred, label in clips:
        for start in range(len(label) - n + 1):
            g = label[start : start + n].reshape(n, -1)
            p = pred[start : start + n].reshape(n, -1)
            still = (g == g[0]).all(0) & (g[0] != VOID)
            right = still & (p == g).all(0)
            if still.any():
                shares.append(Fraction(int(right.sum()), int(still.sum())))
    return sum(shares, Fraction(0)) / len(shares) if shares else None


def measured(clips: list[tuple[np.ndarray, np.ndarray]], lengths: tuple[int, ...]) -> VideoConsistency:
    vc = VideoConsistency(3, lengths=lengths)
    for pred, label in clips:
        for frames in zip(pred, label, strict=True):
            vc.add_frame(*frames)
        vc.end_clip()
    return vc


clip_shapes = st.tuples(st.just(2), st.integers(1, 7), st.integers(1, 2), st.integers(1, 3))
values = st.sampled_from([0, 1, 1, 1, VOID])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(clip_shapes.flatmap(lambda shape: arrays(np.uint8, shape, elements=values)), max_size=3))
def test_mvc_against_the_definition(clips: list[np.ndarray]) -> None:
    pairs = [(clip[0], clip[1]) for clip in clips]
    lengths = (1, 2, 3, 5)
    found = measured(pairs, lengths).per_length()
    for n, value in zip(lengths, found, strict=True):
        wanted = naive_vc(pairs, n)
        assert math.isnan(value) if wanted is None else value == pytest.approx(float(wanted), abs=1e-12)


def test_mvc_of_long_runs_and_short_clips() -> None:
    # 300 frames are more than a byte counts; 20 - 16 + 1 windows of the last clip, none of the clip of 7.
    still = np.zeros((300, 1, 2), np.uint8)
    vc = measured([(still, still), (still[:7], still[:7]), (still[:20], still[:20])], (8, 16))
    assert vc.windows.tolist() == [293 + 13, 285 + 5]
    assert vc.per_length().tolist() == [1, 1]
    assert np.isnan(measured([(still[:7], still[:7])], (8, 16)).per_length()).all()
    void = np.full((20, 1, 2), VOID, np.uint8)
    assert np.isnan(measured([(void, void)], (8, 16)).per_length()).all()


def test_order_and_merging_of_mvc_change_no_bit() -> None:
    rng = np.random.default_rng(4)
    clips = []
    for length in (9, 3, 12, 5, 7):
        label = np.repeat(rng.integers(0, 3, (1, 5, 7)), length, 0).astype(np.uint8)
        label[rng.random(label.shape) < 0.05] = 0
        clips.append((np.where(rng.random(label.shape) < 0.9, label, 1).astype(np.uint8), label))
    together, backwards = measured(clips, (2, 4, 8)), measured(clips[::-1], (2, 4, 8))
    merged = sum((measured([clip], (2, 4, 8)) for clip in clips), VideoConsistency(3, lengths=(2, 4, 8)))
    assert together.per_length().tolist() == backwards.per_length().tolist() == merged.per_length().tolist()
    assert 0 < together.per_length()[2] < together.per_length()[0] < 1


def test_mvc_takes_tensors_and_any_integer_type() -> None:
    label = np.zeros((2, 1, 3), np.int64)
    pred = np.array([[[0, 0, 1]], [[0, 1, 0]]], np.int64)
    found = [measured([(wrap(pred), wrap(label))], (2,)).per_length()[0] for wrap in (np.asarray, torch.from_numpy)]
    assert found == [1 / 3, 1 / 3] == pytest.approx([float(naive_vc([(pred, label)], 2) or 0)] * 2)


def test_bad_arguments_of_mvc_are_refused() -> None:
    for lengths in ((), (0,), (256,)):
        with pytest.raises(ValueError, match="lengths: wanted"):
            VideoConsistency(2, lengths=lengths)
    with pytest.raises(ValueError, match="lengths: wanted"):
        VideoConsistency(2, lengths=(2,)) + VideoConsistency(2, lengths=(3,))
    half = VideoConsistency(2)
    half.add_frame(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    with pytest.raises(ValueError, match="still open"):
        half + VideoConsistency(2)


# --- in the scorer


def test_a_gap_breaks_mvc_and_not_vpq() -> None:
    frame = np.zeros((2, 3), np.uint8)
    scorer = Scorer(["road"])
    for i in range(17):
        scorer.add_frame(frame, frame)
        if i == 8:
            scorer.add_gap()
    scores = scorer.scores()
    assert scores["mvc"] == {"8": 1.0, "16": None}  # runs of 9 and of 8 frames
    assert scores["vpq_k"] == [1.0] * 4
    assert scorer.clips[0].vpq.tp[3, 0] == 14


def test_tc_alone_needs_no_label() -> None:
    scorer, label = Scorer(["road", "sky"]), np.array([[0, 1]], np.uint8)
    scorer.add_pair(label, label, constant_flow(0, 0, (1, 2)), np.ones((1, 2), bool))
    scores = scorer.scores()
    assert (scores["tc"], scores["tc_unmasked"], scores["tc_pairs"]) == (1.0, 1.0, 1)
    assert (scores["frames"], scores["clips"], scores["miou"], scores["per_clip"]) == (0, 0, None, [])


def _add_clip(scorer: Scorer, seed: int) -> None:
    """18 frames whose label stands still, of which a twentieth is not predicted."""
    rng = np.random.default_rng(seed)
    label, before = rng.integers(0, 3, (6, 8), dtype=np.uint8), None
    for _ in range(18):
        pred = np.where(rng.random(label.shape) < 0.05, VOID, label).astype(np.uint8)
        scorer.add_frame(pred, label)
        if before is not None:
            scorer.add_pair(before, pred, constant_flow(0, 0, (6, 8)), rng.random(label.shape) < 0.9)
        before = pred
    scorer.end_clip(f"clip {seed}")


def test_what_a_process_sends_of_its_clips_is_all_that_is_scored() -> None:
    """Clips counted apart, sent as plain types and put together, against one scorer that has seen all of them."""
    whole, together = Scorer("abc"), Scorer("abc")
    for clips in ((0, 1), (), (2,)):  # of three processes
        mine, sent = Scorer("abc"), io.BytesIO()
        for seed in clips:
            _add_clip(whole, seed)
            _add_clip(mine, seed)
        torch.save(mine.state(), sent)
        together += Scorer.from_state(torch.load(io.BytesIO(sent.getvalue()), weights_only=True), "abc")
    scores = together.scores()
    assert scores == whole.scores()
    assert all(0 < scores["mvc"][n] < 1 for n in ("8", "16"))
    assert scores["tc_pairs"] == 3 * 17
    assert 0 < scores["miou"] < 1
