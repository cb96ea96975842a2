"""Training of a flow network on exact flow: the multi-scale end-point error of FlowNet (Dosovitskiy et al., ICCV 2015).

Weights and units are those of FlowNet2's published PyTorch training: level l of 2 .. 6 (a quarter of the resolution to
a 64th) counts 0.32 / 2^(l - 2), in twentieths of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from vda.data.tubes import Batch
from vda.flow.flownet2 import STRIDE, UNIT, Refinement, normalised
from vda.methods.base import Losses, Method

FINEST = 0.32


class FlowTraining(Method):
    """L = sum over levels of 0.32 / 2^(l - 2) times the mean end-point error; both directions of every pair count.

    The network is one of the family's parts that estimate flow at all levels (C, S, SD). Flow that is not known is NaN
    in the batch and takes no part.
    """

    network: Refinement

    def losses(self, source: Batch, target: Batch | None = None) -> Iterator[Losses]:
        if source.flows is None or source.frames.shape[1] != 2:
            raise ValueError("source: wanted pairs of frames with their flows")
        first, second = normalised(source.frames[:, 0], source.frames[:, 1])
        truth = torch.cat([source.flows[:, 0, 0], source.flows[:, 0, 1]])
        pyramid = self.network.both_pyramids(first, second)
        yield {"flow": multi_scale_error(pyramid, truth)}


def multi_scale_error(pyramid: list[Tensor], truth: Tensor) -> Tensor:
    """pyramid: flows [B, 2, h, w] at levels 2, 3, .., in units of the networks; truth [B, 2, H, W] pixels, NaN unknown.

    The truth of a level is the mean of what is known in a cell, where that is at least half of it.
    """
    H, W = truth.shape[-2:]
    truth = F.pad(truth, (0, -W % STRIDE, 0, -H % STRIDE), value=torch.nan)
    known = truth.isfinite().all(1, keepdim=True)
    truth = torch.where(known, truth / UNIT, 0.0)
    total = truth.new_zeros(())
    for level, estimate in enumerate(pyramid):
        cell = truth.shape[-1] // estimate.shape[-1]
        share = F.avg_pool2d(known.float(), cell)
        wanted = F.avg_pool2d(truth, cell) / share.clamp(min=1e-6)
        error = torch.linalg.vector_norm(estimate.float() - wanted, dim=1, keepdim=True)
        counts = share >= 0.5
        total = total + FINEST / 2**level * (error * counts).sum() / counts.sum().clamp(min=1)
    return total
