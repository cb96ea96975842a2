"""Which predictions become labels: every policy against a loop written from the definition of its paper.

Probabilities are whole 1024ths, which 16-bit confidences hold exactly, so that the two agree to the pixel.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from clips import ArrayClip, dataset
from numpy.typing import NDArray
from torch import Tensor, nn

from vda import pseudo
from vda.data.clip import VideoDataset
from vda.options import Occlusion, Pseudo
from vda.policies import POLICIES, Confident

K, GRID = 4, 1024
NONE = 255
Array = NDArray[np.float64]


def probabilities(frames: int, size: tuple[int, int] = (7, 11), seed: int = 0) -> Array:
    """[N, K, H, W] whole 1024ths with sum 1: classes sure in various degrees, the last one rare."""
    rng = np.random.default_rng(seed)
    logits = 2.5 * rng.standard_normal((frames, K, *size)) * np.array([2.0, 1.0, 0.7, 1.0])[:, None, None]
    logits[:, -1] -= 2.0
    p = np.floor(GRID * np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    p[:, 0] += GRID - p.sum(1)
    return p / GRID


def confident(p: Array, theta: Array | None = None) -> Confident:
    """What a policy sees of probabilities [N, K, H, W]."""

    def most(of: Array) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(of.argmax(1).astype(np.uint8)), torch.from_numpy(of.max(1)).half()

    return Confident(*most(p), *(() if theta is None else most(p / theta[:, None, None])))


def label(policy: str, p: Array, theta: Array, settings: Pseudo) -> tuple[Array, list[float]]:
    seen = confident(p, theta if POLICIES[policy].relative else None)
    labels, after = POLICIES[policy].label(seen, torch.from_numpy(theta), settings)
    assert labels.dtype == torch.uint8
    return labels.numpy(), after.tolist()


# ---- the definitions


def updated(value: Array, index: Array, theta: Array, settings: Pseudo) -> Array:
    """Eq. 11 (or 4) with the element number of Algorithm 1, or IAST's percentile with the old threshold in the list."""
    theta = theta.copy()
    for k in range(K):
        portion = settings.alpha * theta[k] ** settings.gamma
        if settings.rule == "iast":
            psi = np.percentile([*value[index == k], theta[k]], 100 * (1 - portion))
        elif ordered := sorted(value[index == k], reverse=True):
            psi = ordered[min(math.floor(portion * len(ordered)), len(ordered) - 1)]
        else:
            psi = theta[k]
        theta[k] = min(settings.beta * theta[k] + (1 - settings.beta) * psi, 0.999)
    return theta


def passing(value: Array, index: Array, theta: Array, rule: str) -> Array:
    # the kernel compares in float32
    bar = theta.astype(np.float32)[index]
    return np.where(value > bar if rule == "paper" else value >= bar, index, NONE)


def portion_of_set(p: Array, portion: float) -> Array:
    """CBST: the floor(p n)-th highest confidence of a class in the whole set, 1 where that is none."""
    theta, value, index = np.ones(K), p.max(1), p.argmax(1)
    for k in range(K):
        ordered = sorted(value[index == k], reverse=True)
        if (n := math.floor(portion * len(ordered))) >= 1:
            theta[k] = ordered[n - 1]
    return theta


# ---- thresholds that go from clip to clip

ADAPTIVE = [
    Pseudo(),
    Pseudo(gamma=0.0, beta=0.0, alpha=0.5),
    Pseudo(gamma=2.0, beta=0.5, alpha=1.0),
    Pseudo(rule="iast"),
    Pseudo(rule="iast", gamma=1.0, beta=0.3, alpha=0.4),
    Pseudo(alpha=0.001),
]


@pytest.mark.parametrize("settings", ADAPTIVE, ids=str)
def test_clip_adaptive_is_algorithm_1(settings: Pseudo) -> None:
    """All frames of a clip are one list, and are labelled with the thresholds that they have just moved."""
    theta = np.full(K, settings.theta_init)
    after = theta.tolist()
    for number in range(3):
        p = probabilities(3, seed=number)
        found, after = label("clip_adaptive", p, np.array(after), settings)
        theta = updated(p.max(1).ravel(), p.argmax(1).ravel(), theta, settings)
        assert after == pytest.approx(theta.tolist(), rel=1e-12)
        np.testing.assert_array_equal(found, passing(p.max(1), p.argmax(1), theta, settings.rule))
        assert NONE in found


