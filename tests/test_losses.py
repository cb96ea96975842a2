"""Losses against hand-worked numbers, an independent one-hot computation in float64, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vda.losses import (
    cross_entropy,
    discriminator_loss,
    entropy,
    frame_loss,
    generator_loss,
    iast_regulariser,
    min_entropy,
    mrkld,
    robust_entropy,
    self_information,
    tube_loss,
)

IGNORE = 255
LOSSES_WITH_LABELS = [cross_entropy, iast_regulariser, mrkld]


def draw(shape: tuple[int, ...], seed: int = 0, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    """Logits and labels, of which a share is ignored."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=g)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=g)
    labels[torch.rand(labels.shape, generator=g) < ignored] = IGNORE
    return logits, labels.to(torch.uint8)


def one_hot_dice(probs: Tensor, labels: Tensor) -> Tensor:
    """1 - Dice of every class, [N, K], from a one-hot tensor."""
    p, y = probs.double(), labels.long()
    q = torch.stack([(y == k).double() for k in range(p.shape[1])], 1)
    p = p * (y != IGNORE).unsqueeze(1)
    return 1 - 2 * (p * q).flatten(2).sum(2) / (p.pow(2) + q.pow(2)).flatten(2).sum(2).clamp(min=1e-12)


# ---- cross entropy


def test_cross_entropy_is_the_mean_over_labelled_pixels() -> None:
    logits, labels = draw((2, 5, 7, 9))
    picked = [
        -torch.log_softmax(logits[n, :, y, x].double(), 0)[int(labels[n, y, x])]
        for n in range(2)
        for y in range(7)
        for x in range(9)
        if labels[n, y, x] != IGNORE
    ]
    torch.testing.assert_close(cross_entropy(logits, labels).double(), torch.stack(picked).mean())


def test_cross_entropy_of_uniform_logits_is_log_k() -> None:
    labels = torch.tensor([[[3, 255]]])
    assert cross_entropy(torch.zeros(1, 15, 1, 2), labels).item() == pytest.approx(math.log(15))


@pytest.mark.parametrize("loss", LOSSES_WITH_LABELS)
def test_all_ignored_gives_finite_loss_and_gradient(loss) -> None:
    logits, labels = draw((2, 4, 3, 5), ignored=2.0)
    logits.requires_grad_()
    value = loss(logits, labels)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    if loss is not iast_regulariser:  # its entropy term acts on ignored pixels
        assert value == 0
        assert not logits.grad.any()


@pytest.mark.parametrize("loss", LOSSES_WITH_LABELS)
def test_gradients_stay_finite_for_saturated_logits(loss) -> None:
    logits, labels = draw((1, 4, 5, 3))
    logits = (logits * 1e4).requires_grad_()
    loss(logits, labels).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", [cross_entropy, mrkld])
def test_ignored_pixels_get_no_gradient(loss) -> None:
    logits, labels = draw((2, 4, 5, 3))
    logits.requires_grad_()
    loss(logits, labels).backward()
    ignored = (labels == IGNORE).unsqueeze(1).expand_as(logits)
    assert not logits.grad[ignored].any()
    assert logits.grad[~ignored].abs().min() > 0


@pytest.mark.parametrize("loss", [*LOSSES_WITH_LABELS, lambda p, y: tube_loss(p[:, :, None], y[:, None])])
def test_labels_are_checked(loss) -> None:
    logits, labels = draw((2, 4, 5, 3))
    with pytest.raises(ValueError, match=r"labels: wanted .*\[2, .*5, 3\]"):
        loss(logits, labels[:, :-1])
    with pytest.raises(TypeError, match="labels: wanted an integer type"):
        loss(logits, labels.float())


# ---- tube matching


def pixels(values: list[list[float]], labels: list[int]) -> tuple[Tensor, Tensor]:
    """values[k][i]: probability of class k in pixel i of one frame."""
    return torch.tensor(values).view(1, len(values), 1, 1, -1), torch.tensor(labels).view(1, 1, 1, -1)


# golden example 6: p = (0.8, 0.6), q = (1, 0) -> 0.2; q = 0 -> 1 without a gradient; p = q one-hot -> 0
def test_dice_by_hand() -> None:
    # Class 0: p = (0.8, 0.6), q = (1, 0): Dice 1.6 / 2 = 0.8. Class 1 absent: exactly 1.
    # Class 2: p = (0, 0.4), q = (0, 1): Dice 0.8 / 1.16.
    probs, labels = pixels([[0.8, 0.6], [0.2, 0.0], [0.0, 0.4]], [0, 2])
    third = 1 - 0.8 / 1.16
    assert tube_loss(probs, labels).item() == pytest.approx(0.2 + 1 + third, abs=1e-5)
    assert tube_loss(probs, labels, reduction="mean").item() == pytest.approx((1.2 + third) / 3, abs=1e-5)
    assert tube_loss(probs, labels, reduction="present").item() == pytest.approx((0.2 + third) / 2, abs=1e-5)


