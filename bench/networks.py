"""Segmentation networks of random weights, to be measured beside: a forward pass, a step of a training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from vda.data.tubes import Batch
from vda.losses import cross_entropy
from vda.methods.base import frame_labels, frames, full_logits
from vda.models import build_network
from vda.options import Network

Call = Callable[[], object]

PUBLISHED = Network()
FORWARD = f"forward, {PUBLISHED.name}"


def training(settings: Network) -> str:
    """E.g. "training, deeplab-resnet18 of width 16"."""
    narrow = "" if settings.width == PUBLISHED.width else f" of width {settings.width}"
    return f"training, {settings.name}{narrow}"


@functools.lru_cache(maxsize=1)
def network(settings: Network, classes: int) -> nn.Module:
    """In the layout of a run's networks."""
    torch.manual_seed(0)
    built = build_network(settings.name, classes, width=settings.width, batch_norm=settings.batch_norm)
    return built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def forward(classes: int, image: Tensor) -> Call:
    """The published network's logits of images [N, 3, H, W], without gradients."""

    def call() -> Tensor:
        with torch.inference_mode():
            return network(PUBLISHED, classes).eval()(image)

    return call


def step(settings: Network, classes: int, batch: Batch) -> Call:
    """What takes the time of a supervised step: forward, cross entropy, backward."""
    batch = replace(batch.to(torch.device("cpu")), flows=None)

    def call() -> None:
        net = network(settings, classes).train()
        net.zero_grad()
        cross_entropy(full_logits(net, frames(batch)), frame_labels(batch)).backward()

    return call
