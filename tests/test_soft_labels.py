"""Soft labels: one-hot maps, their cross entropy, and those of CRST's LRENT."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vda.losses import cross_entropy, lrent_labels, one_hot, soft_cross_entropy

IGNORE = 255


def draw(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logits and labels, of which a third is ignored."""
    labels = torch.randint(shape[1], (shape[0], *shape[2:]))
    labels[torch.rand(labels.shape) < 0.3] = IGNORE
    return 3 * torch.randn(shape), labels.to(torch.uint8)


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 2, 4), (2, 1, 2, 3, 3)])
def test_one_hot(shape) -> None:
    _, labels = draw(shape)
    hot = one_hot(labels, shape[1])
    assert hot.shape == shape
    assert hot.dtype == torch.float32
    wanted = F.one_hot(labels.long().where(labels != IGNORE, 0), shape[1]).movedim(-1, 1)
    assert torch.equal(hot, wanted * (labels != IGNORE).unsqueeze(1))


def test_one_hot_of_what_is_no_class_is_zero() -> None:
    labels = torch.tensor([[0, 2, 3, 255]], dtype=torch.uint8)
    assert one_hot(labels, 3).tolist() == [[[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]]
    assert one_hot(labels.long() - 1, 3)[0, :, 0].tolist() == [0, 0, 0]


def test_soft_cross_entropy_of_hard_labels_is_cross_entropy() -> None:
    logits, labels = draw((2, 5, 7, 3))
    found = soft_cross_entropy(logits, one_hot(labels, 5))
    torch.testing.assert_close(found, cross_entropy(logits, labels))


def test_soft_cross_entropy_by_hand() -> None:
    """P = (1/4, 3/4) twice: labels (0.5, 0.5) and (0, 0), which takes no part."""
    logits = torch.tensor([1.0, 3.0]).log().view(1, 2, 1).expand(1, 2, 2)
    soft = torch.tensor([[[0.5, 0.0], [0.5, 0.0]]])
    assert soft_cross_entropy(logits, soft).item() == pytest.approx(0.5 * (math.log(4) + math.log(4 / 3)))
    soft[0, :, 1] = torch.tensor([0.0, 0.1])  # the weight of a pixel is 1, whatever its labels add up to
    total = 0.5 * (math.log(4) + math.log(4 / 3)) + 0.1 * math.log(4 / 3)
    assert soft_cross_entropy(logits, soft).item() == pytest.approx(total / 2)


def test_soft_cross_entropy_without_labels() -> None:
    logits = draw((2, 4, 3, 5))[0].requires_grad_()
    loss = soft_cross_entropy(logits, torch.zeros(2, 4, 3, 5))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    with pytest.raises(ValueError, match=r"soft: wanted \[2, 4, 3, 5\], got \[2, 4, 3, 4\]"):
        soft_cross_entropy(logits, torch.zeros(2, 4, 3, 4))


# golden example 9: theta (0.9, 0.5), a = 1/4; P = (0.6, 0.4) is ignored, P = (0.45, 0.55) is kept
@pytest.mark.parametrize(
    ("p", "soft", "scores", "keep"),
    [
        ((0.6, 0.4), (0.3254, 0.6746), (0.6267, 0.5019), False),
        ((0.45, 0.55), (0.0409, 0.9591), (0.5633, 0.6691), True),
    ],
)
def test_lrent_by_hand(p, soft, scores, keep) -> None:
    theta = torch.tensor([0.9, 0.5])
    y, kept = lrent_labels(torch.tensor(p).log().view(1, 2, 1), theta)
    assert y.flatten().tolist() == pytest.approx(soft, abs=5e-5)
    assert kept.tolist() == [[keep]]
    sides = [
        sum(-a * math.log(b) + 0.25 * a * math.log(a) for a, b in zip(y.flatten().tolist(), p, strict=True)),
        sum(-a * math.log(b) for a, b in zip(y.flatten().tolist(), theta.tolist(), strict=True)),
    ]
    assert sides == pytest.approx(scores, abs=5e-5)


@pytest.mark.parametrize("softness", [0.25, 0.5, 0.07])
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 2, 40), (1, 3, 2, 5, 4)])
def test_lrent_equals_its_formula(shape, softness) -> None:
    """Its two sides differ by a log Z, Z the normaliser of y: kept where that sum of powers exceeds 1."""
    logits, _ = draw(shape)
    theta = torch.linspace(0.7, 1.0, shape[1], dtype=torch.float64)
    y, kept = lrent_labels(logits, theta, softness)
    p = logits.double().softmax(1)
    powers = (p / theta.view(-1, *[1] * (len(shape) - 2))) ** (1 / softness)
    Z = powers.sum(1)
    torch.testing.assert_close(y.double(), powers / Z.unsqueeze(1), rtol=1e-4, atol=1e-6)
    clear = (Z.log().abs() * softness) > 1e-5
    assert torch.equal(kept[clear], (Z > 1)[clear])
    assert 0 < kept.float().mean() < 1
    torch.testing.assert_close(y.sum(1), torch.ones_like(Z, dtype=torch.float32))


def test_lrent_of_certain_pixels_and_empty_classes() -> None:
    logits = torch.tensor([[0.0, 1e4], [1e4, 0.0]]).unsqueeze(0)
    y, kept = lrent_labels(logits, torch.tensor([0.9, 1.0]))
    assert torch.equal(y, torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    assert kept.tolist() == [[False, True]]  # no more than its threshold of 1; above 0.9
    y, kept = lrent_labels(torch.zeros(1, 2, 3), torch.tensor([0.0, 0.5]))  # a threshold of 0 counts as nearly none
    assert y.isfinite().all()
    assert kept.all()
    with pytest.raises(ValueError, match=r"theta: wanted \[2\], got \[3\]"):
        lrent_labels(logits, torch.ones(3))