@pytest.mark.parametrize("settings", ADAPTIVE, ids=str)
def test_instance_adaptive_is_iast(settings: Pseudo) -> None:
    """Thresholds move with every frame."""
    theta = np.full(K, settings.theta_init)
    p = probabilities(4)
    found, after = label("instance_adaptive", p, theta, settings)
    for frame, labels in zip(p, found, strict=True):
        theta = updated(frame.max(0).ravel(), frame.argmax(0).ravel(), theta, settings)
        np.testing.assert_array_equal(labels, passing(frame.max(0), frame.argmax(0), theta, settings.rule))
    assert after == pytest.approx(theta.tolist(), rel=1e-12)


def test_a_clip_is_more_than_its_frames() -> None:
    """By hand: beta = gamma = 0, half of a class. Two sure pixels, then two unsure ones.

    As one clip the four give element 2, 0.5; frame by frame element 1 of two, 0.875 and then 0.375.
    """
    p = np.array([[0.9375, 0.875], [0.5, 0.375]]).reshape(2, 1, 1, 2)
    seen = Confident(torch.zeros(2, 1, 2, dtype=torch.uint8), torch.from_numpy(p[:, 0]).half())
    settings, theta = Pseudo(beta=0.0, gamma=0.0, alpha=0.5), torch.tensor([0.9], dtype=torch.float64)
    clip, after = POLICIES["clip_adaptive"].label(seen, theta, settings)
    assert after.tolist() == [0.5]
    assert clip.tolist() == [[[0, 0]], [[NONE, NONE]]]
    frames, after = POLICIES["instance_adaptive"].label(seen, theta, settings)
    assert after.tolist() == [0.375]
    assert frames.tolist() == [[[0, NONE]], [[0, NONE]]]


# ---- thresholds of the whole set


def cbst(p: Array, theta: Array, settings: Pseudo) -> Array:
    """argmax of P / theta where that reaches 1, which need not be the argmax of P."""
    found = np.full((len(p), *p.shape[2:]), NONE)
    for n, y, x in np.ndindex(found.shape):
        ratios = p[n, :, y, x] / theta
        if ratios.max() >= 1:
            found[n, y, x] = ratios.argmax()
    return found


def ccm(p: Array, theta: Array, settings: Pseudo) -> Array:
    """A class at its threshold, the most likely one or not, or among the surest of the frame; labelled by argmax."""
    found = np.full((len(p), *p.shape[2:]), NONE)
    for n, y, x in np.ndindex(found.shape):
        ordered = sorted(p[n].max(0).ravel(), reverse=True)
        surest = ordered[max(int(settings.alpha * len(ordered)), 1) - 1]
        if any(p[n, k, y, x] >= theta[k] for k in range(K)) or p[n, :, y, x].max() >= surest:
            found[n, y, x] = p[n, :, y, x].argmax()
    return found


def fda(p: Array, theta: Array, settings: Pseudo) -> Array:
    """The surest of each class, and whatever reaches the cap; what equals its bar passes."""
    found = np.full((len(p), *p.shape[2:]), NONE)
    for n, y, x in np.ndindex(found.shape):
        best = p[n, :, y, x].argmax()
        if p[n, best, y, x] >= np.float32(min(theta[best], settings.cap)):
            found[n, y, x] = best
    return found


DEFINITIONS = {"class_balanced": cbst, "class_or_image": ccm, "top_portion": fda}
SET_WIDE = [name for name, policy in POLICIES.items() if policy.set_wide]
SETTINGS = [Pseudo(), Pseudo(alpha=0.013, cap=0.5), Pseudo(alpha=0.5, cap=1.0), Pseudo(alpha=1.0)]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.alpha}-{s.cap}")
@pytest.mark.parametrize("theta", [[0.9, 0.5, 0.25, 1.0], [0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0], None])
@pytest.mark.parametrize("policy", SET_WIDE)
def test_set_wide_policies(policy: str, theta: list[float] | None, settings: Pseudo) -> None:
    """Also with thresholds that are confidences of the set, which some pixels equal."""
    p = probabilities(3)
    bars = portion_of_set(p, 0.3) if theta is None else np.array(theta)
    found, after = label(policy, p, bars, settings)
    np.testing.assert_array_equal(found, DEFINITIONS[policy](p, bars, settings))
    assert after == bars.tolist()
    assert (found != NONE).any()


def test_class_balanced_changes_classes() -> None:
    p = probabilities(3)
    for theta, changes in (([0.9, 0.5, 0.25, 1.0], True), ([0.5] * K, False)):
        found, _ = label("class_balanced", p, np.array(theta), Pseudo())
        assert ((found != NONE) & (found != p.argmax(1))).any() == changes


