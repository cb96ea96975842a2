r"""From low-resolution logits to labels and confidences of the aggregated prediction, Eq. 10, in one pass.

    P(q) = softmax( upsampled logits (q) )                                      bilinear, logits not probabilities
    P^A(p) = ( P_i(p) + sum_j I_j(p) P_j(p + F_j(p)) ) / ( 1 + sum_j I_j(p) )   as `aggregate`
    label(p) = argmax_k w_k P^A_k(p),   confidence(p) = max_k w_k P^A_k(p)      w = 1 unless weights are given

Probabilities are never stored for a whole frame: not differentiable, nothing to differentiate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _lib
from .aggregate import aggregate_reference
from .thresholds import ClassThresholds
from .warp import squared_limit

NO_LABEL = 255
MAX_NEIGHBOURS = 8  # kMaxNeighbours of csrc/aggregate_labels.h


# ---- reference ----


def aggregate_labels_reference(
    logits: Tensor,
    neighbour_logits: Tensor,
    flows: Tensor,
    frame: Tensor,
    neighbour_frames: Tensor,
    *,
    alpha: float,
    threshold: float = 0.7,
    squared: bool = False,
    align_corners: bool = True,
    weight: Tensor | None = None,
    thresholds: ClassThresholds | None = None,
) -> tuple[Tensor, Tensor]:
    """Plain-torch `aggregate_labels`: same signature, same results, any device."""
    H, W = frame.shape[-2:]

    def probabilities(x: Tensor) -> Tensor:
        return F.interpolate(x.float(), (H, W), mode="bilinear", align_corners=align_corners).softmax(1)

    own = probabilities(logits)
    neighbours = [probabilities(x) for x in neighbour_logits.unbind(1)]
    probs = aggregate_reference(
        own,
        torch.stack(neighbours, 1) if neighbours else own[:, None][:, :0],
        flows,
        frame,
        neighbour_frames,
        alpha=alpha,
        threshold=threshold,
        squared=squared,
    )
    valid = probs.sum(1).isfinite()
    confidence, label = (probs if weight is None else probs * weight.float()[:, None, None]).max(1)
    label = torch.where(valid, label, NO_LABEL).to(torch.uint8)
    confidence = torch.where(valid, confidence, 0).half()
    if thresholds is not None:
        thresholds.update(confidence, label)
    return label, confidence


# ---- checks and call ----


@_lib.arrays
def aggregate_labels(
    logits: Tensor,
    neighbour_logits: Tensor,
    flows: Tensor,
    frame: Tensor,
    neighbour_frames: Tensor,
    *,
    alpha: float,
    threshold: float = 0.7,
    squared: bool = False,
    align_corners: bool = True,
    weight: Tensor | None = None,
    thresholds: ClassThresholds | None = None,
) -> tuple[Tensor, Tensor]:
    """Label and confidence of every pixel of a frame, from the logits of the frame and of its neighbours.

    Args:
        logits: [B, K, h, w] of the frame, as the network gives them, float32, float16 or bfloat16; K at most 255.
        neighbour_logits: [B, J, K, h, w] of the J neighbours, element type of logits. J may be 0, at most 8.
        flows: [B, J, 2, H, W] from the frame to each neighbour, in pixels (u right, v down); types as in `warp`.
        frame: [B, C, H, W] colours of the frame, float32, float16 or bfloat16; gives the resolution of the result.
        neighbour_frames: [B, J, C, H, W] colours of the neighbours, element type of frame.
        alpha, threshold, squared: the occlusion test, as in `warp_occlusion`; alpha belongs to the colour range.
        align_corners: of the upsampling of the logits, as in `torch.nn.functional.interpolate`. The public code of
            this field upsamples with True.
        weight: [K] factors of the probabilities before argmax and max, e.g. the inverse thresholds of CBST.
        thresholds: counts the result in the same pass, as `thresholds.update(confidence, label)` would.

    Returns:
        label: [B, H, W] uint8, the lowest class of equals; 255 where a logit that matters is NaN or infinite, and
            the distribution therefore not a number. confidence: [B, H, W] float16; 0 there.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found.
    """
    _lib.check_planes(logits, "logits", _lib.FLOAT, ("B", "K", "h", "w"))
    B, K, h, w = logits.shape
    _lib.check_planes(neighbour_logits, "neighbour_logits", (logits.dtype,), (B, "J", K, h, w))
    J = neighbour_logits.shape[1]
    _lib.check_planes(frame, "frame", _lib.FLOAT, (B, "C", "H", "W"))
    H, W = frame.shape[-2:]
    _lib.check_planes(flows, "flows", _lib.FLOW, (B, J, 2, H, W))
    _lib.check_planes(neighbour_frames, "neighbour_frames", (frame.dtype,), (B, J, frame.shape[1], H, W))
    if not (1 <= K <= 255 and min(h, w) >= 1):
        raise ValueError(f"logits: wanted 1 to 255 classes and at least one pixel, got shape {list(logits.shape)}")
    if J > MAX_NEIGHBOURS:
        raise ValueError(f"neighbour_logits: wanted at most {MAX_NEIGHBOURS} neighbours, got {J}")
    if weight is not None:
        _lib.check(weight, "weight", (torch.float32, torch.float64), (K,))
    histogram = None
    if thresholds is not None:
        if not isinstance(thresholds, ClassThresholds):
            raise TypeError(f"thresholds: wanted a ClassThresholds, got {type(thresholds).__name__}")
        histogram = thresholds.histogram
        if histogram.shape[0] != K:
            raise ValueError(f"thresholds: wanted {K} classes, got {histogram.shape[0]}")
    tensors = {
        "logits": logits,
        "neighbour_logits": neighbour_logits,
        "flows": flows,
        "frame": frame,
        "neighbour_frames": neighbour_frames,
    }
    _lib.check_devices(**tensors, weight=weight, thresholds=histogram)
    _lib.refuse_gradient(**tensors, weight=weight)
    limit = squared_limit(alpha, threshold, squared)
    if _lib.use_reference(logits):
        return aggregate_labels_reference(
            *tensors.values(),
            alpha=alpha,
            threshold=threshold,
            squared=squared,
            align_corners=align_corners,
            weight=weight,
            thresholds=thresholds,
        )
    if histogram is None:
        return _aggregate_labels_op(*tensors.values(), limit, align_corners, weight)
    return _aggregate_labels_count_op(histogram, *tensors.values(), limit, align_corners, weight)


# ---- torch.ops.vda.aggregate_labels ----


def _run(
    histogram: Tensor | None,
    logits: Tensor,
    neighbour_logits: Tensor,
    flows: Tensor,
    frame: Tensor,
    neighbour_frames: Tensor,
    limit: float,
    align_corners: bool,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    B, K, h, w = logits.shape
    C, H, W = frame.shape[1:]
    on_cpu = not _lib.on_cuda(logits)
    if on_cpu:  # 1/64 of the pixels of the result: contiguous copies cost nothing
        logits, neighbour_logits = logits.float().contiguous(), neighbour_logits.float().contiguous()
    frame, neighbour_frames = frame.float(), neighbour_frames.float()
    label, confidence = _fake(logits, frame)
    members: dict[str, Any] = {
        "logits": logits,
        "neighbour_logits": neighbour_logits,
        "flows": flows,
        "frame": frame,
        "neighbour_frames": neighbour_frames,
        "weight": None if weight is None else weight.float().contiguous(),
        "label": label,
        "confidence": confidence,
        "histogram": histogram,
        "workspace": None,
        "batch": B,
        "classes": K,
        "neighbours": flows.shape[1],
        "channels": C,
        "height": H,
        "width": W,
        "logit_height": h,
        "logit_width": w,
        "dtype": _lib.dtype_name(logits),
        "align_corners": align_corners,
        "limit": limit,
    }
    if on_cpu:
        members["workspace"] = _lib.workspace("aggregate_labels", logits, **members)
    _lib.call("aggregate_labels", logits, **members)
    return label, confidence


def _aggregate_labels(
    logits: Tensor,
    neighbour_logits: Tensor,
    flows: Tensor,
    frame: Tensor,
    neighbour_frames: Tensor,
    limit: float,
    align_corners: bool,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _run(None, logits, neighbour_logits, flows, frame, neighbour_frames, limit, align_corners, weight)


def _fake(logits: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    size = (frame.shape[0], *frame.shape[-2:])
    return logits.new_empty(size, dtype=torch.uint8), logits.new_empty(size, dtype=torch.float16)


_ARGUMENTS = (
    "Tensor logits, Tensor neighbour_logits, Tensor flows, Tensor frame, Tensor neighbour_frames, float limit, "
    "bool align_corners, Tensor? weight"
)
_aggregate_labels_op = _lib.define(
    f"aggregate_labels({_ARGUMENTS}) -> (Tensor, Tensor)",
    _aggregate_labels,
    lambda logits, neighbour_logits, flows, frame, *_: _fake(logits, frame),
)
_aggregate_labels_count_op = _lib.define(
    f"aggregate_labels_count(Tensor(a!) histogram, {_ARGUMENTS}) -> (Tensor, Tensor)",
    _run,
    lambda histogram, logits, neighbour_logits, flows, frame, *_: _fake(logits, frame),
)
