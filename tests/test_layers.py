"""Textured layers: their flow is the true one, by the images and by the flow back; decided by the generator alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vda.data._layers import Pair, layers, silhouette, texture
from vda.data.clip import FlowField
from vda.flow.consistency import consistent

SIZES = [(96, 128), (101, 67), (33, 47), (16, 17), (16, 200)]


def pair(seed: int, size: tuple[int, int] = (96, 128), **options: float) -> Pair:
    return layers(np.random.default_rng(seed), size, **options)


def sampled(image: NDArray[np.float32], flow: FlowField) -> NDArray[np.float32]:
    """image [H, W, C] at p + flow(p), by OpenCV."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    return cv2.remap(image, x + flow[0], y + flow[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def seen(flow: FlowField, back: FlowField) -> NDArray[np.bool_]:
    return consistent(torch.from_numpy(flow)[None], torch.from_numpy(back)[None])[0].numpy()


def difference(p: Pair, flow: FlowField) -> float:
    """Median of |second brought back - first| where the true flows agree, exposure fitted and clipped values left out.

    The images differ by a gain and an offset as well, and by noise of a deviation of up to 5.
    """
    where = seen(p.flow, p.back)
    found = sampled(p.second.astype(np.float32), flow)[where].ravel()
    wanted = p.first[where].astype(np.float32).ravel()
    inner = (found > 5) & (found < 250) & (wanted > 5) & (wanted < 250)
    gain, offset = np.polyfit(found[inner], wanted[inner], 1)
    return float(np.median(np.abs(gain * found + offset - wanted)[inner]))


@pytest.mark.parametrize("size", SIZES)
def test_the_flow_brings_the_second_image_onto_the_first(size: tuple[int, int]) -> None:
    """Nearly no error, and more of it half a pixel to any side: the flow is neither scaled nor shifted nor turned."""
    shifts = [np.float32([0, 0]), *np.float32([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])]
    errors, still = np.zeros(len(shifts)), 0.0
    for seed in range(8):
        p = pair(seed, size)
        assert seen(p.flow, p.back).mean() > 0.3
        errors += [difference(p, p.flow + shift[:, None, None]) for shift in shifts]
        still += difference(p, np.zeros_like(p.flow))
    assert errors[0] / 8 < 5.5
    assert errors[0] < 0.9 * errors[1:].min()
    assert errors[0] < 0.4 * still


@pytest.mark.parametrize("size", SIZES)
def test_there_and_back(size: tuple[int, int]) -> None:
    """Flow is affine in each layer, which interpolation keeps: where the flows agree at all, they agree exactly."""
    for seed in range(5):
        p = pair(seed, size)
        for flow, back in ((p.flow, p.back), (p.back, p.flow)):
            returned = sampled(np.ascontiguousarray(back.transpose(1, 2, 0)), flow).transpose(2, 0, 1)
            length = np.hypot(*(flow + returned))[seen(flow, back)]
            assert np.median(length) < 0.01
            assert np.mean(length < 0.05) > 0.8  # the rest lies on the border of a layer


def test_decided_by_the_generator_alone() -> None:
    def fields(p: Pair) -> list[NDArray[np.generic]]:
        return [p.first, p.second, p.flow, p.back]

    np.random.seed(1)
    cv2.setRNGSeed(1)
    once = fields(pair(3))
    np.random.seed(2)
    cv2.setRNGSeed(2)
    for a, b in zip(once, fields(pair(3)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(once, fields(pair(4)), strict=True):
        assert not np.array_equal(a, b)
    rng = np.random.default_rng(3)
    layers(rng, (32, 32))
    assert not np.array_equal(layers(rng, (96, 128)).first, once[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 9), (16, 16), (17, 33), (64, 48)])
def test_sizes_and_types(size: tuple[int, int]) -> None:
    for seed in range(5):
        p = pair(seed, size)
        for image in (p.first, p.second):
            assert (image.dtype, image.shape) == (np.uint8, (*size, 3))
        for flow in (p.flow, p.back):
            assert (flow.dtype, flow.shape) == (np.float32, (2, *size))
            assert np.isfinite(flow).all()


def test_no_motion_is_a_flow_of_zero() -> None:
    for seed in range(5):
        p = pair(seed, motion=0)
        assert not p.flow.any()
        assert not p.back.any()
        assert difference(p, p.flow) < 6  # exposure and noise


def test_motion_is_measured_in_pixels() -> None:
    lengths = {m: np.mean([np.hypot(*pair(s, (32, 48), motion=m).flow).mean() for s in range(40)]) for m in (6, 12, 24)}
    assert 5 < lengths[12] < 20  # 6 of the background, more of the shapes before it, and turns
    assert lengths[6] == pytest.approx(lengths[12] / 2, rel=0.2)
    assert lengths[24] == pytest.approx(lengths[12] * 2, rel=0.2)


@pytest.mark.parametrize("side", [8, 9, 40, 101])
def test_shapes_lie_inside_their_square(side: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = silhouette(rng, side)
        assert (shape.dtype, shape.shape) == (np.float32, (side, side))
        assert shape.min() == 0
        assert 0.5 < shape.max() <= 1
        assert not shape[[0, -1]].any()
        assert not shape[:, [0, -1]].any()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (70, 50)])
def test_textures(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    images = [texture(rng, size) for _ in range(10)]
    for image in images:
        assert (image.dtype, image.shape) == (np.float32, (*size, 3))
        assert image.min() >= 0
        assert image.max() <= 255
    assert min(np.ptp(image) for image in images) > (5 if size != (1, 1) else 0)
