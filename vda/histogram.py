"""Colour histograms with a gradient, and their distance (after VideoGAN, Chen et al., arXiv 2004.08058).

A pixel of value x counts in every bin b, by a Gaussian around the bin's centre mu_b = (b + 1/2) / bins:

    h_b = mean over pixels of exp(-(x - mu_b)^2 / (2 sigma^2)),    then divided by the sum over bins
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def soft_histogram(images: Tensor, bins: int = 64, sigma: float = 1 / 64) -> Tensor:
    """[N, 3, H, W] in [0, 1] -> [N, 3, bins], a histogram of each channel with sum 1; float32 at least.

    Differentiable, in the memory of a few images: bin by bin, and a bin is computed again for its gradient. Raises
    ValueError for other shapes and for bins or sigma of nothing, TypeError for integers.
    """
    if not images.is_floating_point():
        raise TypeError(f"images: wanted float RGB in [0, 1], got {images.dtype}")
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"images: wanted [N, 3, H, W], got {list(images.shape)}")
    if bins < 1:
        raise ValueError(f"bins: wanted at least 1, got {bins}")
    if not sigma > 0:
        raise ValueError(f"sigma: wanted more than 0, got {sigma}")
    values = (images if images.element_size() >= 4 else images.float()).flatten(2)
    counts = [
        checkpoint(_count, values, (b + 0.5) / bins, sigma, use_reentrant=False, preserve_rng_state=False)
        for b in range(bins)
    ]
    histogram = torch.stack(counts, -1)
    return histogram / histogram.sum(-1, keepdim=True)


def _count(values: Tensor, centre: float, sigma: float) -> Tensor:
    return torch.exp(-0.5 * ((values - centre) / sigma).square()).mean(-1)


def histogram_loss(a: Tensor, b: Tensor, *, bins: int = 64, sigma: float = 1 / 64) -> Tensor:
    """Mean squared difference of the soft histograms of images a and b, [N, 3, H, W] each, of any two sizes.

    At most 2 / bins, for two images of one colour each and a small sigma. Errors as `soft_histogram`, and ValueError
    for different N.
    """
    if a.shape[:2] != b.shape[:2]:
        raise ValueError(f"b: wanted as many images as a, {list(a.shape)}, got {list(b.shape)}")
    return (soft_histogram(a, bins, sigma) - soft_histogram(b, bins, sigma)).square().mean()
