"""What all segmentation networks share: a dilated ResNet with the normalisation of its weights, under some head."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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

    frames_at_once: where gradients are wanted, so many images go through the network at a time (0: all of them), and
    what a part needs for its backward pass is computed again when the gradient of its result arrives, part by part
    (Chen et al., arXiv 1604.06174). The loss still sees the logits of all frames and its gradients are those of one
    joint pass, while the activations of one part alone are in memory at a time; the price is one more forward pass.
    Under a `batch_norm` that uses batch statistics they are those of a part, and the running ones move once a part.
    """

    frames_at_once: int = 0

    def __init__(self, body: ResNet, head: nn.Module, num_classes: int, batch_norm: BatchNorm = "eval") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batch_norm = batch_norm
        self.config: dict[str, Any] = {}
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
        third, fourth = self._in_parts(self._levels, images)
        return third, fourth

    def forward(self, images: Tensor) -> Tensor:
        (logits,) = self._in_parts(lambda part: (self.head(self._levels(part)[1]),), images)
        return logits

    def _levels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.body.levels(self.normalise(images))

    def _in_parts(self, function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> tuple[Tensor, ...]:
        """function(images), or of `frames_at_once` images after another, keeping no more than its results."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images: wanted [N, 3, H, W] float RGB in [0, 1], got {list(images.shape)} {images.dtype}"
            )
        # One part alone would gain nothing: its activations are needed as soon as its backward pass begins.
        if not (0 < self.frames_at_once < len(images) and torch.is_grad_enabled()):
            return function(images)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), untracked(self)  # the second pass over a part is not to move statistics again

        parts = [
            checkpoint(function, part, use_reentrant=False, context_fn=contexts)
            for part in images.split(self.frames_at_once)
        ]
        return tuple(torch.cat(maps) for maps in zip(*parts, strict=True))

    def compile(self, *arguments: Any, **options: Any) -> None:
        """As nn.Module.compile, of body and head apart, since some methods take the maps between them."""
        self._levels = torch.compile(self._levels, *arguments, **options)  # type: ignore[method-assign]
        self.head.compile(*arguments, **options)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: the backbone's trainable parameters at `lr`, the head's at 10 lr."""
        return [
            {"name": "body", "params": [p for p in self.body.parameters() if p.requires_grad], "lr": lr},
            {"name": "head", "params": list(self.head.parameters()), "lr": 10 * lr},
        ]


class untracked(AbstractContextManager[None]):  # noqa: N801, a context manager is named as a function
    """Inside, batch norm leaves its running statistics alone. One object may be entered again once it was left.

    A method that sees the target forwards the source under it: the network will be used on the target, and running
    statistics that mix two domains fit neither. Without effect where the policy freezes the statistics anyway.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]

    def __enter__(self) -> None:
        self._kept = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        for norm, (_, count) in zip(self._norms, self._kept, strict=True):
            norm.momentum = 0.0
            norm.num_batches_tracked = None if count is None else count.clone()  # which counts in its stead

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, count) in zip(self._norms, self._kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, K, h, w] -> [N, K, H, W], bilinear with aligned corners, at least float32."""
    wide = logits if logits.element_size() >= 4 else logits.float()
    # Few channels at full size: a softmax over them is faster plane by plane, and would copy any other layout.
    return F.interpolate(wide.contiguous(), size=size, mode="bilinear", align_corners=True)
