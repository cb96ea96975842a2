"""What all segmentation networks share: a dilated ResNet with the normalisation of its weights, under some head."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from vda.models.resnet import NORMALISATIONS, Normalise, ResNet

VariantChoice = Literal["auto", "torchvision", "caffe"]
BatchNorm = Literal["train", "affine_frozen", "eval"]


class SegmentationNetwork(nn.Module):
    """RGB images [N, 3, H, W] in [0, 1] -> logits [N, K, about H/8, about W/8]; see `vda.models.upsample`.

    A subclass is its head: a module from the last map of the body, [N, body.channels, h, w], to logits [N, K, h, w].
    Normalisation and stride placement are buffers of the network, so a checkpoint needs nothing beside its tensors.

    batch_norm, the policy of the backbone's batch norm:
        train          scale and shift learn, batch statistics are used and the running ones follow;
        affine_frozen  scale and shift are fixed, batch statistics are used and the running ones follow;
        eval           nothing moves, running statistics are used (needs pretrained weights to make sense).
    It says how pretrained norms are treated; a head is not pretrained, and all of it learns under every policy.
    """

    def __init__(self, body: ResNet, head: nn.Module, num_classes: int, batch_norm: BatchNorm = "eval") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batch_norm = batch_norm
        self.config: dict[str, Any] = {}
        self.frames_at_once = 0
        self.normalise = Normalise(NORMALISATIONS[body.variant])
        self.body = body
        self.head = head
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

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of layer3 [N, body.layer3_channels, h, w], for an auxiliary head, and of layer4 [N, body.channels,
        h, w], for `head`: `head(features(images)[1])` is `forward(images)`."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images: wanted [N, 3, H, W] float RGB in [0, 1], got {list(images.shape)} {images.dtype}"
            )
        return self.body.levels(self.normalise(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)[1])

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: the backbone's trainable parameters at `lr`, the head's at 10 lr."""
        return [
            {"name": "body", "params": [p for p in self.body.parameters() if p.requires_grad], "lr": lr},
            {"name": "head", "params": list(self.head.parameters()), "lr": 10 * lr},
        ]


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, K, h, w] -> [N, K, H, W], bilinear with aligned corners, at least float32."""
    wide = logits if logits.element_size() >= 4 else logits.float()
    return F.interpolate(wide, size=size, mode="bilinear", align_corners=True)
