"""Random calls of segmentation_sums and its gradient, as those of fuzz_cases.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fuzz_cases import TYPES, Case, Draw, Results
from torch import Tensor

from vda import ops


def segmentation_frames(draw: Draw) -> tuple[Tensor, Tensor, dict[str, Any], float]:
    """Logits, labels, options, and what a float may be off for each pixel."""
    B, H, W = draw.size()
    K, size = draw.one_of(3, 1, 2, 15, 19, 24, 40), draw.one_of(3.0, 0.0, 100.0)
    h, w = draw.one_of(3, 1, 2, 9), draw.one_of(5, 1, 2, 16, 17, 33, 70)
    logits = draw.layout((size * torch.randn(B, K, h, w)).to(draw.one_of(*TYPES, torch.float64)))
    labels = torch.randint(K, (B, H, W)).to(draw.one_of(torch.uint8, torch.int64))
    labels[torch.rand(labels.shape) < draw.one_of(0.3, 0.0, 1.0)] = 255
    return logits, draw.layout(labels), {"align_corners": draw.one_of(True, False)}, 2e-6 * (1 + size)


def fuzz_segmentation_sums(draw: Draw) -> Case:
    logits, labels, options, off = segmentation_frames(draw)
    wanted = ops.segmentation_sums_reference(logits.double(), labels, **options)
    atol = off * max(1, labels[0].numel() if len(labels) else 1)

    def check(got: Results) -> None:
        for mine, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(
                mine.double(), other.double(), rtol=0, atol=atol if other.is_floating_point() else 0
            )

    return Case(lambda: ops.segmentation_sums(logits, labels, **options), check)


def fuzz_segmentation_sums_gradients(draw: Draw) -> Case:
    logits, labels, options, off = segmentation_frames(draw)
    exact = logits.double().requires_grad_()
    wanted = ops.segmentation_sums_reference(exact, labels, **options)
    grads = [torch.randn(x.shape).double() for x in wanted[:5]]
    (slope,) = torch.autograd.grad(wanted[:5], exact, grads)
    pixels = labels.shape[1] * labels.shape[2] / (logits.shape[2] * logits.shape[3])  # that one logit is part of
    atol = 4 * off * max(1.0, 4 * pixels) + (
        0.01 * float(slope.abs().max()) if logits.element_size() == 2 and slope.numel() else 0
    )

    def run() -> Results:
        x = logits.detach().requires_grad_()
        got = ops.segmentation_sums(x, labels, **options)[:5]
        return torch.autograd.grad(got, x, [g.to(y.dtype) for g, y in zip(grads, got, strict=True)])

    return Case(run, lambda got: torch.testing.assert_close(got[0].double(), slope, rtol=0, atol=atol))


FUZZ_SEGMENTATION: dict[str, Callable[[Draw], Case]] = {
    "segmentation_sums": fuzz_segmentation_sums,
    "segmentation_sums_gradients": fuzz_segmentation_sums_gradients,
}
