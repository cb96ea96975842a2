"""What people write today: every operator composed of torch's own functions, to be timed beside ours.

Not the `*_reference` functions of vda.ops, which follow the kernels to the last bit of their contracts: a composition
may use the shortcuts that users take (normalised grids, no care for NaN), as long as it gives the same result on sound
input, which tests/test_bench.py checks and every benchmark row checks again before it is timed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from vda.flow import flownet2

IGNORE = 255
RADIUS, STRIDE = 10, 2  # FlowNetC: 21 x 21 displacements, every other pixel
MARGIN = RADIUS * STRIDE


# ---- correlation ----


def correlation_row(f1: Tensor, f2: Tensor) -> Tensor:
    """f1 [B, C, H, W] times f2 [B, C, H, W + 40] at 21 displacements along x: [B, 21, H, W], summed over channels."""
    W = f1.shape[-1]
    return torch.stack([(f1 * f2[..., x : x + W]).sum(1) for x in range(0, 2 * MARGIN + 1, STRIDE)], 1)


def correlation(f1: Tensor, f2: Tensor, *, row: Callable[[Tensor, Tensor], Tensor] = correlation_row) -> Tensor:
    """[B, C, H, W] x2 -> [B, 441, H, W]: one multiplication and one sum over channels per displacement.

    row: `correlation_row`, or that compiled (all 441 displacements at once take torch.compile a minute).
    """
    H = f1.shape[-2]
    padded = F.pad(f2, (MARGIN,) * 4)
    return torch.cat([row(f1, padded[..., y : y + H, :]) for y in range(0, 2 * MARGIN + 1, STRIDE)], 1) / f1.shape[1]


def correlation_bmm(f1: Tensor, f2: Tensor) -> Tensor:
    """The same as banded matrix products, W even: per dy and column parity every pair of a row, 21 diagonals kept."""
    B, C, H, W = f1.shape
    half, wide = W // 2, W // 2 + 2 * RADIUS
    rows = f1.view(B, C, H, half, 2).permute(0, 2, 4, 3, 1).reshape(-1, half, C)  # [B H 2, W/2, C]
    padded = F.pad(f2, (MARGIN,) * 4).unflatten(-1, (wide, 2)).permute(0, 2, 4, 1, 3)  # [B, H + 40, 2, C, W/2 + 20]
    bands = []
    for y in range(0, 2 * MARGIN + 1, STRIDE):
        products = rows @ padded[:, y : y + H].reshape(len(rows), C, wide)  # [B H 2, W/2, W/2 + 20]
        diagonals = products.as_strided((len(rows), half, 2 * RADIUS + 1), (half * wide, wide + 1, 1))
        bands.append(diagonals.view(B, H, 2, half, -1))
    volume = torch.stack(bands, 1) / C  # [B, dy, y, parity, x/2, dx]
    return volume.permute(0, 1, 5, 2, 4, 3).reshape(B, -1, H, W)


@contextlib.contextmanager
def in_flownet(correlation: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Flow networks use this correlation meanwhile, in place of ours."""

    def composed(f1: Tensor, f2: Tensor, *, negative_slope: float, **_: int) -> Tensor:
        return F.leaky_relu(correlation(f1, f2), negative_slope)

    with mock.patch.object(flownet2, "correlation", composed):
        yield


# ---- warp ----


def grid(flow: Tensor) -> Tensor:
    """[B, 2, H, W] pixels -> [B, H, W, 2], the positions p + flow(p) as grid_sample wants them."""
    H, W = flow.shape[-2:]
    x = torch.arange(W, device=flow.device) + flow[:, 0]
    y = torch.arange(H, device=flow.device)[:, None] + flow[:, 1]
    return torch.stack([x * (2 / (W - 1)) - 1, y * (2 / (H - 1)) - 1], -1)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """image [B, C, H, W] at p + flow(p), zeros outside."""
    return F.grid_sample(image, grid(flow), align_corners=True)


