"""correlation at FlowNetC's shape for a 384x768 frame: forward and backward, ours against the plain-torch reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vda.ops import correlation, correlation_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = {"ours": correlation, "reference": correlation_reference}
B, C, H, W, DISPLACEMENTS = 1, 256, 48, 96, 441
GFLOP = 2 * B * C * H * W * DISPLACEMENTS / 1e9


def _run(benchmark: Any, function: Callable[[], object], group: str, gflop: float, mbyte: float) -> None:
    def finished() -> None:
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{group}, {B}x{C}x{H}x{W}, {DISPLACEMENTS} displacements, float32, {DEVICE}"
    benchmark.extra_info.update(gflop=gflop, mbyte=mbyte)
    benchmark.pedantic(finished, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("row", ROWS)
def test_forward(benchmark: Any, row: str) -> None:
    f1, f2 = (torch.randn(B, C, H, W, device=DEVICE) for _ in range(2))
    mbyte = 4 * B * H * W * (2 * C + DISPLACEMENTS) / 1e6
    _run(benchmark, lambda: ROWS[row](f1, f2), "correlation forward", GFLOP, mbyte)


@pytest.mark.parametrize("row", ROWS)
def test_backward(benchmark: Any, row: str) -> None:
    f1, f2 = (torch.randn(B, C, H, W, device=DEVICE, requires_grad=True) for _ in range(2))
    out = ROWS[row](f1, f2)
    grad = torch.randn_like(out)
    mbyte = 4 * B * H * W * (4 * C + DISPLACEMENTS) / 1e6
    _run(
        benchmark,
        lambda: torch.autograd.grad(out, (f1, f2), grad, retain_graph=True),
        "correlation backward",
        2 * GFLOP,
        mbyte,
    )
