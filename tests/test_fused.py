"""Losses from segmentation sums against those of vda.losses on upsampled logits: values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench import memory
from vda import fused, losses
from vda.models import upsample
from vda.ops import SegmentationSums, segmentation_sums

B, T, K = 2, 3, 5
SIZE = (21, 38)
Fused = Callable[[SegmentationSums], Tensor]
Composed = Callable[[Tensor, Tensor], Tensor]  # of upsampled logits [B T, K, H, W] and labels


def tubes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return logits.softmax(1).unflatten(0, (B, T)).transpose(1, 2), labels.unflatten(0, (B, T))


def of_frame(t: int) -> slice:
    return slice(t, None, T)


PAIRS: dict[str, tuple[Fused, Composed]] = {
    "cross_entropy": (fused.cross_entropy, losses.cross_entropy),
    "cross_entropy of some frames": (
        lambda sums: fused.cross_entropy(fused.select(sums, of_frame(1))),
        lambda z, y: losses.cross_entropy(z[of_frame(1)], y[of_frame(1)]),
    ),
    "frame_loss": (fused.frame_loss, lambda z, y: losses.frame_loss(*tubes(z, y))),
    "iast_regulariser": (fused.iast_regulariser, losses.iast_regulariser),
    "iast_regulariser, other weights": (
        lambda sums: fused.iast_regulariser(sums, entropy_weight=0.5, kld_weight=2.0),
        lambda z, y: losses.iast_regulariser(z, y, entropy_weight=0.5, kld_weight=2.0),
    ),
    "mrkld": (fused.mrkld, losses.mrkld),
    **{
        f"tube_loss, {reduction}": (
            lambda sums, r=reduction: fused.tube_loss(sums, length=T, reduction=r),
            lambda z, y, r=reduction: losses.tube_loss(*tubes(z, y), reduction=r),
        )
        for reduction in ("sum", "mean", "present")
    },
}


def draw(ignored: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    labels = torch.randint(K - 1, (B * T, *SIZE), dtype=torch.uint8)  # a class is never shown
    labels[torch.rand(labels.shape) < ignored] = 255
    return (3 * torch.randn(B * T, K, 4, 7)).to(dtype).requires_grad_(), labels


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("ignored", [0.3, 2.0, -1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-13)])
def test_equals_the_composition(name: str, ignored: float, dtype: torch.dtype, tolerance: float) -> None:
    logits, labels = draw(ignored, dtype)
    ours, theirs = PAIRS[name]
    loss, wanted = ours(segmentation_sums(logits, labels)), theirs(upsample(logits, SIZE), labels)
    torch.testing.assert_close(loss, wanted, rtol=tolerance, atol=tolerance)
    slope, wanted_slope = (torch.autograd.grad(x, logits)[0] for x in (loss, wanted))
    torch.testing.assert_close(
        slope, wanted_slope, rtol=20 * tolerance, atol=tolerance * float(wanted_slope.abs().max())
    )
    assert wanted_slope.any() or ignored > 1 or "iast" in name


def test_takes_a_tenth_of_the_memory() -> None:
    """Of everything that is made on the way from logits and labels to the gradient."""
    logits, labels = torch.randn(2, 15, 33, 65, requires_grad=True), torch.randint(15, (2, 256, 512)).byte()

    def ours() -> None:
        sums = segmentation_sums(logits, labels)
        torch.autograd.grad(fused.cross_entropy(sums) + fused.tube_loss(sums, length=2), logits)

    def theirs() -> None:
        z = upsample(logits, (256, 512))
        tube = z.softmax(1).unflatten(0, (1, 2)).transpose(1, 2)
        torch.autograd.grad(losses.cross_entropy(z, labels) + losses.tube_loss(tube, labels[None]), logits)

    ours(), theirs()  # what is made the first time and stays
    assert memory.peak(theirs) > 4 * 15 * labels.numel()
    assert memory.peak(ours) < 0.1 * memory.peak(theirs)


def test_half_precision_logits_under_autocast() -> None:
    logits, labels = draw(0.3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        sums = segmentation_sums(logits.bfloat16(), labels)
        loss = fused.cross_entropy(sums) + fused.tube_loss(sums, length=T)
    assert loss.dtype == torch.float32
    z = upsample(logits.bfloat16(), SIZE)
    wanted = losses.cross_entropy(z, labels) + losses.tube_loss(*tubes(z, labels))
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)


def test_arguments_are_checked() -> None:
    sums = segmentation_sums(*draw(0.3, torch.float32))
    for length in (0, 4, -1):
        with pytest.raises(ValueError, match=f"length: wanted a divisor of the number of frames, 6, got {length}"):
            fused.tube_loss(sums, length=length)
    with pytest.raises(ValueError, match="reduction: wanted sum, mean or present, got 'max'"):
        fused.tube_loss(sums, length=T, reduction="max")  # type: ignore[arg-type]