def warp_occlusion(frame: Tensor, neighbour: Tensor, flow: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The neighbour [B, C, H, W] brought onto the frame, and where exp(-alpha e) > 0.7, e the squared distance."""
    positions = grid(flow)
    warped = F.grid_sample(neighbour, positions, align_corners=True)
    similar = torch.exp(-alpha * (frame - warped).square().sum(1)) > 0.7
    return warped, similar & (positions.abs() <= 1).all(-1)


# ---- aggregation ----


def aggregate(
    probs: Tensor, neighbour_probs: Tensor, flows: Tensor, frame: Tensor, neighbour_frames: Tensor, alpha: float
) -> Tensor:
    """Eq. 10: [B, K, H, W], [B, J, K, H, W], [B, J, 2, H, W], [B, 3, H, W], [B, J, 3, H, W] -> [B, K, H, W]."""
    total, count = probs.clone(), torch.ones_like(probs[:, :1])
    for j in range(flows.shape[1]):
        _, visible = warp_occlusion(frame, neighbour_frames[:, j], flows[:, j], alpha)
        mask = visible[:, None].to(probs.dtype)
        total += mask * warp(neighbour_probs[:, j], flows[:, j])
        count += mask
    return total / count


def probabilities(logits: Tensor, H: int, W: int) -> Tensor:
    """[B, K, h, w] -> [B, K, H, W], upsampled logits, then softmax."""
    return F.interpolate(logits, (H, W), mode="bilinear", align_corners=True).softmax(1)


def segmentation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy and dice of a tube of all N frames, from logits [N, K, h, w] and labels [N, H, W]."""
    z = F.interpolate(logits, label.shape[1:], mode="bilinear", align_corners=True)
    hot = F.one_hot(label.where(label != 255, z.shape[1]).long(), z.shape[1] + 1)[..., :-1].movedim(-1, 1)
    p, q = z.softmax(1) * hot.sum(1, keepdim=True), hot.to(z.dtype)
    dice = 2 * (p * q).sum((0, 2, 3)) / (p.square().sum((0, 2, 3)) + q.sum((0, 2, 3)) + 1e-6)
    return F.cross_entropy(z, label.long(), ignore_index=255) + (1 - dice).sum()


def labels(
    probs: Tensor, neighbour_probs: Tensor, flows: Tensor, frame: Tensor, neighbour_frames: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """`aggregate`, then label [B, H, W] uint8 and confidence [B, H, W] float16."""
    confidence, label = aggregate(probs, neighbour_probs, flows, frame, neighbour_frames, alpha).max(1)
    return label.to(torch.uint8), confidence.half()


def aggregate_labels(
    logits: Tensor, neighbour_logits: Tensor, flows: Tensor, frame: Tensor, neighbour_frames: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """From logits [B, K, h, w] and [B, J, K, h, w] of all frames to label and confidence."""
    H, W = frame.shape[-2:]
    near = torch.stack([probabilities(x, H, W) for x in neighbour_logits.unbind(1)], 1)
    return labels(probabilities(logits, H, W), near, flows, frame, neighbour_frames, alpha)


def aggregate_labels_cached(
    logits: Tensor, neighbour_probs: Tensor, flows: Tensor, frame: Tensor, neighbour_frames: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """The same where a clip keeps the probabilities [B, J, K, H, W] of its frames: one softmax per frame, not three."""
    probs = probabilities(logits, *frame.shape[-2:])
    return labels(probs, neighbour_probs, flows, frame, neighbour_frames, alpha)


# ---- thresholds ----


def class_thresholds(
    confidence: Tensor,
    label: Tensor,
    theta: Tensor,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    select: str = "sort",
) -> Tensor:
    """Eq. 11: every class picked out and sorted, or with select "kthvalue" given to torch.kthvalue."""
    result = theta.clone()
    for k, old in enumerate(theta.tolist()):
        values = confidence[label == k].float()
        n = len(values)
        if n == 0:
            continue
        index = min(int(alpha * old**gamma * n), n - 1)
        psi = values.sort(descending=True).values[index] if select == "sort" else values.kthvalue(n - index).values
        result[k] = beta * old + (1 - beta) * psi
    return result.clamp(max=0.999)


def apply_thresholds(label: Tensor, confidence: Tensor, theta: Tensor) -> Tensor:
    """label [B, H, W] where confidence > theta[label], else 255; every label is a class."""
    return torch.where(confidence > theta[label.int()], label, IGNORE)


# ---- consensus ----


def consensus(label: Tensor, reference: Tensor, flow: Tensor, mode: str) -> Tensor:
    """Eq. 13 ("strict") or 14 ("fill_in"): uint8 [B, H, W] x2, the reference sampled at the nearest pixel."""
    lifted = reference[:, None].float() - IGNORE  # so that grid_sample's zeros outside mean 255
    moved = F.grid_sample(lifted, grid(flow), mode="nearest", align_corners=True)[:, 0] + IGNORE
    moved = moved.to(torch.uint8)
    if mode == "strict":
        return torch.where(label == moved, label, IGNORE)
    return torch.where(label == IGNORE, moved, label)


def consensus_of_predictions(
    label: Tensor,
    confidence: Tensor,
    reference: Tensor,
    reference_confidence: Tensor,
    theta: Tensor,
    flow: Tensor,
    mode: str,
) -> Tensor:
    """`consensus` of two predictions whose thresholds have yet to be applied."""
    label = apply_thresholds(label, confidence, theta)
    return consensus(label, apply_thresholds(reference, reference_confidence, theta), flow, mode)


# ---- spectral transfer ----


def transfer_spectrum(source: Tensor, target: Tensor, b: int) -> Tensor:
    """FDA: [B, C, H, W] x2; all of both spectra, the amplitudes of frequencies -b..b exchanged, real part."""
    own, wanted = torch.fft.fft2(source), torch.fft.fft2(target)
    amplitude, phase, style = own.abs(), own.angle(), wanted.abs()
    H, W = source.shape[-2:]
    for rows in (slice(0, b + 1), slice(H - b, H)):
        for columns in (slice(0, b + 1), slice(W - b, W)):
            amplitude[..., rows, columns] = style[..., rows, columns]
    return torch.fft.ifft2(torch.polar(amplitude, phase)).real


def transfer_spectrum_half(source: Tensor, target: Tensor, b: int) -> Tensor:
    """The same on the half of a real image's spectrum that determines the other."""
    own, wanted = torch.fft.rfft2(source), torch.fft.rfft2(target)
    amplitude, phase, style = own.abs(), own.angle(), wanted.abs()
    for rows in (slice(0, b + 1), slice(own.shape[-2] - b, None)):
        amplitude[..., rows, : b + 1] = style[..., rows, : b + 1]
    return torch.fft.irfft2(torch.polar(amplitude, phase), s=source.shape[-2:])
