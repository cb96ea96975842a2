r"""Temporal aggregation of class probabilities, Eq. 10.

    out_i(p) = ( P_i(p) + sum_j I_j(p) P_j(p + F_j(p)) ) / ( 1 + sum_j I_j(p) )

P are class probabilities, F_j is the flow from frame i to neighbour j, warped bilinearly, and I_j(p) is 1 where
neighbour j shows at p + F_j(p) what frame i shows at p: the `visible` of `warp_occlusion`. The result is a convex
combination of distributions, so it sums to 1 wherever the inputs do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _lib
from .warp import squared_limit, warp_occlusion_reference, warp_reference

# ---- reference ----


def aggregate_reference(
    probs: Tensor,
    neighbour_probs: Tensor,
    flows: Tensor,
    frame: Tensor,
    neighbour_frames: Tensor,
    *,
    alpha: float,
    threshold: float = 0.7,
    squared: bool = False,
) -> Tensor:
    """Plain-torch `aggregate`: same signature, same results, any device."""
    squared_limit(alpha, threshold, squared)  # refuses bad numbers also where there is no neighbour
    total = probs.float().clone()
    count = torch.ones_like(total[:, :1])
    for j in range(flows.shape[1]):
        _, visible = warp_occlusion_reference(
            frame.float(),
            neighbour_frames[:, j].float(),
            flows[:, j],
            alpha=alpha,
            threshold=threshold,
            squared=squared,
        )
        seen = visible[:, None]
        total = total + torch.where(seen, warp_reference(neighbour_probs[:, j].float(), flows[:, j]), 0)
        count = count + seen
    return (total / count).to(probs.dtype)


# ---- checks and call ----


@_lib.arrays
def aggregate(
    probs: Tensor,
    neighbour_probs: Tensor,
    flows: Tensor,
    frame: Tensor,
    neighbour_frames: Tensor,
    *,
    alpha: float,
    threshold: float = 0.7,
    squared: bool = False,
) -> Tensor:
    """Average a frame's class probabilities with those of its neighbours, where they are not occluded (Eq. 10).

    Args:
        probs: [B, K, H, W] class probabilities of the frame, float32, float16 or bfloat16, any strides.
        neighbour_probs: [B, J, K, H, W] of the J neighbours, element type of probs. J may be 0, and differ from
            call to call: the ends of a clip have one neighbour.
        flows: [B, J, 2, H, W] from the frame to each neighbour, in pixels (u right, v down); types as in `warp`.
            A neighbour is left out where its flow is not finite or leaves the frame.
        frame: [B, C, H, W] colours of the frame, float32, float16 or bfloat16; compared in float32.
        neighbour_frames: [B, J, C, H, W] colours of the neighbours, element type of frame.
        alpha, threshold, squared: the occlusion test, as in `warp_occlusion`; alpha belongs to the colour range.

    Returns:
        [B, K, H, W], element type of probs, contiguous; sums are float32.

    Not differentiable: Eq. 10 makes pseudo labels, which are decisions taken from a finished network, and the
    occlusion test is a step. Use it under `torch.no_grad()` or on detached tensors.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found.
    """
    _lib.check_planes(probs, "probs", _lib.FLOAT, ("B", "K", "H", "W"))
    B, K, H, W = probs.shape
    _lib.check_planes(neighbour_probs, "neighbour_probs", (probs.dtype,), (B, "J", K, H, W))
    J = neighbour_probs.shape[1]
    _lib.check_planes(flows, "flows", _lib.FLOW, (B, J, 2, H, W))
    _lib.check_planes(frame, "frame", _lib.FLOAT, (B, "C", H, W))
    _lib.check_planes(neighbour_frames, "neighbour_frames", (frame.dtype,), (B, J, frame.shape[1], H, W))
    tensors = {
        "probs": probs,
        "neighbour_probs": neighbour_probs,
        "flows": flows,
        "frame": frame,
        "neighbour_frames": neighbour_frames,
    }
    _lib.check_devices(**tensors)
    _lib.refuse_gradient(**tensors)
    limit = squared_limit(alpha, threshold, squared)
    if _lib.use_reference(probs):
        return aggregate_reference(*tensors.values(), alpha=alpha, threshold=threshold, squared=squared)
    return _aggregate_op(*tensors.values(), limit)


# ---- torch.ops.vda.aggregate ----


def _aggregate(
    probs: Tensor, neighbour_probs: Tensor, flows: Tensor, frame: Tensor, neighbour_frames: Tensor, limit: float
) -> Tensor:
    B, K, H, W = probs.shape
    frame, neighbour_frames = frame.float(), neighbour_frames.float()
    out = _aggregate_fake(probs, neighbour_probs, flows, frame, neighbour_frames, limit)
    _lib.call(
        "aggregate",
        probs,
        probs=probs,
        neighbour_probs=neighbour_probs,
        flows=flows,
        frame=frame,
        neighbour_frames=neighbour_frames,
        out=out,
        batch=B,
        neighbours=flows.shape[1],
        classes=K,
        channels=frame.shape[1],
        height=H,
        width=W,
        dtype=_lib.dtype_name(probs),
        limit=limit,
    )
    return out


def _aggregate_fake(
    probs: Tensor, neighbour_probs: Tensor, flows: Tensor, frame: Tensor, neighbour_frames: Tensor, limit: float
) -> Tensor:
    return _lib.empty(probs)


_aggregate_op = _lib.define(
    "aggregate(Tensor probs, Tensor neighbour_probs, Tensor flows, Tensor frame, Tensor neighbour_frames, "
    "float limit) -> Tensor",
    _aggregate,
    _aggregate_fake,
)
