"""DeepLab-v2: a dilated ResNet under four summed ASPP branches (Chen et al., arXiv 1606.00915)."""

from __future__ import annotations

from torch import Tensor, nn

from vda.models.network import BatchNorm, SegmentationNetwork
from vda.models.resnet import ResNet


class ASPP(nn.Module):
    """3x3 convolutions with dilation 6, 12, 18, 24 and bias, summed: [N, C, h, w] -> [N, K, h, w]."""

    def __init__(self, channels: int, num_classes: int, dilations: tuple[int, ...] = (6, 12, 18, 24)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d)
            assert branch.bias is not None
            nn.init.normal_(branch.weight, 0.0, 0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, features: Tensor) -> Tensor:
        total = self.branches[0](features)
        for branch in self.branches[1:]:
            total = total + branch(features)
        return total


class DeepLab(SegmentationNetwork):
    """DeepLab-v2; on ResNet-50 the network of the paper. Interface and options: `SegmentationNetwork`."""

    def __init__(self, body: ResNet, num_classes: int, batch_norm: BatchNorm = "eval") -> None:
        super().__init__(body, ASPP(body.channels, num_classes), num_classes, batch_norm)
