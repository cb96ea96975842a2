"""Spectral transfer: the style of one image, held to be its low frequencies' amplitudes, under another's content.

Source: Yang and Soatto, "FDA: Fourier domain adaptation for semantic segmentation" (CVPR 2020). Per channel, with F
the 2-D Fourier transform, M the window of frequencies whose rows and columns both lie in -b..b:

    out = F^-1( ((1 - M) |F source| + M |F target|) e^(i arg F source) ),    b = floor(beta min(H, W))
        = source + F^-1( M (|F target| - |F source|) e^(i arg F source) )

By the second form only the window is ever needed, and of a real image only its half with columns 0..b: one real
transform along the rows, of which b + 1 columns go on to the transform along the columns, and the same backwards.

Departures from the published code, which works on BGR in 0..255 (the transfer is linear in the scale): its training
version replaces the frequencies -b..b-1, whose spectrum is no longer that of a real image, and drops the imaginary
part; the window here is symmetric, as in its demonstration.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def transfer_spectrum(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """`source` with the low-frequency amplitudes of `target`, phases kept.

    source, target: [..., 3, H, W] float RGB in [0, 1], the same shape (nothing is resized). beta: half-width of the
    window as a share of the shorter side, 0 <= beta < 0.5 (published: 0.01, 0.05, 0.09); at 0 the mean of each channel
    alone is the target's. Returns [..., 3, H, W], not clipped, float32 at least; no gradient passes.

    A source amplitude of zero has phase 0; zero is what rounding cannot tell from it, the largest amplitude times the
    precision of the type. Raises ValueError for other shapes and for beta out of range, TypeError for integers.
    """
    _check(source, target, beta)
    source, target = (x if x.element_size() >= 4 else x.float() for x in (source, target))
    H, W = source.shape[-2:]
    b = int(min(H, W) * beta)
    own, wanted = _window(source, b), _window(target, b)
    amplitude = own.abs()
    zero = torch.finfo(amplitude.dtype).eps * amplitude.amax((-2, -1), keepdim=True)
    phase = torch.where(amplitude > zero, own / amplitude, torch.ones_like(own))
    change = phase * (wanted.abs() - amplitude)
    columns = change.new_zeros(*change.shape[:-2], H, b + 1)
    columns[..., : b + 1, :], columns[..., H - b :, :] = change.split([b + 1, b], dim=-2)
    return torch.fft.irfft(torch.fft.ifft(columns, dim=-2), n=W).add_(source)


def _window(images: Tensor, b: int) -> Tensor:
    """The spectrum of [..., H, W] at rows 0..b, -b..-1 and columns 0..b: [..., 2b + 1, b + 1]."""
    columns = torch.fft.fft(torch.fft.rfft(images)[..., : b + 1], dim=-2)
    return torch.cat([columns[..., : b + 1, :], columns[..., images.shape[-2] - b :, :]], dim=-2)


def _check(source: Tensor, target: Tensor, beta: float) -> None:
    for name, x in (("source", source), ("target", target)):
        if not x.is_floating_point():
            raise TypeError(f"{name}: wanted float RGB in [0, 1], got {x.dtype}")
        if x.ndim < 3 or x.shape[-3] != 3 or x.numel() == 0:
            raise ValueError(f"{name}: wanted [..., 3, H, W], got {list(x.shape)}")
    if source.shape != target.shape:
        raise ValueError(f"target: wanted the source's shape {list(source.shape)}, got {list(target.shape)}")
    if not 0 <= beta < 0.5:
        raise ValueError(f"beta: wanted 0 <= beta < 0.5, got {beta}")
