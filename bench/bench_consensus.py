"""consensus: two uint8 label maps, fp32 flow; 11 bytes per pixel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bench_warp import smooth_flow
from conftest import Case
from torch import Tensor

from vda.ops import consensus, consensus_reference


@pytest.mark.parametrize("mode", ["strict", "fill_in"])
@pytest.mark.parametrize(
    "function", [pytest.param(consensus, id="ours"), pytest.param(consensus_reference, id="reference")]
)
def test_consensus(case: Case, function: Callable[..., Tensor], mode: str) -> None:
    label, reference = torch.randint(0, 19, (2, 1, case.H, case.W), dtype=torch.uint8, device=case.device)
    flow = smooth_flow(case)
    case.time(lambda: function(label, reference, flow, mode=mode), nbytes=case.H * case.W * 11)
