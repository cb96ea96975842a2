"""Losses of `vda.losses` from the sums of `vda.ops.segmentation_sums`: the same values and gradients, to rounding.

Where those take logits or probabilities at full resolution, these take the sums of the frames, which come from
low-resolution logits in one pass. No K-channel tensor at full resolution is made, neither forward nor backward:

    sums = segmentation_sums(network(frames), labels)          # [N, 3, H, W], [N, H, W]; logits [N, K, h, w]
    loss = fused.cross_entropy(sums) + fused.tube_loss(sums, length=T)
"""

from __future__ import annotations

from torch import Tensor

from vda.distributed import mean_over
from vda.losses import Reduction, dice_loss
from vda.ops import SegmentationSums


def select(sums: SegmentationSums, frames: slice) -> SegmentationSums:
    """The sums of some of the frames."""
    return SegmentationSums(*(x[frames] for x in sums))


def cross_entropy(sums: SegmentationSums) -> Tensor:
    """`vda.losses.cross_entropy` of these frames; the segmentation term of Eq. 9 and 12."""
    return mean_over(sums.cross_entropy.sum(), sums.labelled.sum())


def tube_loss(sums: SegmentationSums, *, length: int, reduction: Reduction = "sum") -> Tensor:
    """`vda.losses.tube_loss` (Eq. 6, 7) of frames that are tubes of `length` frames, one tube after another.

    Raises:
        ValueError: a length that does not divide the number of frames, or an unknown reduction.
    """
    N = len(sums.labelled)
    if length < 1 or N % length:
        raise ValueError(f"length: wanted a divisor of the number of frames, {N}, got {length}")
    tubes = (x.unflatten(0, (-1, length)).sum(1) for x in (sums.overlap, sums.square, sums.labelled))
    return dice_loss(*tubes, reduction=reduction)


def frame_loss(sums: SegmentationSums, *, reduction: Reduction = "sum") -> Tensor:
    """`vda.losses.frame_loss` of these frames: each a tube of its own."""
    return tube_loss(sums, length=1, reduction=reduction)


def iast_regulariser(sums: SegmentationSums, *, entropy_weight: float = 3.0, kld_weight: float = 0.1) -> Tensor:
    """`vda.losses.iast_regulariser` of these frames (Eq. 12)."""
    K = sums.labelled.shape[1]
    sharpen = mean_over(sums.entropy.sum(), K * sums.unlabelled.sum())
    smooth = mean_over(sums.uniform.sum(), K * sums.labelled.sum())
    return entropy_weight * sharpen + kld_weight * smooth


def mrkld(sums: SegmentationSums) -> Tensor:
    """`vda.losses.mrkld` of these frames."""
    return mean_over(sums.uniform.sum(), sums.labelled.sum())
