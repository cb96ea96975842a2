"""consensus (Eq. 13, 14) of two frames: finished labels, and predictions whose thresholds are taken on the fly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench import compositions, inputs, peers, work
from bench.harness import Bench, Rows, call, compiled, naive
from vda.ops import Predictions, apply_thresholds, consensus, warp

MODES = ("strict", "fill_in")
K = 15
SHARE = 1e-4  # a position halfway between two pixels may round to either


def of_predictions(
    label: Tensor,
    confidence: Tensor,
    reference: Tensor,
    reference_confidence: Tensor,
    theta: Tensor,
    flow: Tensor,
    mode: str,
) -> Tensor:
    """`consensus` with the arguments in the order of the composition."""
    predictions = Predictions(confidence, reference_confidence, theta)
    return consensus(label, reference, flow, mode=mode, predictions=predictions)


def rows(mode: str) -> Rows:
    """Of finished labels."""
    return {
        "ours": call(consensus, mode=mode),
        "naive": naive(call(consensus, mode=mode)),
        "torch": call(compositions.consensus, mode=mode),
        "torch.compile": compiled(compositions.consensus, mode=mode),
        "cv2.remap": peers.cv2_consensus(mode),
    }


def rows_of_predictions(mode: str) -> Rows:
    """With thresholds on the fly."""
    return {
        "ours": call(of_predictions, mode=mode),
        "naive": naive(call(of_predictions, mode=mode)),
        "torch": call(compositions.consensus_of_predictions, mode=mode),
        "torch.compile": compiled(compositions.consensus_of_predictions, mode=mode),
    }


def clip(H: int, W: int) -> tuple[Tensor, ...]:
    """Predictions of a frame and a reference, theta and flow: the same scene, moved, with other labels in places."""
    confidence, label = inputs.predictions(K, H, W, count=2)
    flow = inputs.flow(H, W)
    moved = warp(label[:1], -flow, mode="nearest", padding="border")
    moved_confidence = warp(confidence[None, :1], -flow, mode="nearest", padding="border")[0]
    other = confidence[1:] > 0.999
    reference = torch.where(other & (label[1:] % 4 == 0), label[1:], moved)
    theta = torch.linspace(0.5, 0.95, K)
    return label[:1], confidence[:1].half(), reference, moved_confidence.half(), theta, flow


@pytest.mark.parametrize("row", rows("strict"))
@pytest.mark.parametrize("mode", MODES)
def test_consensus(bench: Bench, mode: str, row: str) -> None:
    H, W = bench.frame
    bench.case(f"consensus {mode}", f"{H}×{W}", work.consensus(H * W, False), "uint8")
    label, confidence, reference, reference_confidence, theta, flow = clip(H, W)
    mine = apply_thresholds(label, confidence, theta)
    other = apply_thresholds(reference, reference_confidence, theta)
    bench.time(rows(mode), mine, other, flow, share=SHARE)


@pytest.mark.parametrize("row", rows_of_predictions("strict"))
@pytest.mark.parametrize("mode", MODES)
def test_consensus_of_predictions(bench: Bench, mode: str, row: str) -> None:
    H, W = bench.frame
    bench.case(f"consensus {mode}, thresholds", f"K={K} {H}×{W}", work.consensus(H * W, True), "uint8")
    bench.time(rows_of_predictions(mode), *clip(H, W), share=SHARE)
