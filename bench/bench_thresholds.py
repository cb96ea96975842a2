"""class_thresholds (Eq. 11) over the 8 frames of a clip, all at once and frame by frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench import compositions, inputs, work
from bench.harness import Bench, call, compiled, naive
from vda.ops import ClassThresholds, class_thresholds

K, FRAMES = 15, 8
# Half of a class is selected. With the paper's numbers most classes' threshold would be a confidence of 1, which any
# selection finds.
NUMBERS: dict[str, Any] = {"alpha": 0.5, "beta": 0.9, "gamma": 0.0}


def streamed(confidence: Tensor, label: Tensor, theta: Tensor) -> Tensor:
    """Frame by frame, as Algorithm 1 meets them; confidences are counted as float16."""
    stream = ClassThresholds(len(theta), **NUMBERS, device=confidence.device)
    for frame, classes in zip(confidence, label, strict=True):
        stream.update(frame, classes)
    return stream.finish(theta)


ROWS = {
    "ours": call(class_thresholds, **NUMBERS),
    "ours, streamed": call(streamed),
    "naive": naive(call(class_thresholds, **NUMBERS)),
    "torch": call(compositions.class_thresholds, **NUMBERS),
    "torch.kthvalue": call(compositions.class_thresholds, select="kthvalue", **NUMBERS),
    "torch.compile": compiled(compositions.class_thresholds, **NUMBERS),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=lambda dtype: str(dtype)[6:])
def test_class_thresholds(bench: Bench, dtype: torch.dtype, row: str) -> None:
    H, W = bench.frame
    element = 2 if dtype == torch.float16 else 4
    pixels = FRAMES * H * W
    bench.case("class_thresholds", f"K={K} {FRAMES}×{H}×{W}", work.class_thresholds(pixels, element), str(dtype)[6:])
    confidence, label = inputs.predictions(K, H, W, count=FRAMES)
    # 1e-4: the streamed thresholds of float32 are a tenth of a rounding to float16 away.
    bench.time(ROWS, confidence.to(dtype), label, torch.full((K,), 0.9), atol=1e-4)
