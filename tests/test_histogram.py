"""Soft histograms against the dense definition, the normal density, and in how much memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vda.histogram import histogram_loss, soft_histogram


def dense(images: Tensor, bins: int, sigma: float) -> Tensor:
    """All pixels by all bins."""
    centres = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    weights = torch.exp(-((images.double().flatten(2)[..., None] - centres) ** 2) / (2 * sigma**2))
    return weights.sum(2) / weights.sum((2, 3))[..., None]


@pytest.mark.parametrize(("bins", "sigma"), [(64, 1 / 64), (5, 0.3), (1, 0.1), (16, 0.05)])
@pytest.mark.parametrize("shape", [(2, 3, 17, 23), (1, 3, 1, 1)])
def test_equals_the_definition(shape: tuple[int, ...], bins: int, sigma: float) -> None:
    images = torch.rand(shape)
    found = soft_histogram(images, bins, sigma)
    assert (found.shape, found.dtype) == ((shape[0], 3, bins), torch.float32)
    torch.testing.assert_close(found.double(), dense(images, bins, sigma), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(shape[:2]))


def test_one_colour_gives_the_normal_density() -> None:
    """sigma is the distance of two bins, and sums of exp(-k^2 / 2) and integrals agree to eight digits."""
    images = torch.tensor([31.5, 0.5, 40.0]).view(1, 3, 1, 1).div(64).expand(2, 3, 5, 7)
    red, green, blue = soft_histogram(images)[1]
    density = [0.398942, 0.241971, 0.053991, 0.004432]
    assert red[31:35].tolist() == pytest.approx(density, abs=1e-6)
    assert red[28:32].tolist() == pytest.approx(density[::-1], abs=1e-6)
    cut = 0.398942 + 0.241971 + 0.053991 + 0.004432 + 0.000134  # black: half of the bell is missing
    assert green[:4].tolist() == pytest.approx([d / cut for d in density], abs=2e-6)
    assert blue[39].item() == pytest.approx(0.352065, abs=1e-6)  # half a bin away
    assert blue[39] == blue[40]


def test_two_colours_share_the_mass() -> None:
    images = torch.full((1, 3, 4, 4), 10.5 / 64)
    images[..., :1] = 50.5 / 64
    found = soft_histogram(images)[0, 0]
    assert (found[10].item(), found[50].item()) == pytest.approx((0.75 * 0.398942, 0.25 * 0.398942), abs=1e-6)


def test_loss_by_hand() -> None:
    """One colour each, far apart: the squares of two densities over 64 bins; sum of exp(-k^2) = 1.772637."""
    a, b = torch.full((1, 3, 6, 8), 20.5 / 64), torch.full((1, 3, 3, 5), 40.5 / 64)
    assert histogram_loss(a, b).item() == pytest.approx(2 * 1.772637 / (2 * math.pi) / 64, rel=1e-5)
    assert histogram_loss(a, a.flip(-1)).item() == 0
    mixed = torch.cat([a[..., :1, :], a[..., :1, :] * 0 + 40.5 / 64], -2)  # half as far
    assert histogram_loss(a, mixed).item() == pytest.approx(histogram_loss(a, b).item() / 4, rel=1e-5)


def test_places_do_not_count() -> None:
    a = torch.rand(2, 3, 9, 11)
    moved = a.flatten(2)[..., torch.randperm(99)].view(2, 3, 11, 9)
    assert histogram_loss(a, moved).item() < 1e-12


def test_gradient() -> None:
    images, other = torch.rand(2, 1, 3, 3, 4, dtype=torch.float64)
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_histogram(x, 8, 0.1), images)
    assert torch.autograd.gradcheck(lambda x: histogram_loss(x, other, bins=16), images)
    histogram_loss(images, other).backward()
    assert images.grad.any()


def test_descending_the_loss_moves_the_colours() -> None:
    image, wanted = torch.full((1, 3, 6, 6), 0.4), torch.full((1, 3, 6, 6), 0.5)
    image.requires_grad_()
    for _ in range(30):
        (gradient,) = torch.autograd.grad(histogram_loss(image, wanted, sigma=0.1), image)
        image = (image - 0.005 * gradient.sign()).detach().requires_grad_()
    torch.testing.assert_close(image, wanted, rtol=0, atol=0.006)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        tensors = out if isinstance(out, tuple | list) else [out]
        self.found = max([self.found, *(x.numel() for x in tensors if isinstance(x, Tensor))])
        return out


def test_memory_is_that_of_a_few_images() -> None:
    images = torch.rand(1, 3, 64, 96, requires_grad=True)
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        return kept.setdefault(x.data_ptr(), x)

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = soft_histogram(images).square().sum()
        loss.backward()
    assert images.grad.any()
    assert largest.found == images.numel()
    assert sum(x.numel() for x in kept.values()) < 1.1 * images.numel()  # for the way back: the images themselves


def test_half_precision_is_widened() -> None:
    images = torch.rand(1, 3, 16, 16)
    found = soft_histogram(images.half())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, soft_histogram(images.half().float()))


def test_arguments_are_checked() -> None:
    x = torch.rand(2, 3, 4, 4)
    for bad in (x[0], x[:, :2], x[..., :0], x[:0]):
        with pytest.raises(ValueError, match=r"images: wanted \[N, 3, H, W\], got"):
            soft_histogram(bad)
    with pytest.raises(TypeError, match=r"images: wanted float RGB in \[0, 1\], got torch.uint8"):
        soft_histogram(x.byte())
    with pytest.raises(ValueError, match="bins: wanted at least 1, got 0"):
        soft_histogram(x, bins=0)
    with pytest.raises(ValueError, match="sigma: wanted more than 0, got 0"):
        soft_histogram(x, sigma=0)
    with pytest.raises(ValueError, match=r"b: wanted as many images as a, \[2, 3, 4, 4\], got \[1, 3, 4, 4\]"):
        histogram_loss(x, x[:1])
