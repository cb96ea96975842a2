"""DeepLab-v2: a dilated ResNet under four summed ASPP branches (Chen et al., arXiv 1606.00915)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from vda.errors import UsageError
from vda.models.resnet import NORMALISATIONS, Normalise, ResNet, Variant, load_body, resnet18, resnet50

VariantChoice = Literal["auto", "torchvision", "caffe"]
BatchNorm = Literal["train", "affine_frozen", "eval"]


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


class DeepLab(nn.Module):
    """RGB images [N, 3, H, W] in [0, 1] -> logits [N, K, about H/8, about W/8]; see `vda.models.upsample`.

    Normalisation and stride placement are buffers of the network, so a checkpoint needs nothing beside its
    tensors.

    batch_norm, the policy of the backbone's batch norm:
        train          scale and shift learn, batch statistics are used and the running ones follow;
        affine_frozen  scale and shift are fixed, batch statistics are used and the running ones follow;
        eval           nothing moves, running statistics are used (needs pretrained weights to make sense).
    """

    def __init__(self, body: ResNet, num_classes: int, batch_norm: BatchNorm = "eval") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batch_norm = batch_norm
        self.config: dict[str, Any] = {}
        self.normalise = Normalise(NORMALISATIONS[body.variant])
        self.body = body
        self.head = ASPP(body.channels, num_classes)
        for norm in self._norms():
            norm.requires_grad_(batch_norm == "train")
        self.train()

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.body.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train, but batch norm stays in evaluation mode under the policy "eval"."""
        super().train(mode)
        if self.batch_norm == "eval":
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images: wanted [N, 3, H, W] float RGB in [0, 1], got {list(images.shape)} {images.dtype}"
            )
        return self.head(self.body(self.normalise(images)))

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: the backbone's trainable parameters at `lr`, the head's at 10 lr."""
        return [
            {"name": "body", "params": [p for p in self.body.parameters() if p.requires_grad], "lr": lr},
            {"name": "head", "params": list(self.head.parameters()), "lr": 10 * lr},
        ]


def deeplab(
    backbone: Callable[[int, Variant], ResNet],
    num_classes: int,
    *,
    width: int = 64,
    batch_norm: BatchNorm = "eval",
    weights: Path | None = None,
    variant: VariantChoice = "auto",
) -> DeepLab:
    """DeepLab-v2 on `backbone`; arguments and errors as `vda.models.build_network`."""
    if num_classes < 1:
        raise UsageError(f"num_classes: wanted at least 1, found {num_classes}")
    if width < 1:
        raise UsageError(f"width: wanted at least 1, found {width}")
    if batch_norm not in get_args(BatchNorm):
        raise UsageError(f"batch_norm: wanted one of {', '.join(get_args(BatchNorm))}, found {batch_norm!r}")
    body = backbone(width, "torchvision")
    known: Variant | None = None
    if variant != "auto":
        if variant not in body.block.variants:
            wanted = ", ".join(("auto", *body.block.variants))
            raise UsageError(f"variant: wanted one of {wanted} for this network, found {variant!r}")
        known = variant
        body.place(known)
    network = DeepLab(body, num_classes, batch_norm)
    if weights is not None:
        network.normalise = Normalise(load_body(body, weights, known))
    return network


def deeplab_resnet18(num_classes: int, **options: Any) -> DeepLab:
    """DeepLab-v2 on ResNet-18."""
    return deeplab(resnet18, num_classes, **options)


def deeplab_resnet50(num_classes: int, **options: Any) -> DeepLab:
    """DeepLab-v2 on ResNet-50, the network of the paper."""
    return deeplab(resnet50, num_classes, **options)


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, K, h, w] -> [N, K, H, W], bilinear with aligned corners, at least float32."""
    wide = logits if logits.element_size() >= 4 else logits.float()
    return F.interpolate(wide, size=size, mode="bilinear", align_corners=True)
