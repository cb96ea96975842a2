r"""From low-resolution logits and labels to the sums that segmentation losses are made of, in one pass.

    P(p) = softmax( upsampled logits (p) )                              bilinear, logits not probabilities
    cross entropy = sum_labelled -log P_y                               Eq. 9 and 12
    overlap_k = sum_labelled [y = k] P_k,  square_k = sum_labelled P_k^2     the sums of Dice, Eq. 6 and 7
    entropy = sum_unlabelled -sum_k P_k log P_k,  uniform = sum_labelled -(1/K) sum_k log P_k     L_reg of Eq. 12

Neither pass stores K channels at full resolution: the gradient evaluates the softmax once more. `vda.fused` makes
losses of the sums. Differentiable: logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _lib

UNLABELLED = 255  # kUnlabelled of csrc/segmentation_sums.h
_LABELS = (torch.uint8, torch.int64)


class SegmentationSums(NamedTuple):
    """Sums over the pixels of each of N frames."""

    cross_entropy: Tensor
    """[N], labelled pixels, -log P_y."""
    overlap: Tensor
    """[N, K], labelled pixels, P_k where k is the label."""
    square: Tensor
    """[N, K], labelled pixels, P_k^2."""
    entropy: Tensor
    """[N], unlabelled pixels, -sum_k P_k log P_k."""
    uniform: Tensor
    """[N], labelled pixels, -(1/K) sum_k log P_k."""
    labelled: Tensor
    """[N, K] int64, labelled pixels of each class."""
    unlabelled: Tensor
    """[N] int64, pixels without a label."""


def _named(sums: Tensor, count: Tensor, labels: Tensor) -> SegmentationSums:
    """From [N, 3 + 2 K] in the order of csrc/segmentation_sums.h."""
    cross_entropy, entropy, uniform = sums[:, :3].unbind(1)
    overlap, square = sums[:, 3:].chunk(2, 1)
    unlabelled = labels.shape[1] * labels.shape[2] - count.sum(1)
    return SegmentationSums(cross_entropy, overlap, square, entropy, uniform, count, unlabelled)


# ---- reference ----


def segmentation_sums_reference(logits: Tensor, labels: Tensor, *, align_corners: bool = True) -> SegmentationSums:
    """Plain-torch `segmentation_sums`: same signature, same results, any device, differentiable by torch itself."""
    _check_values(labels, logits.shape[1])
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if labels.numel():
        wide = F.interpolate(wide, labels.shape[1:], mode="bilinear", align_corners=align_corners)
    else:
        wide = wide.sum((2, 3), keepdim=True).expand(-1, -1, *labels.shape[1:])
    log_p = wide.log_softmax(1)
    p = log_p.exp()
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    hit = labels[:, None] == classes
    labelled = labels != UNLABELLED
    plogp = torch.where(p == 0, 0, p * log_p.clamp(min=-1e4))  # the limit, where a logit is minus infinity
    return SegmentationSums(
        torch.where(hit, -log_p, 0).sum((1, 2, 3)),
        torch.where(hit, p, 0).sum((2, 3)),
        torch.where(labelled[:, None], p.square(), 0).sum((2, 3)),
        torch.where(labelled, 0, -plogp.sum(1)).sum((1, 2)),
        torch.where(labelled, -log_p.mean(1), 0).sum((1, 2)),
        hit.sum((2, 3)),
        (~labelled).sum((1, 2)),
    )


# ---- checks and call ----


@_lib.arrays
def segmentation_sums(logits: Tensor, labels: Tensor, *, align_corners: bool = True) -> SegmentationSums:
    """Sums of cross entropy, overlap, squared probabilities and entropy over the pixels of each frame.

    Args:
        logits: [N, K, h, w] as the network gives them, float32, float16, bfloat16 or float64; K at most 255.
        labels: [N, H, W] uint8 or int64, 0 .. K - 1, or 255 for a pixel without a label. Their resolution is the one
            that the logits are upsampled to.
        align_corners: of the upsampling, as in `torch.nn.functional.interpolate`.

    Returns:
        `SegmentationSums`, float32 (float64 for float64 logits). Frames of a tube are added by the caller. The same
        bits for any number of threads, as the gradient.

    A logit of minus infinity is a class that is switched off. A pixel whose logits are NaN or plus infinity makes the
    sums that it enters NaN.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found. On CUDA a label that is no class
            fails an assertion on the device, as in `torch.nn.functional.cross_entropy`.
    """
    _lib.check_planes(logits, "logits", _lib.FLOAT_AND_DOUBLE, ("N", "K", "h", "w"))
    N, K, h, w = logits.shape
    if not (1 <= K <= 255 and min(h, w) >= 1):
        raise ValueError(f"logits: wanted 1 to 255 classes and at least one pixel, got shape {list(logits.shape)}")
    _lib.check_planes(labels, "labels", _LABELS, (N, "H", "W"))
    _lib.check_devices(logits=logits, labels=labels)
    if _lib.use_reference(logits):
        return segmentation_sums_reference(logits, labels, align_corners=align_corners)
    sums, count = _segmentation_sums_op(logits, labels, align_corners)
    return _named(sums, count, labels)


def _check_values(labels: Tensor, K: int) -> None:
    """Raises ValueError for a label that is no class; on CUDA, where to look would be to wait, an assertion does."""
    bad = (labels != UNLABELLED) & ((labels >= K) | (labels < 0))
    if labels.is_cuda:
        torch._assert_async(~bad.any(), f"labels: wanted 0 .. {K - 1} or {UNLABELLED}, got something else")
    elif bad.any():
        raise ValueError(f"labels: wanted 0 .. {K - 1} or {UNLABELLED}, got {labels[bad][0].item()}")


# ---- torch.ops.vda.segmentation_sums ----


def _members(logits: Tensor, labels: Tensor, align_corners: bool) -> dict[str, Any]:
    """What forward and backward have in common. Low-resolution logits are copied where a kernel wants others."""
    N, K, h, w = logits.shape
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return {
        "logits": wide.contiguous(),
        "label": labels.byte(),
        "batch": N,
        "classes": K,
        "height": labels.shape[1],
        "width": labels.shape[2],
        "logit_height": h,
        "logit_width": w,
        "dtype": _lib.dtype_name(wide),
        "align_corners": align_corners,
    }


def _segmentation_sums(logits: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    _check_values(labels, logits.shape[1])
    sums, count = _fake(logits, labels, align_corners)
    members = {**_members(logits, labels, align_corners), "sums": sums, "count": count, "workspace": None}
    members["workspace"] = _lib.workspace("segmentation_sums", logits, **members)
    _lib.call("segmentation_sums", logits, **members)
    return sums, count


def _fake(logits: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    N, K = logits.shape[:2]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty((N, 3 + 2 * K), dtype=dtype), logits.new_empty((N, K), dtype=torch.int64)


def _segmentation_sums_backward(grad: Tensor, logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    members = {**_members(logits, labels, align_corners), "grad": grad.contiguous(), "workspace": None}
    members["grad_logits"] = _lib.empty(members["logits"])
    members["workspace"] = _lib.workspace("segmentation_sums_backward", logits, **members)
    _lib.call("segmentation_sums_backward", logits, **members)
    return members["grad_logits"].to(logits.dtype)


def _backward_fake(grad: Tensor, logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    return _lib.empty(logits)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    logits, labels, ctx.align_corners = inputs
    ctx.save_for_backward(logits, labels)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    return _segmentation_sums_backward_op(grad, *ctx.saved_tensors, ctx.align_corners), None, None


_segmentation_sums_op = _lib.define(
    "segmentation_sums(Tensor logits, Tensor labels, bool align_corners) -> (Tensor, Tensor)",
    _segmentation_sums,
    _fake,
    _backward,
    _setup_context,
)
_segmentation_sums_backward_op = _lib.define(
    "segmentation_sums_backward(Tensor grad, Tensor logits, Tensor labels, bool align_corners) -> Tensor",
    _segmentation_sums_backward,
    _backward_fake,
)