# golden example 6, its third part
def test_perfect_prediction_costs_nothing() -> None:
    probs, labels = pixels([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert tube_loss(probs, labels).item() == pytest.approx(0, abs=2e-6)


# golden example 6, its second part
def test_absent_class_costs_one_and_has_no_gradient() -> None:
    probs, labels = pixels([[0.8, 0.6], [0.2, 0.4]], [0, 0])
    probs.requires_grad_()
    loss = tube_loss(probs, labels)
    loss.backward()
    alone = 1 - 2 * 1.4 / (1.0 + 2.0)
    assert loss.item() == pytest.approx(1 + alone, abs=1e-5)
    assert not probs.grad[:, 1].any()
    assert probs.grad[:, 0].all()


# golden example 19: tube Dice 2/3, mean of the frames' Dices 1/2
def test_tube_differs_from_mean_of_frames() -> None:
    probs = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1, 1)  # one class, two frames of one pixel
    labels = torch.zeros(1, 2, 1, 1, dtype=torch.uint8)
    assert tube_loss(probs, labels).item() == pytest.approx(1 - 2 / 3, abs=1e-5)
    assert frame_loss(probs, labels).item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 2, 7, 9), (1, 3, 4, 1, 1), (3, 2, 1, 5, 2)])
def test_tube_loss_equals_one_hot_computation(shape) -> None:
    logits, labels = draw(shape)
    probs = logits.softmax(1)
    expected = one_hot_dice(probs, labels)
    torch.testing.assert_close(tube_loss(probs, labels).double(), expected.sum(1).mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        tube_loss(probs, labels, reduction="mean").double(), expected.mean(), rtol=1e-5, atol=1e-5
    )
    frames = torch.stack(
        [one_hot_dice(probs[:, :, t : t + 1], labels[:, t : t + 1]).sum(1).mean() for t in range(shape[2])]
    )
    torch.testing.assert_close(frame_loss(probs, labels).double(), frames.mean(), rtol=1e-5, atol=1e-5)


def test_ignored_pixels_do_not_enter_the_tube() -> None:
    logits, labels = draw((1, 4, 2, 5, 3))
    probs = logits.softmax(1)
    changed = probs.clone()
    changed[(labels == IGNORE).unsqueeze(1).expand_as(probs)] = 0.25
    assert tube_loss(probs, labels) == tube_loss(changed, labels)


def test_all_ignored_tube() -> None:
    logits, labels = draw((2, 4, 2, 3, 3), ignored=2.0)
    probs = logits.softmax(1).requires_grad_()
    losses = [tube_loss(probs, labels, reduction=r) for r in ("sum", "mean", "present")]
    assert [loss.item() for loss in losses] == [4.0, 1.0, 0.0]
    sum(losses).backward()
    assert not probs.grad.any()


def test_tube_gradient() -> None:
    logits, labels = draw((2, 3, 2, 3, 2))
    probs = logits.double().softmax(1).requires_grad_()
    for reduction in ("sum", "mean", "present"):
        assert torch.autograd.gradcheck(lambda p, r=reduction: tube_loss(p, labels, reduction=r), probs)
    assert torch.autograd.gradcheck(lambda p: frame_loss(p, labels), probs)


def test_sums_of_half_precision_maps_do_not_overflow() -> None:
    probs = torch.ones(1, 1, 2, 256, 256, dtype=torch.float16)  # sum of p^2 is 131072, beyond half precision
    labels = torch.zeros(1, 2, 256, 256, dtype=torch.uint8)
    assert tube_loss(probs, labels).item() == pytest.approx(0, abs=1e-6)


def test_tube_arguments_are_checked() -> None:
    logits, labels = draw((1, 3, 2, 4, 4))
    with pytest.raises(ValueError, match=r"probs: wanted \[N, K, T, H, W\]"):
        tube_loss(logits[:, :, 0], labels[:, 0])
    with pytest.raises(ValueError, match="reduction: wanted sum, mean or present, got 'max'"):
        tube_loss(logits, labels, reduction="max")  # type: ignore[arg-type]


# ---- adversarial


def test_adversarial_losses_by_hand() -> None:
    source, target = torch.tensor([0.0, 0.0]), torch.tensor([math.log(3.0)])  # sigmoids 1/2 and 3/4
    assert generator_loss(target).item() == pytest.approx(math.log(4))  # -log(1 - 3/4)
    assert discriminator_loss(source, target).item() == pytest.approx(0.5 * (math.log(2) + math.log(4 / 3)))
    assert generator_loss(target, "least_squares").item() == pytest.approx(math.log(3) ** 2)
    assert discriminator_loss(source, target, "least_squares").item() == pytest.approx(0.5 * (math.log(3) - 1) ** 2)
    with pytest.raises(ValueError, match="gan: wanted vanilla or least_squares, got 'hinge'"):
        generator_loss(target, "hinge")  # type: ignore[arg-type]


@pytest.mark.parametrize("gan", ["vanilla", "least_squares"])
def test_generator_and_discriminator_pull_the_target_apart(gan) -> None:
    score = torch.tensor([0.3], requires_grad=True)
    (up,) = torch.autograd.grad(generator_loss(score, gan), score)
    (down,) = torch.autograd.grad(discriminator_loss(torch.zeros(1), score, gan), score)
    assert up > 0 > down


