"""What can be seen of a frame in its neighbour, by the test that the settings choose. The one place that decides it.

photometric: the colours agree (I of Eq. 10). consistency: the flow there and the flow back agree
(vda/flow/consistency.py). both: their conjunction. Whatever the test, a pixel whose flow leaves the frame or is not
finite cannot be seen. The consensus of Eq. 13 takes no such test: visibility says where Eq. 10 adds a neighbour and
where Eq. 14 fills in.

Operators take the photometric test on the fly, and leave out a pixel whose flow is NaN. So consistency enters as NaN in
the flow, and alpha = 0, with which any two colours agree, leaves the photometric test out.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from vda.flow.consistency import consistent
from vda.ops import warp_occlusion
from vda.options import Occlusion


class Photometric(TypedDict):
    """Arguments of the photometric test of `warp_occlusion`, `aggregate` and `aggregate_labels`."""

    alpha: float
    threshold: float
    squared: bool


def photometric(settings: Occlusion) -> Photometric:
    """The photometric test of the settings; one that everything passes where they want consistency alone."""
    alpha = 0.0 if settings.test == "consistency" else settings.alpha
    return {"alpha": alpha, "threshold": settings.threshold, "squared": settings.squared}


def needs_back(settings: Occlusion) -> bool:
    """Whether the test wants the flow back, from the neighbour to the frame."""
    return settings.test != "photometric"


def visible_flow(flow: Tensor, back: Tensor | None, settings: Occlusion) -> Tensor:
    """The flow, NaN where the consistency test, if the settings want it, finds the neighbour occluded.

    flow: [..., 2, H, W] from frame to neighbour, back: the same from neighbour to frame, pixels. ValueError where the
    test wants `back` and there is none.
    """
    if not needs_back(settings):
        return flow
    if back is None:
        raise ValueError(f"back: the occlusion test {settings.test} wants the flow back, got none")
    seen = consistent(flow.flatten(0, -4), back.flatten(0, -4)).view(*flow.shape[:-3], 1, *flow.shape[-2:])
    return torch.where(seen, flow, torch.nan)


def visible(frame: Tensor, neighbour: Tensor, flow: Tensor, back: Tensor | None, settings: Occlusion) -> Tensor:
    """Where the neighbour shows what the frame shows: [B, H, W] bool.

    frame, neighbour: [B, 3, H, W] RGB in [0, 1]; flow, back: [B, 2, H, W] pixels; errors as `visible_flow`.
    """
    return warp_occlusion(frame, neighbour, visible_flow(flow, back, settings), **photometric(settings))[1]
