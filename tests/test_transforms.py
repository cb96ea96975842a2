"""Augmentation: flow, labels and frames of a moving world still fit each other after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from vda.data.clip import IGNORE
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
        return np.array([[z * np.cos(a), -z * np.sin(a), 7.3 * t], [z * np.sin(a), z * np.cos(a), -4.4 * t], [0, 0, 1]])

    def flow(i: int, j: int) -> NDArray[np.float32]:
        return ((np.linalg.inv(pose(j)) @ pose(i) @ p - p)[:2]).reshape(2, H, W).astype(np.float32)

    world = [(pose(t) @ p)[:2].reshape(2, H, W) for t in range(T)]
    labels = np.stack([cells(*w) for w in world])
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 20], [128, 128, 128]], np.uint8)
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


# ---- crops centred on a class


def marked(H: int = 40, W: int = 60, **places: tuple[int, int, int]) -> Sample:
    """Two frames of class 0; each place (frame, row, column) is a pixel of the class k of its name "ck".

    The red and green levels of a frame are its columns and rows.
    """
    frames = np.zeros((2, H, W, 3), np.uint8)
    frames[..., 0], frames[..., 1] = np.arange(W), np.arange(H)[:, None]
    labels = np.zeros((2, H, W), np.uint8)
    for name, place in places.items():
        labels[place] = int(name[1:])
    return Sample(frames, labels)


def corner(out: Sample) -> tuple[int, int]:
    """Row and column of the sample's first pixel in the frame that it was cut from."""
    return int(out.frames[0, 0, 0, 1]), int(out.frames[0, 0, 0, 0])


@pytest.mark.parametrize("frame", [0, 1])
@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ((20, 30), (10, 18)),  # its centre at row 20 // 2 and column 25 // 2 of the crop
        ((10, 12), (0, 0)),  # the nearest that fits without being held back
        ((3, 1), (0, 0)),
        ((0, 0), (0, 0)),
        ((39, 59), (20, 35)),
        ((39, 30), (20, 18)),
        ((20, 59), (10, 35)),
        ((31, 48), (20, 35)),
        ((29, 46), (19, 34)),
    ],
)
def test_crop_is_centred_on_the_class_and_held_inside(
    frame: int, place: tuple[int, int], wanted: tuple[int, int]
) -> None:
    for seed in range(3):
        sample = marked(c2=(frame, *place))
        out = augment(sample, Augment(focus=1.0, crop=(20, 25)), np.random.default_rng(seed), [2])
        assert corner(out) == wanted
        assert out.frames.shape == (2, 20, 25, 3)
        assert out.labels[frame, place[0] - wanted[0], place[1] - wanted[1]] == 2


def test_focus_draws_a_class_and_then_a_pixel() -> None:
    """Of two classes that are shown each is the centre half the time, however many pixels it has."""
    sample = marked(c2=(0, 10, 12))
    sample.labels[1, 20:30, 30:40] = 3
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        out = augment(sample, Augment(focus=1.0, crop=(3, 3)), rng, [2, 3, 4])
        found.append(corner(out))
    assert 0.4 < np.mean([at == (9, 11) for at in found]) < 0.6
    around = {at for at in found if at != (9, 11)}
    assert all(19 <= row < 29 and 29 <= column < 39 for row, column in around)
    assert len(around) > 60  # of a hundred pixels


@pytest.mark.parametrize("focus", [0.0, 0.3, 1.0])
def test_chance_of_the_focus(focus: float) -> None:
    sample, rng = marked(c2=(0, 20, 30)), np.random.default_rng(1)
    what = Augment(focus=focus, crop=(5, 5))
    centred = [corner(augment(sample, what, rng, [2])) == (18, 28) for _ in range(400)]
    assert np.mean(centred) == pytest.approx(focus, abs=0.07)


@pytest.mark.parametrize("sample", [marked(), marked(c3=(0, 5, 5)), replace(marked(), labels=None)])
def test_without_a_class_to_focus_on_the_crop_is_any(sample: Sample) -> None:
    """None of the classes is shown, or nothing is labelled: uniform over all places of the crop."""
    rng = np.random.default_rng(2)
    found = [corner(augment(sample, Augment(focus=1.0, crop=(38, 57)), rng, [2, 4])) for _ in range(300)]
    assert set(found) == {(row, column) for row in range(3) for column in range(4)}


def test_focus_sees_the_resized_labels() -> None:
    """Twice as large, the pixel at (20, 30) lies at rows 40, 41 and columns 60, 61."""
    sample = marked(c2=(0, 20, 30))
    what = Augment(focus=1.0, scale=(2.0, 2.0), crop=(9, 9))
    centres = set()
    for seed in range(20):
        out = augment(sample, what, np.random.default_rng(seed), [2])
        assert out.labels[0, 4, 4] == 2
        centres.add(tuple(np.argwhere(out.labels[0] == 2)[0]))
    assert centres == {(3, 3), (3, 4), (4, 3), (4, 4)}


def test_focus_without_a_crop_changes_nothing() -> None:
    sample = marked(c2=(0, 3, 3))
    out = augment(sample, Augment(focus=1.0), np.random.default_rng(0), [2])
    assert np.array_equal(out.frames, sample.frames)
    assert np.array_equal(out.labels, sample.labels)


@pytest.mark.parametrize(
    "bad",
    [
        {"flip": 1.5},
        {"jitter": -0.1},
        {"focus": 1.01},
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
