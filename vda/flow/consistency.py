r"""Forward-backward consistency: where the flow back leads to where the flow came from.

    seen(p) = [ |F(p) + B(p + F(p))|^2 < relative (|F(p)|^2 + |B(p + F(p))|^2) + absolute ]

with relative = 0.01 and absolute = 0.5 (Sundaram, Brox and Keutzer, Dense Point Trajectories by GPU-Accelerated Large
Displacement Optical Flow, ECCV 2010). An alternative to the photometric occlusion test of Eq. 10 that knows no colours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vda.ops import warp


def ends_inside(flow: Tensor) -> Tensor:
    """Where p + flow(p) lies in the frame, [B, H, W] bool, of a flow [B, 2, H, W] in pixels; not where it is NaN."""
    H, W = flow.shape[-2:]
    x = torch.arange(W, device=flow.device) + flow[:, 0]
    y = torch.arange(H, device=flow.device)[:, None] + flow[:, 1]
    return (x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1)


def consistent(flow: Tensor, back: Tensor, *, relative: float = 0.01, absolute: float = 0.5) -> Tensor:
    """Where two flows agree: [B, H, W] bool.

    flow: [B, 2, H, W] from frame i to frame j, pixels, of a floating type; back: the same from j to i. False where
    p + flow(p) lies outside the frame or either flow is not finite. TypeError for flow in tenths of a pixel (int16).
    """
    if not (flow.is_floating_point() and back.is_floating_point()):
        raise TypeError(f"flow, back: wanted floating types, in pixels, got {flow.dtype} and {back.dtype}")
    flow, back = flow.float(), back.float()
    returned = warp(back, flow)
    limit = relative * (flow.square().sum(1) + returned.square().sum(1)) + absolute
    return ends_inside(flow) & ((flow + returned).square().sum(1) < limit)
