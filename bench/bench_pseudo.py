"""Pseudo labels of a clip by every policy, from logits and flow that cost nothing, beside the network that makes them.

Time is that of all that is neither network nor flow: frames to tensors, aggregation, thresholds, PNG files and the
manifest. A policy with thresholds of the whole set sees each frame twice, and so does its network; the share is that of
a single forward pass all the same.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import networks
from bench.films import FRAMES, K, labelling
from bench.harness import Bench, Beside
from vda.policies import POLICIES


@pytest.mark.cpu_only
@pytest.mark.parametrize("row", ["ours"])
@pytest.mark.parametrize("aggregate", [False, True], ids=["plain", "aggregated"])
@pytest.mark.parametrize("policy", POLICIES)
def test_pseudo_labels(bench: Bench, policy: str, aggregate: bool, row: str, tmp_path: Path) -> None:
    H, W = size = bench.size(512, 1024)
    beside = Beside(networks.FORWARD, networks.forward(K, torch.rand(1, 3, H, W)), 1, FRAMES)
    bench.case(f"pseudo labels {policy}", f"K={K} J={2 * aggregate} {FRAMES}×{H}×{W}", beside=beside)
    one, two = (labelling(policy, aggregate, clips, size, tmp_path) for clips in (1, 2))
    bench.time({row: lambda: one})
    bench.grows(one, two)
