"""class_thresholds (Eq. 11) over a clip: ours, all at once and streamed, against sorting every class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vda.ops import ClassThresholds, class_thresholds, class_thresholds_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
K, FRAMES, H, W = 15, 8, 512, 1024


def _streamed(confidence: Tensor, label: Tensor, theta: Tensor) -> Tensor:
    stream = ClassThresholds(K, device=confidence.device)
    for frame, classes in zip(confidence, label, strict=True):
        stream.update(frame, classes)
    return stream.finish(theta)


ROWS: dict[str, Callable[..., Tensor]] = {
    "ours": class_thresholds,
    "ours, streamed": _streamed,
    "reference": class_thresholds_reference,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("row", ROWS)
def test_thresholds(benchmark: Any, row: str, dtype: torch.dtype) -> None:
    """Confidences as a trained network gives them: most close to 1, labels in patches."""
    confidence = torch.rand(FRAMES, H, W, device=DEVICE).pow(0.1).to(dtype)
    label = torch.randint(0, K, (FRAMES, H // 32, W // 32), dtype=torch.uint8, device=DEVICE)
    label = label.repeat_interleave(32, 1).repeat_interleave(32, 2)
    theta = torch.full((K,), 0.9, device=DEVICE)

    def finished() -> None:
        ROWS[row](confidence, label, theta)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"class_thresholds, K = {K}, {FRAMES} frames of {H}x{W}, {str(dtype)[6:]}, {DEVICE}"
    benchmark.extra_info.update(mbyte=FRAMES * H * W * (1 + confidence.element_size()) / 1e6)
    benchmark.pedantic(finished, rounds=3, warmup_rounds=1)
