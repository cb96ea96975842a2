"""aggregate (Eq. 10) on one frame with two neighbours: ours against the plain-torch reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vda.ops import aggregate, aggregate_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = {"ours": aggregate, "reference": aggregate_reference}
J, K, H, W = 2, 15, 512, 1024


@pytest.mark.parametrize("row", ROWS)
def test_aggregate(benchmark: Any, row: str) -> None:
    frame = torch.rand(1, 3, H, W, device=DEVICE)
    clip = {
        "probs": torch.randn(1, K, H, W, device=DEVICE).softmax(1),
        "neighbour_probs": torch.randn(1, J, K, H, W, device=DEVICE).softmax(2),
        "flows": 3 * torch.randn(1, J, 2, H, W, device=DEVICE),
        "frame": frame,
        "neighbour_frames": frame[:, None] + 0.1 * torch.randn(1, J, 3, H, W, device=DEVICE),
    }

    def finished() -> None:
        ROWS[row](**clip, alpha=0.6)  # lets about half of the pixels pass
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"aggregate, K = {K}, {J} neighbours, {H}x{W}, float32, {DEVICE}"
    benchmark.extra_info.update(mbyte=4 * H * W * (K * (J + 2) + 2 * J + 3 * (J + 1)) / 1e6)
    benchmark.pedantic(finished, rounds=3, warmup_rounds=1)
