"""The pixel matching of CCM against hand-worked numbers, a loop over classes, and NumPy sorts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vda.matching import Templates, image_quantile, similar_pixels

IGNORE = 255


def draw(K: int, H: int, W: int, seed: int = 0, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    """Logits [K, H, W] and a label map [H, W] uint8."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(K, (H, W), generator=g, dtype=torch.uint8)
    label[torch.rand(H, W, generator=g) < ignored] = IGNORE
    return 3 * torch.randn(K, H, W, generator=g), label


# ---- templates


def test_templates_by_hand() -> None:
    """Temperature 2: logits (2 ln 3, 0) are (3/4, 1/4). One such pixel and three of (1/2, 1/2) make (9/16, 7/16)."""
    templates = Templates(3)
    logits = torch.full((1, 3, 1, 4), -math.inf)
    logits[0, :2] = 0
    logits[0, 0, 0, 0] = 2 * math.log(3)
    templates.update(logits[..., :1], torch.tensor([[[0]]], dtype=torch.uint8))
    templates.update(logits, torch.tensor([[[255, 0, 0, 0]]], dtype=torch.uint8))
    templates.update(logits, torch.full((1, 1, 4), IGNORE, dtype=torch.uint8))
    assert templates.counts.tolist() == [4, 0, 0]
    torch.testing.assert_close(templates.mean(), torch.tensor([[9 / 16, 7 / 16, 0], [0, 0, 0], [0, 0, 0]]))


