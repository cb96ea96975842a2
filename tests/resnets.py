"""ResNets for tests: batch norm that matters, and a ResNet-50 written a second time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def with_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norm with statistics that matter, so that a forgotten or swapped one shows."""
    g = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=g))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=g))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=g))
                module.bias.copy_(0.3 * torch.randn(module.num_features, generator=g))
    return network


def plain_resnet50(s: dict[str, Tensor], x: Tensor, caffe: bool) -> Tensor:
    """The features of normalised images `x` from a state dict, written from the table of layers."""

    def conv(x: Tensor, key: str, stride: int = 1, dilation: int = 1) -> Tensor:
        w = s[key + ".weight"]
        return F.conv2d(x, w, None, stride, dilation * (w.shape[-1] // 2), dilation)

    def norm(x: Tensor, key: str) -> Tensor:
        mean, var = s[key + ".running_mean"], s[key + ".running_var"]
        scale = s[key + ".weight"] / (var + 1e-5).sqrt()
        return x * scale[:, None, None] + (s[key + ".bias"] - mean * scale)[:, None, None]

    x = norm(conv(x, "conv1", 2), "bn1").clamp(min=0)
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=caffe)
    # layer, block: stride of its 1x1, stride of its 3x3, dilation of its 3x3
    table = {(2, 0): (2, 1, 1) if caffe else (1, 2, 1), (3, 0): (1, 1, 2 if caffe else 1)}
    table[4, 0] = (1, 1, 4 if caffe else 2)
    for layer, depth in zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True):
        for block in range(depth):
            key = f"layer{layer}.{block}"
            one, three, dilation = table.get((layer, block), (1, 1, {3: 2, 4: 4}.get(layer, 1)))
            y = norm(conv(x, key + ".conv1", one), key + ".bn1").clamp(min=0)
            y = norm(conv(y, key + ".conv2", three, dilation), key + ".bn2").clamp(min=0)
            y = norm(conv(y, key + ".conv3"), key + ".bn3")
            if block == 0:
                x = norm(conv(x, key + ".downsample.0", one * three), key + ".downsample.1")
            x = (x + y).clamp(min=0)
    return x