def test_all_labels_everything() -> None:
    p = probabilities(3)
    found, after = label("all", p, np.full(K, 0.9), Pseudo())
    np.testing.assert_array_equal(found, p.argmax(1))
    assert after == [0.9] * K


# ---- whole runs


class Table(nn.Module):
    """Gives the probabilities [K, H, W] of the frame whose number is its red level."""

    def __init__(self, p: Array) -> None:
        super().__init__()
        self.logits = torch.from_numpy(p).clamp(min=1e-9).log().float()

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[(255 * images[:, 0, 0, 0]).round().long()]


def known(p: Array, lengths: tuple[int, ...]) -> VideoDataset:
    """Clips of blank frames, numbered through by their red level."""
    frames = np.zeros((len(p), *p.shape[2:], 3), np.uint8)
    frames[..., 0] = np.arange(len(p))[:, None, None]
    cuts = np.cumsum((0, *lengths))
    clips = [ArrayClip(f"clip{i}", frames[a:b]) for i, (a, b) in enumerate(pairwise(cuts))]
    return dataset(*clips, classes=K)


def generated(p: Array, lengths: tuple[int, ...], settings: Pseudo, folder: Path) -> tuple[Array, pseudo.PseudoLabels]:
    source = pseudo.Generator(Table(p), lambda clip, i, j: None, settings, Occlusion(), torch.device("cpu"))  # type: ignore[arg-type, return-value]
    data = known(p, lengths)
    labels = pseudo.generate(source, data, folder, model="m", flow_name="none", seed=0)
    return np.stack([labels(clip, i) for clip in data.clips for i in range(len(clip))]), labels


@pytest.mark.parametrize("alpha", [0.2, 0.34, 0.02, 1.0])
@pytest.mark.parametrize("policy", SET_WIDE)
def test_thresholds_of_the_whole_set(policy: str, alpha: float, tmp_path: Path) -> None:
    """One list of every class over all clips; a class of which the portion is no pixel gets 1."""
    p = probabilities(6, seed=3)
    settings = Pseudo(policy=policy, alpha=alpha)  # type: ignore[arg-type]
    found, labels = generated(p, (2, 3, 1), settings, tmp_path)
    theta = portion_of_set(p, alpha)
    assert [entry["theta"] for entry in labels.manifest[1:]] == [theta.tolist()] * 3
    assert labels.theta == theta.tolist()
    wanted = DEFINITIONS[policy](p, theta, settings)
    ratio = np.sort(p / theta[:, None, None], 1)
    clear = (ratio[:, -1] - ratio[:, -2] > 1e-5) | (policy != "class_balanced")  # two classes may tie for P / theta
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], wanted[clear])
    assert (theta[-1] == 1) == (alpha == 0.02)  # the rare class


def test_portion_of_fda_by_hand(tmp_path: Path) -> None:
    """100 pixels of a class in 512 .. 611 1024ths: the surest 34 are those from element 66 of the ascending order on.

    One pixel of another class at 0.9 and above is labelled though 34 % of it is no pixel; one below is not.
    """
    p = np.zeros((1, K, 1, 102))
    p[0, 0, 0, :100] = (512 + np.random.default_rng(0).permutation(100)) / GRID
    p[0, 1, 0, 100], p[0, 2, 0, 101] = 922 / GRID, 921 / GRID
    p[0, 3] = 1 - p[0].sum(0)
    found, labels = generated(p, (1,), Pseudo(policy="top_portion", alpha=0.34), tmp_path)
    assert labels.theta == [578 / GRID, 1.0, 1.0, 1.0]
    assert (found[0, 0, :100] == np.where(p[0, 0, 0, :100] >= 578 / GRID, 0, NONE)).all()
    assert (found[0, 0, :100] == 0).sum() == 34
    assert found[0, 0, 100:].tolist() == [1, NONE]


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_network_that_is_certain_labels_everything(policy: str, tmp_path: Path) -> None:
    """16-bit confidences of 1 reach every threshold, whose cap keeps it below or which they may equal."""
    p = np.zeros((2, K, 3, 5))
    p[:, 2] = 1.0
    found, labels = generated(p, (2,), Pseudo(policy=policy, alpha=0.5), tmp_path)  # type: ignore[arg-type]
    assert (found == 2).all()
    assert labels.predicted == [0.0, 0.0, 1.0, 0.0]
    assert labels.coverage == 1.0
    assert all(0 < theta <= 1 for theta in labels.theta)


def test_the_settings_name_every_policy() -> None:
    assert set(get_args(get_type_hints(Pseudo)["policy"])) == set(POLICIES)
    assert replace(Pseudo(), policy="all").policy == "all"
