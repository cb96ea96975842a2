"""What every method is to the training loop, and the few parts that methods share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from vda.data.tubes import Batch
from vda.models import upsample

Losses = dict[str, Tensor]


class Method(nn.Module):
    """A segmentation network and the losses that train it.

    `losses` yields groups of named scalars; the loop sums a group and back-propagates it before it asks for the next,
    so that the activations behind one group are freed before the next is computed. After the last group every
    optimiser steps once. `discriminators` have an optimiser of their own; no loss may reach both it and the network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.discriminators = nn.ModuleDict()

    def losses(self, source: Batch, target: Batch) -> Iterator[Losses]:
        raise NotImplementedError


def tube_logits(network: nn.Module, frames: Tensor) -> Tensor:
    """Each frame of [B, T, 3, H, W] through the image network: logits [B, T, K, H, W] at the size of the frames."""
    B, T, _, H, W = frames.shape
    return upsample(network(frames.flatten(0, 1)), (H, W)).unflatten(0, (B, T))


@contextmanager
def untracked(network: nn.Module) -> Iterator[None]:
    """Inside, batch norm leaves its running statistics alone.

    A method that sees the target forwards the source under it: the network will be used on the target, and running
    statistics that mix two domains fit neither. Without effect where the policy freezes the statistics anyway.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def tube_labels(batch: Batch) -> Tensor:
    """The labels of a batch that must have them."""
    if batch.labels is None:
        raise ValueError("labels: wanted a labelled batch, got one without labels")
    return batch.labels