@pytest.mark.parametrize("autocast", [False, True])
def test_templates_against_a_loop(autocast: bool) -> None:
    """More pixels than a chunk, frame by frame and as a batch."""
    K, H, W = 6, 129, 131
    frames = [draw(K, H, W, seed) for seed in range(3)]
    one, batch = Templates(K, temperature=3), Templates(K, temperature=3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for logits, label in frames:
            one.update(logits[None], label[None])
        batch.update(torch.stack([x for x, _ in frames]), torch.stack([y for _, y in frames]))
    p = torch.cat([(x.double() / 3).softmax(0).flatten(1) for x, _ in frames], 1)
    y = torch.cat([y.flatten() for _, y in frames])
    expected = torch.stack([p[:, y == k].mean(1) for k in range(K)]).float()
    torch.testing.assert_close(one.mean(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(batch.mean(), expected, rtol=1e-5, atol=1e-6)


def test_templates_refuse() -> None:
    templates = Templates(3)
    logits, label = draw(3, 4, 5)
    for value in (math.nan, math.inf):
        broken = logits.clone()
        broken[1, 2, 3] = value
        with pytest.raises(ValueError, match="logits: wanted"):
            templates.update(broken[None], label[None])
    with pytest.raises(ValueError, match="label: wanted 0 to 2 or 255, got 7"):
        templates.update(logits[None], torch.full((1, 4, 5), 7, dtype=torch.uint8))
    with pytest.raises(ValueError, match="label: wanted shape"):
        templates.update(logits[None], label[None, :3])
    with pytest.raises(ValueError, match="logits: wanted shape"):
        Templates(4).update(logits[None], label[None])
    with pytest.raises(ValueError, match="temperature"):
        Templates(3, temperature=0)
    assert not templates.sums.any()
    assert not templates.counts.any()


# ---- pixel matching


def two_classes(first: list[float]) -> Tensor:
    """Probabilities [2, 1, W] whose class 0 has these."""
    p = torch.tensor(first)
    return torch.stack([p, 1 - p])[:, None]


def test_similar_pixels_by_hand() -> None:
    """KL((0.8, 0.2) || (p, 1 - p)) is 0.335 at p = 0.4 and 0.429 at 0.99: the surest pixel is the one that goes."""
    probs = two_classes([0.8, 0.81, 0.99, 0.79, 0.82, 0.4, 0.78, 0.83, 0.77, 0.84])
    label = torch.zeros(1, 10, dtype=torch.uint8)
    templates = torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    assert similar_pixels(probs, label, templates).tolist() == [[0, 0, IGNORE, 0, 0, 0, 0, 0, 0, 0]]
    found = similar_pixels(probs, label, templates, keep=0.8)
    assert found.tolist() == [[0, 0, IGNORE, 0, 0, IGNORE, 0, 0, 0, 0]]
    assert similar_pixels(probs, label, templates, keep=0.19).tolist() == [[0] + [IGNORE] * 9]
    assert torch.equal(similar_pixels(probs, label, templates, keep=1.0), label)


@pytest.mark.parametrize("K", [2, 5, 21, 255])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.013, 1.0])
def test_similar_pixels_against_sorting(K: int, keep: float) -> None:
    H, W = (129, 131) if K < 10 else (31, 33)
    logits, label = draw(K, H, W, seed=K)
    label[label == 1] = IGNORE  # a class that the frame does not show
    probs, templates = logits.softmax(0), draw(K, K, 1, seed=1)[0][..., 0].softmax(1)
    found = similar_pixels(probs, label, templates, keep).numpy()
    p, y, t = probs.double().numpy(), label.numpy(), templates.double().numpy()
    expected = np.full_like(y, IGNORE)
    for k in set(np.unique(y)) - {IGNORE}:
        kl = (t[k][:, None, None] * (np.log(t[k][:, None, None]) - np.log(p))).sum(0)
        places = np.flatnonzero(y == k)
        stay = places[np.argsort((kl.max() - kl).ravel()[places])[::-1][: max(1, int(keep * len(places)))]]
        expected.ravel()[stay] = k
    assert (found != expected).sum() <= 2  # float32 may swap two neighbours at the bar
    np.testing.assert_array_equal(np.bincount(found.ravel()), np.bincount(expected.ravel()))


def test_rare_classes_and_ties_stay() -> None:
    """One pixel of class 0. Of five of class 1 four are alike: 2 are asked for, so 4 stay if they are the better."""
    label = torch.tensor([[0, 1, 1, 1, 1, 1]], dtype=torch.uint8)
    templates = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    probs = two_classes([0.3, 0.1, 0.1, 0.1, 0.1, 0.7])
    assert similar_pixels(probs, label, templates, keep=0.5).tolist() == [[0, 1, 1, 1, 1, IGNORE]]
    # Saturated at 0 they are the worse, with a KL of 6.6 against 0.8, and tie for the second place.
    probs = two_classes([0.3, 0.0, 0.0, 0.0, 0.0, 0.7])
    assert similar_pixels(probs, label, templates, keep=0.5).tolist() == [[0, 1, 1, 1, 1, 1]]
    assert similar_pixels(probs, label, templates, keep=0.2).tolist() == [[0] + [IGNORE] * 4 + [1]]


def test_a_class_without_a_template_keeps_its_pixels() -> None:
    logits, label = draw(3, 20, 20)
    templates = torch.tensor([[0.8, 0.1, 0.1], [0, 0, 0], [0.2, 0.2, 0.6]])
    found = similar_pixels(logits.softmax(0), label, templates)
    assert torch.equal(found == 1, label == 1)
    for k in (0, 2):
        assert (found == k).sum() == int(0.9 * int((label == k).sum()))


def test_similar_pixels_of_an_ignored_or_empty_frame() -> None:
    label = torch.full((3, 4), IGNORE, dtype=torch.uint8)
    templates = torch.eye(2)
    assert torch.equal(similar_pixels(torch.full((2, 3, 4), 0.5), label, templates), label)
    assert similar_pixels(torch.rand(2, 0, 4), label[:0], templates).shape == (0, 4)


def test_similar_pixels_of_other_types_strides_and_under_autocast() -> None:
    logits, label = draw(5, 33, 47)
    probs, templates = logits.softmax(0), draw(5, 5, 1, seed=1)[0][..., 0].softmax(1)
    found = similar_pixels(probs, label, templates)
    strided = probs.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(similar_pixels(strided, label.T.contiguous().T, templates), found)
    assert torch.equal(similar_pixels(probs.double(), label, templates), found)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(similar_pixels(probs, label, templates), found)
    half = similar_pixels(probs.half(), label, templates)
    assert ((half != found).sum() / found.numel()) < 0.01


def test_similar_pixels_refuses() -> None:
    logits, label = draw(3, 4, 5)
    probs, templates = logits.softmax(0), torch.eye(3)
    for value in (math.nan, math.inf, -0.5):
        broken = probs.clone()
        broken[1, 2, 3] = value
        with pytest.raises(ValueError, match="probs, templates: wanted probabilities"):
            similar_pixels(broken, label, templates)
    with pytest.raises(ValueError, match="label: wanted 0 to 2 or 255, got 9"):
        similar_pixels(probs, torch.full((4, 5), 9, dtype=torch.uint8), templates)
    with pytest.raises(ValueError, match="templates: wanted shape"):
        similar_pixels(probs, label, torch.eye(4))
    for keep in (0, 1.5, math.nan):
        with pytest.raises(ValueError, match="keep: wanted a share"):
            similar_pixels(probs, label, templates, keep)


# ---- image quantile

TEN = [0.99, 0.98, 0.97, 0.95, 0.90, 0.85, 0.80, 0.70, 0.60, 0.50]


@pytest.mark.parametrize(
    ("portion", "index"), [(0.05, 0), (0.1, 0), (0.19, 0), (0.2, 1), (0.55, 4), (0.99, 8), (1.0, 9)]
)
def test_image_quantile_by_hand(portion: float, index: int) -> None:
    confidence = torch.tensor(TEN)[torch.randperm(10, generator=torch.Generator().manual_seed(0))].view(2, 5)
    assert image_quantile(confidence, portion).item() == torch.tensor(TEN)[index].item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_image_quantile_against_sorting(dtype: torch.dtype) -> None:
    confidence = torch.rand(37, 41, generator=torch.Generator().manual_seed(2)).pow(0.1).to(dtype).T
    for portion in (0.001, 0.1, 1 / 3, 0.9, 1):
        n = int(portion * confidence.numel())
        found = image_quantile(confidence, portion)
        expected = np.sort(confidence.double().numpy().ravel())[::-1][n - 1]
        assert found.double().item() == expected
        assert found.dtype == dtype
        assert (confidence >= found).sum() >= n


def test_image_quantile_refuses() -> None:
    with pytest.raises(ValueError, match="confidence: wanted numbers, got NaN"):
        image_quantile(torch.tensor([[0.5, math.nan]]), 0.1)
    with pytest.raises(ValueError, match="confidence: wanted at least one pixel"):
        image_quantile(torch.rand(0, 3), 0.1)
    for portion in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match="portion: wanted a share"):
            image_quantile(torch.rand(2, 3), portion)
