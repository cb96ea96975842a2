"""Bytes and FLOPs that an operator cannot avoid: inputs read once, outputs written once, no product with zeros outside.

What a kernel moves or computes beyond that is its own affair and makes its rate worse, not better. A multiplication and
an addition count as two; an exponential, a comparison and a selection as one. float32 unless stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vda.flow.flownet2 import Estimator

DISPLACEMENTS = 441
FEATURES = 256  # FlowNetC: channels of the maps that are correlated, at an eighth of the resolution
REACH = range(-20, 21, 2)  # FlowNetC: 21 displacements along each axis


@dataclass(frozen=True)
class Work:
    """What one call has to do."""

    flop: float
    nbytes: float
    gemm: str = ""  # of ceilings.GEMMS, where the arithmetic is that of a matrix product, which then is a ceiling too


NO_WORK = Work(0, 0)  # not counted


def _inside(B: int, H: int, W: int) -> int:
    """Pairs (p, p + d) of which both lie in the frame: the zeros around it cost nothing, so they do not count."""
    down = sum(max(0, H - abs(d)) for d in REACH)
    across = sum(max(0, W - abs(d)) for d in REACH)
    return B * down * across


def _matmul(flop: float, values: float, kind: str) -> Work:
    """Of float32, TF32, float16 or bfloat16 values."""
    half = kind.startswith(("float16", "bfloat16"))
    return Work(flop, values * (2 if half else 4), "hgemm" if half else "tf32 gemm" if kind == "TF32" else "sgemm")


def correlation(B: int, C: int, H: int, W: int, kind: str = "float32") -> Work:
    """Two feature maps in, 441 values per pixel out; C multiply-adds per pair of pixels."""
    return _matmul(2 * C * _inside(B, H, W), B * H * W * (2 * C + DISPLACEMENTS), kind)


def correlation_backward(B: int, C: int, H: int, W: int, kind: str = "float32") -> Work:
    """Two feature maps and 441 gradients per pixel in, two gradients of feature maps out; both are such a product."""
    return _matmul(4 * C * _inside(B, H, W), B * H * W * (4 * C + DISPLACEMENTS), kind)


def warp(C: int, H: int, W: int) -> Work:
    """Image and flow in, image out; 4 multiplications and 3 additions per value."""
    return Work(H * W * 7 * C, H * W * (8 + 8 * C))


def warp_backward(C: int, H: int, W: int) -> Work:
    """Gradient, image and flow in, gradients of image and flow out; 4 multiply-adds per value for each."""
    return Work(H * W * 16 * C, H * W * (12 * C + 16))


def warp_occlusion(C: int, H: int, W: int) -> Work:
    """Two images and flow in, an image and a byte out; the warp, and 3 operations per value for the distance."""
    return Work(H * W * 10 * C, H * W * (12 * C + 8 + 1))


def aggregate(K: int, J: int, H: int, W: int) -> Work:
    """Probabilities and colours of J + 1 frames and J flows in, probabilities out."""
    per_neighbour = 10 * 3 + 8 * K
    return Work(H * W * (J * per_neighbour + K), 4 * H * W * (K * (J + 2) + 2 * J + 3 * (J + 1)))


def aggregate_labels(K: int, J: int, h: int, w: int, H: int, W: int) -> Work:
    """Logits of h x w and colours of J + 1 frames and J flows in, a byte and 16 bits out.

    Per frame and value 6 operations of upsampling and 3 of softmax, as if every pixel were evaluated once; a position
    that flow points to lies between four, which costs more.
    """
    flop = H * W * (9 * K * (J + 1) + J * (10 * 3 + 8 * K) + 2 * K)
    return Work(flop, 4 * K * h * w * (J + 1) + H * W * (8 * J + 12 * (J + 1) + 3))


def segmentation_loss(K: int, N: int, h: int, w: int, H: int, W: int) -> Work:
    """Logits of h x w and labels in, the gradient of the logits out.

    Per pixel and class, 6 operations of upsampling and 3 of softmax, as if it were evaluated once, 4 of the sums, 6 of
    the gradient and 6 of the way back through the upsampling.
    """
    return Work(N * H * W * K * 25, N * (4 * 2 * K * h * w + H * W))


def class_thresholds(pixels: int, element: int) -> Work:
    """Confidence and label in, K numbers out."""
    return Work(0, pixels * (element + 1))


def apply_thresholds(pixels: int) -> Work:
    """Label and 16-bit confidence in, label out."""
    return Work(pixels, pixels * 4)


def consensus(pixels: int, predictions: bool) -> Work:
    """Two label maps and flow in, a label map out; with predictions also two 16-bit confidences."""
    return Work(4 * pixels, pixels * (15 if predictions else 11))


def flow_network(build: Callable[[], Estimator], H: int, W: int, kind: str = "float32", *, both: bool = False) -> Work:
    """A FlowNet2 of the published width with a correlation: a pair and all weights in, flow (both: one each way) out.

    The multiply-adds of its convolutions, as torch counts them on tensors without memory, and of one correlation: the
    other direction has the same products.
    """
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.inference_mode():
        network, image = build(), torch.empty(1, 3, H, W)
        (network.both if both else network)(image, image)
    volume = correlation(1, FEATURES, math.ceil(H / 64) * 8, math.ceil(W / 64) * 8)
    values = sum(x.numel() for x in network.parameters()) + H * W * (10 if both else 8)
    return _matmul(counter.get_total_flops() + volume.flop, values, kind)


def joint_histogram(pixels: int) -> Work:
    """Label and prediction in."""
    return Work(0, 2 * pixels)


def transfer_spectrum(C: int, H: int, W: int) -> Work:
    """Two images in, one out; how many operations depends on how the transforms are factored."""
    return Work(0, 12 * C * H * W)


def dis(H: int, W: int) -> Work:
    """Two RGB images of bytes in, flow out; how much is searched depends on the images."""
    return Work(0, H * W * (6 + 8))


def cached_flow(H: int, W: int) -> Work:
    """Flow of 16 bits in, float32 out; one product per value."""
    return Work(2 * H * W, H * W * (4 + 8))
