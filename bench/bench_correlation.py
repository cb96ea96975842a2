"""correlation at FlowNetC's shapes for frames of 384 x 768 and 1024 x 2048: 441 displacements, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench import compositions, harness, peers, work
from bench.ceilings import matmul
from bench.harness import Bench, Call, backward, call, compiled, naive
from vda.ops import correlation


def compiled_rows(wrap: harness.Prepare) -> harness.Prepare:
    """The composition with the 21 displacements of a row compiled (all 441 at once take torch.compile a minute)."""

    def prepare(*inputs: Tensor) -> Call:
        def whole(row):  # type: ignore[no-untyped-def]
            return wrap(lambda f1, f2: compositions.correlation(f1, f2, row=row))

        return compiled(compositions.correlation_row, wrap=whole)(*inputs)

    return prepare


ROWS = {
    "ours": call(correlation),
    "naive": naive(call(correlation)),
    "torch": call(compositions.correlation),
    "torch.compile": compiled_rows(call),
    "banded bmm": call(compositions.correlation_bmm),
    "spatial-correlation-sampler": call(peers.spatial_correlation_sampler),
    "mmcv": call(peers.mmcv_correlation),
}
BACKWARD = {
    "ours": backward(correlation),
    "naive": naive(backward(correlation)),
    "torch": backward(compositions.correlation),
    "torch.compile": compiled_rows(backward),
    "banded bmm": backward(compositions.correlation_bmm),
    "spatial-correlation-sampler": backward(peers.spatial_correlation_sampler),
    "mmcv": backward(peers.mmcv_correlation),
}
C = 256
SHAPES = [(48, 96), pytest.param((128, 256), marks=pytest.mark.large)]
# Element type and layout of the maps; torch's matrix products decide about TF32, and so does ours.
KINDS = {
    "float32": (torch.float32, torch.contiguous_format),
    "TF32": (torch.float32, torch.channels_last),
    "float16": (torch.float16, torch.channels_last),
    "float16 planes": (torch.float16, torch.contiguous_format),
}
ON_GPU = [pytest.param(kind, marks=[] if kind == "float32" else pytest.mark.gpu_only) for kind in KINDS]


def maps(kind: str, H: int, W: int) -> list[Tensor]:
    dtype, layout = KINDS[kind]
    return [torch.randn(1, C, H, W).to(dtype).to(memory_format=layout) for _ in range(2)]


def tolerance(kind: str) -> float:
    """Of values about 0.06 (forward) and 0.08 (backward); other rows of few bits round in between."""
    return 1e-5 if kind == "float32" else 2e-3


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("kind", ON_GPU)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_correlation(bench: Bench, shape: tuple[int, int], kind: str, row: str) -> None:
    H, W = bench.size(*shape)
    bench.case("correlation", f"{C}×{H}×{W}", work.correlation(1, C, H, W, kind), kind)
    with matmul(tf32=kind == "TF32"):
        bench.time(ROWS, *maps(kind, H, W), atol=tolerance(kind))


@pytest.mark.parametrize("row", BACKWARD)
@pytest.mark.parametrize("kind", ON_GPU)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_correlation_backward(bench: Bench, shape: tuple[int, int], kind: str, row: str) -> None:
    """Gradients of both feature maps, without the forward pass."""
    H, W = bench.size(*shape)
    bench.case("correlation backward", f"{C}×{H}×{W}", work.correlation_backward(1, C, H, W, kind), kind)
    grad = torch.randn(1, work.DISPLACEMENTS, H, W).to(KINDS[kind][0])
    with matmul(tf32=kind == "TF32"):
        bench.time(BACKWARD, *maps(kind, H, W), grad, atol=tolerance(kind))