def test_generator_keeps_its_gradient_where_the_discriminator_wins() -> None:
    score = torch.tensor([20.0], requires_grad=True)
    generator_loss(score).backward()
    assert score.grad.item() == pytest.approx(1.0)


# ---- entropy


# golden example 4: uniform -> 1/15 in every channel, 1 in sum; one-hot -> 0
def test_self_information_by_hand() -> None:
    uniform = self_information(torch.zeros(1, 15, 2, 3))
    torch.testing.assert_close(uniform, torch.full_like(uniform, 0.066667), rtol=1e-5, atol=0)
    torch.testing.assert_close(uniform.sum(1), torch.ones(1, 2, 3))
    sure = torch.zeros(1, 15, 1, 1)
    sure[:, 4] = 1e4
    sure.requires_grad_()
    maps = self_information(sure)
    assert not maps.any()
    maps.sum().backward()
    assert torch.isfinite(sure.grad).all()


def test_entropies_equal_their_formulas() -> None:
    logits, _ = draw((2, 6, 5, 3))
    p = logits.double().softmax(1)
    information = -p * torch.log2(p + 1e-30) / math.log2(6)
    torch.testing.assert_close(self_information(logits).double(), information, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(min_entropy(logits).double(), information.sum(1).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        entropy(logits).double(),
        torch.distributions.Categorical(p.movedim(1, -1)).entropy(),
        rtol=1e-5,
        atol=1e-6,
    )


# golden example 5: normalised entropy 0.5 and eta 2 -> 0.0625; uniform -> 1
def test_robust_entropy_by_hand() -> None:
    half = torch.tensor([0.0, 0.0, -1e4, -1e4]).view(1, 4, 1, 1).expand(1, 4, 2, 3)
    assert robust_entropy(half).item() == pytest.approx((0.25 + 1e-8) ** 2, rel=1e-6)
    assert robust_entropy(half).item() == pytest.approx(0.0625, abs=1e-7)
    assert robust_entropy(torch.zeros(1, 15, 2, 3)).item() == pytest.approx(1)
    assert robust_entropy(half, eta=1.0).item() == pytest.approx(0.25)


def test_robust_entropy_equals_its_formula() -> None:
    logits, _ = draw((2, 6, 5, 3))
    e = torch.distributions.Categorical(logits.double().softmax(1).movedim(1, -1)).entropy() / math.log(6)
    for eta in (2.0, 1.5):
        assert robust_entropy(logits, eta).item() == pytest.approx((e.square() + 1e-8).pow(eta).mean().item(), rel=1e-5)
    certain = (1e4 * logits).requires_grad_()
    robust_entropy(certain, 0.5).backward()  # the root of e^2: the 1e-8 keeps its gradient finite
    assert certain.grad.isfinite().all()


def test_entropy_is_computed_in_float32_under_autocast() -> None:
    logits, labels = draw((1, 6, 5, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [entropy(logits.bfloat16()).sum(), iast_regulariser(logits.bfloat16(), labels)]
    assert all(value.dtype == torch.float32 for value in values)
    assert values[0].item() == pytest.approx(entropy(logits.bfloat16().float()).sum().item(), rel=1e-5)


# ---- confidence regularisers


# golden example 14: log(15) / 15 = 0.18054, times 3 = 0.5416, times 0.1 = 0.01805
def test_iast_regulariser_of_uniform_logits() -> None:
    logits, labels = torch.zeros(1, 15, 1, 4), torch.tensor([[[255, 255, 255, 7]]])
    share = math.log(15) / 15
    assert share == pytest.approx(0.18054, abs=1e-5)
    assert iast_regulariser(logits, labels).item() == pytest.approx(3.0 * share + 0.1 * share)
    assert iast_regulariser(logits, labels, kld_weight=0).item() == pytest.approx(0.5416, abs=1e-4)
    assert iast_regulariser(logits, labels, entropy_weight=0).item() == pytest.approx(0.01805, abs=1e-5)


@pytest.mark.parametrize("ignored", [0.4, -1.0, 2.0])
def test_regularisers_equal_their_formulas(ignored) -> None:
    logits, labels = draw((2, 5, 7, 3), ignored=ignored)
    log_p = logits.double().log_softmax(1)
    mask = (labels == IGNORE).unsqueeze(1).expand_as(log_p)
    sharpen = -(log_p.exp() * log_p)[mask].mean() if mask.any() else 0.0
    smooth = -log_p[~mask].mean() / 5 if not mask.all() else 0.0
    assert iast_regulariser(logits, labels).item() == pytest.approx(float(3 * sharpen + 0.1 * smooth), rel=1e-5)
    assert mrkld(logits, labels).item() == pytest.approx(float(5 * smooth), rel=1e-5)


def test_regulariser_sharpens_ignored_and_smooths_labelled_pixels() -> None:
    logits = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2).requires_grad_()
    iast_regulariser(logits, torch.tensor([[[255, 0]]])).backward()
    assert logits.grad[0, 0, 0, 0] < 0 < logits.grad[0, 0, 0, 1]
