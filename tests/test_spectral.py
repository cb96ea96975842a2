"""Spectral transfer against NumPy's transform of the whole, centred spectrum, and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vda.spectral import transfer_spectrum


def centred(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """The definition: amplitude and phase of everything, a square around the middle exchanged, float64."""
    s, t = (np.fft.fftshift(np.fft.fft2(x.double().numpy()), axes=(-2, -1)) for x in (source, target))
    H, W = source.shape[-2:]
    b = math.floor(min(H, W) * beta)
    rows, columns = (slice(n // 2 - b, n // 2 + b + 1) for n in (H, W))
    amplitude = np.abs(s)
    amplitude[..., rows, columns] = np.abs(t)[..., rows, columns]
    out = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(s)), axes=(-2, -1)))
    assert np.abs(out.imag).max() < 1e-12  # the window is symmetric
    return torch.from_numpy(out.real)


def images(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Source and target with blobs of all sizes; the target is darker, and blue."""
    g = torch.Generator().manual_seed(seed)
    source, target = torch.rand(2, *shape, generator=g)
    for n in (2, 5):
        coarse = torch.rand(2, *shape[:-2], n, n, generator=g)
        blobs = torch.nn.functional.interpolate(coarse.flatten(0, -4), shape[-2:]).view(2, *shape)
        source, target = source + blobs[0], target + blobs[1]
    return source / 3, target / 3 * torch.tensor([0.3, 0.5, 0.9])[:, None, None]


@pytest.mark.parametrize("beta", [0, 0.01, 0.05, 0.09, 0.3, 0.499])
@pytest.mark.parametrize("shape", [(1, 3, 64, 128), (2, 3, 37, 53), (2, 2, 3, 46, 31), (3, 33, 20), (1, 3, 1, 7)])
def test_equals_the_definition(shape: tuple[int, ...], beta: float) -> None:
    source, target = images(*shape)
    found = transfer_spectrum(source, target, beta)
    assert (found.shape, found.dtype) == (source.shape, torch.float32)
    torch.testing.assert_close(found.double(), centred(source, target, beta), rtol=0, atol=2e-6)
    exact = transfer_spectrum(source.double(), target.double(), beta)
    torch.testing.assert_close(exact, centred(source, target, beta), rtol=0, atol=1e-13)


def window(image: Tensor, b: int) -> Tensor:
    """Which frequencies of [..., H, W] lie within b of zero, rows and columns alike."""
    near = [torch.fft.fftfreq(n, 1 / n).abs() < b + 0.5 for n in image.shape[-2:]]
    return near[0][:, None] & near[1]


# golden example 13: half-widths 5, 25 and 46, phases kept
@pytest.mark.parametrize(("beta", "b"), [(0.01, 5), (0.05, 25), (0.09, 46)])
def test_published_windows(beta: float, b: int) -> None:
    """512 x 1024: amplitudes are the target's in 2b + 1 rows and columns and the source's elsewhere, phases kept."""
    source, target = images(3, 512, 1024)
    out, s, t = (
        torch.fft.fft2(x) for x in (transfer_spectrum(source, target, beta).double(), source.double(), target.double())
    )
    inside = window(source, b)
    assert inside.sum() == (2 * b + 1) ** 2
    torch.testing.assert_close(out.abs(), torch.where(inside, t.abs(), s.abs()), rtol=0, atol=0.05)  # of 2e5
    turned = (out * s.conj()).angle().abs()
    clear = (out.abs() > 1) & (s.abs() > 1)  # elsewhere the phase is float32's rounding
    assert clear[:, inside].float().mean() > 0.99
    assert turned[clear].max() < 0.05
    assert turned[clear & inside].median() < 1e-4


# golden example 13: beta 0
def test_a_window_of_one_exchanges_the_means() -> None:
    source, target = images(2, 3, 41, 64)
    found = transfer_spectrum(source, target, 0)
    wanted = source + (target - source).mean((-2, -1), keepdim=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, transfer_spectrum(source, target, 0.9 / 41))


# golden example 13: a source that is its target
def test_a_style_of_its_own_changes_nothing() -> None:
    source, _ = images(2, 3, 75, 120)
    for beta in (0, 0.05, 0.4):
        torch.testing.assert_close(transfer_spectrum(source, source, beta), source, rtol=0, atol=1e-6)


