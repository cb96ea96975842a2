"""FDA's spectral transfer at its three published widths, against torch.fft of the whole spectrum and of its half."""

from __future__ import annotations

import pytest
from torch import Tensor

from bench import compositions, inputs, work
from bench.harness import Bench, Prepare, call
from vda.spectral import transfer_spectrum


def rows(beta: float, b: int) -> dict[str, Prepare]:
    return {
        "ours": call(transfer_spectrum, beta=beta),
        "torch": call(compositions.transfer_spectrum, b=b),
        "torch.rfft2": call(compositions.transfer_spectrum_half, b=b),
    }


def pair(H: int, W: int) -> tuple[Tensor, Tensor]:
    """A frame, and a dark one of another scene."""
    source, target = (inputs.scene(H, W, 1, seed=inputs.SEED + i)[1] for i in range(2))
    return source, 0.3 * target


@pytest.mark.parametrize("row", rows(0, 0))
@pytest.mark.parametrize("beta", [0.01, 0.05, 0.09])
def test_transfer_spectrum(bench: Bench, beta: float, row: str) -> None:
    H, W = bench.frame
    bench.case("transfer_spectrum", f"β={beta:.2f} 3×{H}×{W}", work.transfer_spectrum(3, H, W))
    bench.time(rows(beta, int(min(H, W) * beta)), *pair(H, W))
