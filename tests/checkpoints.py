"""Checkpoints of small untrained networks, as train.py leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vda.checkpoint import save_checkpoint
from vda.config import Config, to_dict
from vda.models import build_network

CLASSES = ("road", "sky", "car", "quay")  # the last is in no class list


def small_checkpoint(
    folder: Path, name: str = "deeplab-resnet18", *, size: tuple[int, int] = (64, 96), **meta: Any
) -> Path:
    """A method's folder whose network has decided on something: logits of a few units, all classes in use."""
    torch.manual_seed(3)
    network = build_network(name, len(CLASSES), width=8, batch_norm="train")
    with torch.no_grad():
        for norm in (m for m in network.body.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        for weight in network.head.parameters():
            weight.mul_(20)
    config = to_dict(Config())
    config["data"] |= {"size": list(size)}
    about = {"method": "source_only", "iteration": 1, "classes": list(CLASSES), "network": network.config}
    about |= {"config": config, "config_digest": ""} | meta
    save_checkpoint(folder, step=1, modules={"network": network.eval()}, state={}, meta=about)
    return folder