def test_waves_by_hand() -> None:
    """Two waves swap their amplitudes and keep their places; the fast wave of the target is outside the window."""
    x = torch.arange(16.0) * (2 * math.pi / 16)
    wave = torch.cos(x + 1).expand(3, 16, 16)
    down = torch.cos(2 * x + 0.5)[:, None].expand(3, 16, 16)
    source = 0.5 + 0.2 * wave + 0.1 * down + 0.05 * torch.cos(5 * x)
    target = 0.3 + 0.1 * torch.sin(x) + 0.3 * torch.sin(2 * x)[:, None] + 0.1 * torch.cos(5 * x).expand(3, 16, 16)
    wanted = 0.3 + 0.1 * wave + 0.3 * down + 0.05 * torch.cos(5 * x)
    torch.testing.assert_close(transfer_spectrum(source, target, 2 / 16), wanted, rtol=0, atol=1e-6)
    one = 0.3 + 0.1 * wave + 0.1 * down + 0.05 * torch.cos(5 * x)  # b = 1: the waves of frequency 2 stay
    torch.testing.assert_close(transfer_spectrum(source, target, 1.5 / 16), one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 128), (45, 77)])
@pytest.mark.parametrize("grey", [0.0, 0.3])
def test_phase_of_nothing_is_zero(grey: float, size: tuple[int, int]) -> None:
    """A source of one colour has no phase but rounding's, which must not decide where the target's style goes."""
    source, target = torch.full((3, *size), grey), images(3, *size)[1]
    amplitude = torch.fft.fft2(target.double()).abs() * window(source, 9)
    torch.testing.assert_close(
        transfer_spectrum(source, target, 9.5 / size[0]).double(), torch.fft.ifft2(amplitude).real, rtol=0, atol=2e-6
    )


def test_result_is_not_clipped_and_inputs_stay() -> None:
    source, target = images(3, 32, 48)
    before = source.clone(), target.clone()
    assert transfer_spectrum(source, 20 * target, 0.1).max() > 1
    assert transfer_spectrum(source, 0.1 * target, 0.1).min() < 0
    assert torch.equal(source, before[0])
    assert torch.equal(target, before[1])


def test_frames_are_independent_and_layouts_do_not_matter() -> None:
    source, target = images(2, 3, 3, 30, 40)
    found = transfer_spectrum(source, target, 0.1)
    torch.testing.assert_close(found[1, 2], transfer_spectrum(source[1, 2], target[1, 2], 0.1))
    flat = source.flatten(0, 1), target.flatten(0, 1)
    last = (x.contiguous(memory_format=torch.channels_last) for x in flat)
    torch.testing.assert_close(transfer_spectrum(*last, 0.1), found.flatten(0, 1))


def test_half_precision_is_widened_and_no_gradient_passes() -> None:
    source, target = images(3, 30, 40)
    found = transfer_spectrum(source.half().requires_grad_(), target.half(), 0.1)
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(found, transfer_spectrum(source, target, 0.1), rtol=0, atol=2e-3)


def test_what_is_not_a_number_shows() -> None:
    source, target = images(3, 30, 40)
    target[1, 3, 4] = math.nan
    found = transfer_spectrum(source, target, 0.1)
    assert found[1].isnan().all()
    assert not found[[0, 2]].isnan().any()


def test_arguments_are_checked() -> None:
    x = torch.rand(2, 3, 16, 16)
    for bad in (x[:, :2], x[0, 0], x[..., :0]):
        with pytest.raises(ValueError, match=r"source: wanted \[..., 3, H, W\], got"):
            transfer_spectrum(bad, bad, 0.1)
    with pytest.raises(ValueError, match=r"target: wanted the source's shape \[2, 3, 16, 16\], got \[2, 3, 16, 15\]"):
        transfer_spectrum(x, x[..., 1:], 0.1)
    with pytest.raises(TypeError, match=r"target: wanted float RGB in \[0, 1\], got torch.uint8"):
        transfer_spectrum(x, x.byte(), 0.1)
    for beta in (-0.01, 0.5, math.nan):
        with pytest.raises(ValueError, match=r"beta: wanted 0 <= beta < 0.5, got"):
            transfer_spectrum(x, x, beta)
