"""correlation at FlowNetC's shape for a 384x768 frame, on a GPU for 1024x2048: forward and backward, ours against the
plain-torch reference; on a GPU also 16 bits, TF32, and the readable kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vda.ops import _lib, correlation, correlation_reference

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
ROWS = {"ours": correlation, "reference": correlation_reference} | ({"naive": correlation} if GPU else {})
KINDS = ["float32", "tf32", "float16", "float16 planes"] if GPU else ["float32"]
B, C, DISPLACEMENTS = 1, 256, 441
H, W = (128, 256) if GPU else (48, 96)
GFLOP = 2 * B * C * H * W * DISPLACEMENTS / 1e9


@contextlib.contextmanager
def _setting(row: str, kind: str) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if kind == "tf32" else "ieee"
    try:
        with _lib.naive() if row == "naive" else contextlib.nullcontext():
            yield
    finally:
        matmul.fp32_precision = before


def _maps(kind: str) -> list[Tensor]:
    layout = torch.channels_last if kind in ("float16", "tf32") else torch.contiguous_format
    dtype = torch.float16 if kind.startswith("float16") else torch.float32
    return [torch.randn(B, C, H, W, device=DEVICE, dtype=dtype).to(memory_format=layout) for _ in range(2)]


def _run(benchmark: Any, function: Callable[[], object], group: str, kind: str, gflop: float, values: int) -> None:
    def finished() -> None:
        function()
        if GPU:
            torch.cuda.synchronize()

    benchmark.group = f"{group}, {B}x{C}x{H}x{W}, {DISPLACEMENTS} displacements, {kind}, {DEVICE}"
    benchmark.extra_info.update(gflop=gflop, mbyte=values * (2 if kind.startswith("float16") else 4) / 1e6)
    benchmark.pedantic(finished, rounds=20 if GPU else 3, warmup_rounds=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS)
def test_forward(benchmark: Any, row: str, kind: str) -> None:
    f1, f2 = _maps(kind)
    with _setting(row, kind):
        values = B * H * W * (2 * C + DISPLACEMENTS)
        _run(benchmark, lambda: ROWS[row](f1, f2), "correlation forward", kind, GFLOP, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS)
def test_backward(benchmark: Any, row: str, kind: str) -> None:
    f1, f2 = (f.requires_grad_() for f in _maps(kind))
    with _setting(row, kind):
        out = ROWS[row](f1, f2)
        grad = torch.randn_like(out)
        _run(
            benchmark,
            lambda: torch.autograd.grad(out, (f1, f2), grad, retain_graph=True),
            "correlation backward",
            kind,
            2 * GFLOP,
            B * H * W * (4 * C + DISPLACEMENTS),
        )
