"""apply_thresholds: labels and float16 confidences of one frame."""

from __future__ import annotations

import pytest
import torch

from bench import compositions, inputs, work
from bench.harness import Bench, call, compiled, naive
from vda.ops import apply_thresholds

ROWS = {
    "ours": call(apply_thresholds),
    "naive": naive(call(apply_thresholds)),
    "torch": call(compositions.apply_thresholds),
    "torch.compile": compiled(compositions.apply_thresholds),
}
K = 15


@pytest.mark.parametrize("row", ROWS)
def test_apply_thresholds(bench: Bench, row: str) -> None:
    H, W = bench.frame
    bench.case("apply_thresholds", f"K={K} {H}×{W}", work.apply_thresholds(H * W), "float16")
    confidence, label = inputs.predictions(K, H, W, count=1)
    bench.time(ROWS, label, confidence.half(), torch.linspace(0.5, 0.95, K))
