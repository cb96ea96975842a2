"""segmentation_sums: cross entropy and tube loss of two frames from logits at 1/8, with the gradient of the logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench import compositions, inputs, work
from bench.harness import Bench, Call, Prepare, compiled, naive
from vda import fused
from vda.ops import segmentation_sums

T = 2


def loss(logits: Tensor, label: Tensor) -> Tensor:
    sums = segmentation_sums(logits, label)
    return fused.cross_entropy(sums) + fused.tube_loss(sums, length=T)


def trained(function: Callable[[Tensor, Tensor], Tensor]) -> Prepare:
    """The loss and its gradient, forward and backward: a gradient that evaluates anew has no cheap forward pass."""

    def prepare(logits: Tensor, label: Tensor) -> Call:
        leaf = logits.detach().requires_grad_()

        def run() -> tuple[Tensor, Tensor]:
            value = function(leaf, label)
            return value.detach(), torch.autograd.grad(value, leaf)[0]

        return run

    return prepare


ROWS = {
    "ours": trained(loss),
    "naive": naive(trained(loss)),
    "torch": trained(compositions.segmentation_loss),
    "torch.compile": compiled(compositions.segmentation_loss, wrap=trained),
}
SHAPES = [(15, 512, 1024), pytest.param((19, 1024, 2048), marks=pytest.mark.large)]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_segmentation_sums(bench: Bench, shape: tuple[int, int, int], row: str) -> None:
    K, H, W = shape[0], *bench.size(*shape[1:])
    logits = inputs.logits(K, H, W, count=T)
    h, w = logits.shape[-2:]
    label = inputs.predictions(K, H, W, count=T, seed=1)[1].clone()
    label[:, ::7] = 255
    bench.case("segmentation_sums", f"K={K} T={T} {H}×{W}", work.segmentation_loss(K, T, h, w, H, W))
    bench.time(ROWS, logits, label, atol=1e-4)
