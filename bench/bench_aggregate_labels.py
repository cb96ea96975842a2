"""aggregate_labels: logits at 1/8 of a frame and its two neighbours to label and confidence of every pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench import compositions, inputs, work
from bench.harness import Bench, Call, call, compiled, naive
from vda.ops import aggregate_labels


def cached(logits: Tensor, neighbour_logits: Tensor, flows: Tensor, frame: Tensor, neighbour_frames: Tensor) -> Call:
    """The composition of someone who keeps the neighbours' probabilities; making them is not part of the time."""
    size = frame.shape[-2:]
    near = torch.stack([compositions.probabilities(x, *size) for x in neighbour_logits.unbind(1)], 1)
    run = call(compositions.aggregate_labels_cached, alpha=inputs.ALPHA)
    return run(logits, near, flows, frame, neighbour_frames)


ROWS = {
    "ours": call(aggregate_labels, alpha=inputs.ALPHA, squared=True),
    "naive": naive(call(aggregate_labels, alpha=inputs.ALPHA, squared=True)),
    "torch": call(compositions.aggregate_labels, alpha=inputs.ALPHA),
    "torch, cached": cached,
    "torch.compile": compiled(compositions.aggregate_labels, alpha=inputs.ALPHA),
}
J = 2
SHAPES = [(15, 512, 1024), pytest.param((19, 1024, 2048), marks=pytest.mark.large)]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_aggregate_labels(bench: Bench, shape: tuple[int, int, int], row: str) -> None:
    K, H, W = shape[0], *bench.size(*shape[1:])
    logits = inputs.logits(K, H, W, count=J + 1)
    h, w = logits.shape[-2:]
    bench.case("aggregate_labels", f"K={K} J={J} {H}×{W}", work.aggregate_labels(K, J, h, w, H, W))
    flows, frame, near = inputs.scene(H, W, J)
    # Where two classes are about equal, either may be the label.
    bench.time(ROWS, logits[:1], logits[None, 1:], flows, frame, near, atol=1e-3, share=1e-3)
