"""PSPNet: a dilated ResNet under a pyramid of pooled contexts (Zhao et al., arXiv 1612.01105).

One departure: the published head has batch norm, synchronised over 16 images. Training here has a batch of one or two
tubes, under policies that do without batch statistics because neighbouring frames are nearly one image and source and
target would mix. A fresh batch norm could neither use them (one value per channel in the 1x1 bin of a single image)
nor go without (its running statistics describe nothing yet). Group norm (Wu and He, arXiv 1803.08494) needs neither:
it depends on no other image, is the same in training and evaluation, and learns under every policy of the backbone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vda.models.network import BatchNorm, SegmentationNetwork
from vda.models.resnet import ResNet

_GROUP = 16  # channels that are normalised together


def _unit(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    """Convolution, group norm, ReLU. A group holds several channels: alone, a pooled value is its own mean."""
    groups = c_out // math.gcd(c_out, _GROUP)
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(groups, c_out), nn.ReLU(inplace=True))


class PyramidPooling(nn.Module):
    """[N, C, h, w] -> [N, K, h, w], every pixel together with the averages of its part of the image.

    The map is averaged in 1, 4, 9 and 36 parts, each reduced to C/4 channels by a 1x1 convolution, upsampled, and
    concatenated with the map: 2C channels. A 3x3 convolution to C/4, dropout of 0.1 and a 1x1 convolution follow.
    C: an even multiple of 4.
    """

    def __init__(self, channels: int, num_classes: int, bins: tuple[int, ...] = (1, 2, 3, 6)) -> None:
        super().__init__()
        quarter = channels // 4
        self.bins = bins
        self.contexts = nn.ModuleList(_unit(channels, quarter, 1) for _ in bins)
        self.merge = _unit(channels + len(bins) * quarter, quarter, 3)
        self.dropout = nn.Dropout(0.1)
        self.classify = nn.Conv2d(quarter, num_classes, 1)
        assert self.classify.bias is not None
        nn.init.normal_(self.classify.weight, 0.0, 0.01)
        nn.init.zeros_(self.classify.bias)

    def forward(self, features: Tensor) -> Tensor:
        levels = [features]
        for size, context in zip(self.bins, self.contexts, strict=True):
            pooled = context(F.adaptive_avg_pool2d(features, size))
            levels.append(F.interpolate(pooled, features.shape[-2:], mode="bilinear", align_corners=True))
        return self.classify(self.dropout(self.merge(torch.cat(levels, 1))))


class PSPNet(SegmentationNetwork):
    """PSPNet; on ResNet-50 that of the comparison in the paper's appendix. Interface: `SegmentationNetwork`."""

    def __init__(self, body: ResNet, num_classes: int, batch_norm: BatchNorm = "eval") -> None:
        super().__init__(body, PyramidPooling(body.channels, num_classes), num_classes, batch_norm)
