"""Bootstrap intervals: against scoring every draw anew, by hand, and where there is nothing to draw."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from vda.metrics import ConfusionMatrix, Scorer, VideoPanopticQuality, intervals

VOID = 255
Clip = tuple[str, np.ndarray, np.ndarray]


def random_clips(count: int = 7, K: int = 4, seed: int = 0) -> list[Clip]:
    rng = np.random.default_rng(seed)
    clips = []
    for number in range(count):
        label = rng.integers(0, K, (int(rng.integers(1, 6)), 5, 9)).astype(np.uint8)
        keep = rng.random(label.shape) < rng.uniform(0.5, 0.95)
        pred = np.where(keep, label, rng.integers(0, K, label.shape)).astype(np.uint8)
        label[rng.random(label.shape) < 0.1] = VOID
        clips.append((f"clip-{number}", pred, label))
    return clips


def scored(clips: list[Clip], K: int = 4) -> Scorer:
    scorer = Scorer([f"c{k}" for k in range(K)])
    for name, pred, label in clips:
        for frames in zip(pred, label, strict=True):
            scorer.add_frame(*frames)
        scorer.end_clip(name)
    return scorer


def test_draws_equal_scoring_them_anew() -> None:
    clips, samples, K = random_clips(), 40, 4
    taken = np.random.default_rng(3).multinomial(len(clips), [1 / len(clips)] * len(clips), size=samples)
    mious, vpqs = [], []
    for draw in taken:
        matrix, quality = ConfusionMatrix(K), VideoPanopticQuality(K)
        for (_, pred, label), times in zip(clips, draw, strict=True):
            for _ in range(times):
                matrix.update(pred, label)
                quality.add_clip(pred, label)
        mious.append(matrix.miou())
        vpqs.append(quality.mean())
    parts = scored(clips).clips
    found = intervals([c.confusion for c in parts], [c.vpq for c in parts], samples=samples, level=0.8, seed=3)
    assert found is not None
    np.testing.assert_allclose(found["miou"], np.quantile(mious, [0.1, 0.9]), atol=1e-12)
    np.testing.assert_allclose(found["vpq"], np.quantile(vpqs, [0.1, 0.9]), atol=1e-12)
    assert (found["level"], found["samples"]) == (0.8, samples)
    assert 0 < found["miou"][0] < found["miou"][1] < 1


def test_by_hand() -> None:
    # One clip all right, one all wrong (class 1 for class 0). Draws: both right 1/4, mixed 1/2, both wrong 1/4. mIoU
    # is 1 (class 1 does not occur), (1/2 + 0) / 2, and 0, so 95 % of the draws reach from 0 to 1.
    label, wrong = np.zeros((1, 1, 2), np.uint8), np.ones((1, 1, 2), np.uint8)
    scorer = scored([("right", label, label), ("wrong", wrong, label)], K=2)
    scores = scorer.scores()
    assert scores["miou"] == 0.25
    assert scores["interval"] == {"level": 0.95, "samples": 1000, "miou": [0.0, 1.0], "vpq": [0.0, 1.0]}
    half = intervals([c.confusion for c in scorer.clips], [c.vpq for c in scorer.clips], level=0.4)
    assert half is not None
    assert half["miou"] == [0.25, 0.25]  # quantiles 0.3 and 0.7 lie in the mixed half


def test_equal_clips_have_no_spread() -> None:
    _, pred, label = random_clips()[3]
    scores = scored([("a", pred, label), ("b", pred, label), ("c", pred, label)]).scores()
    assert scores["interval"]["miou"] == pytest.approx([scores["miou"]] * 2)
    assert scores["interval"]["vpq"] == pytest.approx([scores["vpq"]] * 2)


def test_order_and_merging_change_no_bit() -> None:
    clips = random_clips()
    wanted = scored(clips).scores()
    assert wanted["interval"]["miou"][0] < wanted["miou"] < wanted["interval"]["miou"][1]
    assert scored(clips[::-1]).scores() == wanted
    parts = [scored(clips[4:]), scored(clips[:2]), scored(clips[2:4])]
    assert sum(parts, Scorer([f"c{k}" for k in range(4)])).scores() == wanted
    sent = [pickle.loads(pickle.dumps(part)) for part in parts]  # as processes hand over what they counted
    assert sum(sent, Scorer([f"c{k}" for k in range(4)])).scores() == wanted
    unnamed = [("", *clip[1:]) for clip in clips]
    assert scored(unnamed).scores() == scored(unnamed[::-1]).scores()


def test_too_few_clips_and_nothing_scored() -> None:
    assert scored([]).scores()["interval"] is None
    assert scored(random_clips(1)).scores()["interval"] is None
    void = np.full((1, 2, 2), VOID, np.uint8)
    scores = scored([("a", void, void), ("b", void, void)]).scores()
    assert (scores["interval"]["miou"], scores["interval"]["vpq"]) == (None, None)
    assert scores["per_clip"][0] == {"clip": "a", "frames": 1, "miou": None, "vpq": None}


def test_scores_of_each_clip() -> None:
    clips = random_clips(4)
    scores = scored(clips).scores()
    assert [entry["clip"] for entry in scores["per_clip"]] == [name for name, _, _ in clips]
    for entry, clip in zip(scores["per_clip"], clips, strict=True):
        alone = scored([clip]).scores()
        assert (entry["frames"], entry["miou"], entry["vpq"]) == (len(clip[1]), alone["miou"], alone["vpq"])
