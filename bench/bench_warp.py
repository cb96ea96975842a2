"""warp of RGB and of 19 class probabilities, its gradients, and warp_occlusion; flow as in driving video."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench import compositions, inputs, peers, work
from bench.harness import Bench, backward, call, compiled, naive
from vda.ops import warp, warp_occlusion

ROWS = {
    "ours": call(warp),
    "naive": naive(call(warp)),
    "torch": call(compositions.warp),
    "torch.compile": compiled(compositions.warp),
    "kornia": peers.kornia_remap,
    "cv2.remap": peers.cv2_remap,
}
BACKWARD = {
    "ours": backward(warp),
    "naive": naive(backward(warp)),
    "torch": backward(compositions.warp),
    "torch.compile": compiled(compositions.warp, wrap=backward),
}
OCCLUSION = {
    "ours": call(warp_occlusion, alpha=inputs.ALPHA, squared=True),
    "naive": naive(call(warp_occlusion, alpha=inputs.ALPHA, squared=True)),
    "torch": call(compositions.warp_occlusion, alpha=inputs.ALPHA),
    "torch.compile": compiled(compositions.warp_occlusion, alpha=inputs.ALPHA),
}
# grid_sample's positions are normalised and back: off by 1e-4 px, which at an integer changes the pair of neighbours.
ATOL, SHARE = 5e-4, 1e-4


def image(channels: int, H: int, W: int) -> Tensor:
    """[1, channels, H, W]: a frame, or class probabilities."""
    if channels == 3:
        return inputs.scene(H, W, 1)[1]
    return compositions.probabilities(inputs.logits(channels, H, W), H, W)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("channels", [3, 19])
def test_warp(bench: Bench, channels: int, row: str) -> None:
    if row == "cv2.remap" and channels > 4:
        pytest.skip("cv2.remap takes at most 4 channels")
    H, W = bench.frame
    bench.case("warp", f"{channels}×{H}×{W}", work.warp(channels, H, W))
    bench.time(ROWS, image(channels, H, W), inputs.flow(H, W), atol=ATOL, share=SHARE)


@pytest.mark.parametrize("row", BACKWARD)
def test_warp_backward(bench: Bench, row: str) -> None:
    """Gradients of image and flow, without the forward pass."""
    H, W = bench.frame
    bench.case("warp backward", f"3×{H}×{W}", work.warp_backward(3, H, W))
    bench.time(BACKWARD, image(3, H, W), inputs.flow(H, W), torch.rand(1, 3, H, W), atol=ATOL, share=SHARE)


@pytest.mark.parametrize("row", OCCLUSION)
def test_warp_occlusion(bench: Bench, row: str) -> None:
    H, W = bench.frame
    bench.case("warp_occlusion", f"3×{H}×{W}", work.warp_occlusion(3, H, W))
    flows, frame, near = inputs.scene(H, W, 1)
    bench.time(OCCLUSION, frame, near[:, 0], flows[:, 0], atol=ATOL, share=SHARE)
