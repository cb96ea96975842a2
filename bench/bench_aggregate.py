"""aggregate (Eq. 10): class probabilities of a frame and its two neighbours."""

from __future__ import annotations

import pytest
import torch

from bench import compositions, inputs, work
from bench.harness import Bench, call, compiled, naive
from vda.ops import aggregate

ROWS = {
    "ours": call(aggregate, alpha=inputs.ALPHA, squared=True),
    "naive": naive(call(aggregate, alpha=inputs.ALPHA, squared=True)),
    "torch": call(compositions.aggregate, alpha=inputs.ALPHA),
    "torch.compile": compiled(compositions.aggregate, alpha=inputs.ALPHA),
}
K, J = 15, 2


@pytest.mark.parametrize("row", ROWS)
def test_aggregate(bench: Bench, row: str) -> None:
    H, W = bench.frame
    bench.case("aggregate", f"K={K} J={J} {H}×{W}", work.aggregate(K, J, H, W))
    flows, frame, near = inputs.scene(H, W, J)
    probs = torch.stack([compositions.probabilities(x[None], H, W) for x in inputs.logits(K, H, W, count=J + 1)], 1)
    bench.time(ROWS, probs[:, 0], probs[:, 1:], flows, frame, near, atol=5e-4, share=1e-4)
