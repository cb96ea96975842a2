"""Pictures of flow and warp error: pixels worked out by hand, and the code of the Middlebury benchmark."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vda.pictures import colour_label, error_image, flow_image, overlay

PALETTE = np.array([[128, 64, 128], [70, 130, 180], [220, 20, 60]], np.uint8)


def middlebury(u: float, v: float) -> tuple[int, int, int]:
    """colorcode.cpp of the benchmark's flow-code, line by line, for a vector in units of the largest."""
    wheel: list[tuple[int, int, int]] = []
    wheel += [(255, 255 * i // 15, 0) for i in range(15)]
    wheel += [(255 - 255 * i // 6, 255, 0) for i in range(6)]
    wheel += [(0, 255, 255 * i // 4) for i in range(4)]
    wheel += [(0, 255 - 255 * i // 11, 255) for i in range(11)]
    wheel += [(255 * i // 13, 0, 255) for i in range(13)]
    wheel += [(255, 0, 255 - 255 * i // 6) for i in range(6)]
    assert len(wheel) == 55
    length = math.sqrt(u * u + v * v)
    place = (math.atan2(-v, -u) / math.pi + 1.0) / 2.0 * (len(wheel) - 1)
    k0 = int(place)
    k1 = (k0 + 1) % len(wheel)
    f = place - k0
    colour = []
    for b in range(3):
        col = (1 - f) * wheel[k0][b] / 255 + f * wheel[k1][b] / 255
        col = 1 - length * (1 - col) if length <= 1 else col * 0.75
        colour.append(int(255 * col))
    return colour[0], colour[1], colour[2]


def test_flow_wheel_is_middleburys() -> None:
    """All directions, lengths up to one and a half times the largest; the last digit may fall to the other side."""
    rng = np.random.default_rng(0)
    angle, length = rng.uniform(-np.pi, np.pi, 4000), rng.uniform(0, 1.5, 4000)
    flow = np.stack([length * np.cos(angle), length * np.sin(angle)]).astype(np.float32)
    wanted = [middlebury(float(u), float(v)) for u, v in flow.T]
    found = flow_image(flow[:, None] * 7, largest=7)[0].astype(int)
    assert np.abs(found - wanted).max() <= 1
    assert (found == wanted).mean() > 0.99
    # the hues themselves, where no interpolation blurs them; the last one a hair before the turn is full
    angle = 2 * np.pi / 54 * np.minimum(np.arange(55), 54 - 1e-4)
    flow = np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    found = flow_image(flow[:, None], largest=1.000001)[0].astype(int)
    assert np.abs(found - [middlebury(float(u), float(v)) for u, v in flow.T / 1.000001]).max() <= 1
    assert len(np.unique(found, axis=0)) == 55
    np.testing.assert_allclose(found[[0, 53, 54]], [(255, 0, 0), (255, 0, 85), (255, 0, 43)], atol=1)


def test_flow_gets_paler_towards_white_and_dark_beyond_the_largest() -> None:
    u = np.array([0, 1, 2, 3, 4, 4.1, 400], np.float32)
    colours = flow_image(np.stack([u, 0 * u])[:, None], largest=4)[0]
    assert colours.tolist() == [
        [255, 255, 255], [255, 191, 191], [255, 127, 127], [255, 63, 63], [255, 0, 0], [191, 0, 0], [191, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize("unknown", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channel", [0, 1])
def test_unknown_flow_is_black(unknown: float, channel: int) -> None:
    flow = np.full((2, 1, 2), 3, np.float32)
    flow[channel, 0, 1] = unknown
    known, black = flow_image(flow)[0]
    assert known.tolist() == list(middlebury(math.sqrt(0.5), math.sqrt(0.5)))  # the unknown one does not set the scale
    assert black.tolist() == [0, 0, 0]


def test_flow_wheel_by_hand() -> None:
    # One vector per pixel: right, down, left, up, still, half as long to the right, unknown, too long.
    u = np.array([[4, 0, -4, 0, 0, 2, np.nan, 8]], np.float32)
    v = np.array([[0, 4, 0, -4, 0, 0, 1, 0]], np.float32)
    colours = flow_image(np.stack([u, v]), largest=4)[0]
    wanted = [
        (255, 0, 0),  # right: red, at 0 of 54
        (255, 229, 0),  # down: 13.5, between 13 and 14 of the 15 hues from red to yellow, 221 and 238
        (0, 209, 255),  # left: 27, two hues of 11 from cyan (25) on the way to blue: 255 - 46
        (87, 0, 255),  # up: 40.5, between 4 and 5 of the 13 hues from blue (36) to magenta, 78 and 98: 88
        (255, 255, 255),
        (255, 127, 127),
        (0, 0, 0),
        (191, 0, 0),
    ]
    np.testing.assert_allclose(colours.astype(int), wanted, atol=1)


def test_flow_image_scales_to_its_longest_vector() -> None:
    flow = np.zeros((2, 3, 5), np.float32)
    flow[0, 1, 2] = 7
    image = flow_image(flow)
    assert image.shape == (3, 5, 3)
    assert image.dtype == np.uint8
    assert image[1, 2].tolist() == [255, 0, 0]
    assert (image[0] == 255).all()
    assert (flow_image(np.zeros((2, 3, 5), np.float32)) == 255).all()
    assert (flow_image(np.full((2, 3, 5), np.inf, np.float32)) == 0).all()
    # Negative zero, which a flipped flow is full of, must not turn the hue.
    np.testing.assert_array_equal(flow_image(np.array([[[5.0]], [[-0.0]]], np.float32))[0, 0], [255, 0, 0])


def test_warp_error_by_hand() -> None:
    """Mean error of the channels 0, 20, 40 and 90 of 40 grey levels; the same unseen; no neighbour, seen or not."""
    frame = np.full((2, 5, 3), 100, np.uint8)
    brought = np.full((2, 5, 3), 100, np.float32)
    brought[:, 1] += [30, -30, 0]
    brought[:, 2] -= 40
    brought[:, 3] += 90
    brought[:, 4, 1] = np.nan
    visible = np.array([[True] * 5, [False] * 5])
    found = error_image(frame, brought, visible, largest=40)
    # the published table of inferno at 0, 128 and 255: (0.001462, 0.000466, 0.013866), (0.735683, 0.215906, 0.330245)
    # and (0.988362, 0.998364, 0.644924)
    nothing, half, most, none = (0, 0, 4), (188, 55, 84), (252, 255, 164), (0, 255, 255)
    np.testing.assert_allclose(found[0].astype(int), [nothing, half, most, most, none], atol=1)
    tinted = [(0, 127, 129), (94, 155, 169), (126, 255, 209), (126, 255, 209), none]
    np.testing.assert_allclose(found[1].astype(int), tinted, atol=1)


def test_warp_error_grows_brighter_and_marks_apart() -> None:
    """Brightness orders the errors, and no colour of the scale is a colour of the mark."""
    frame, brought = np.zeros((1, 65, 3), np.uint8), np.zeros((1, 65, 3), np.float32)
    brought[0] = np.arange(65)[:, None]
    seen, unseen = (error_image(frame, brought, np.full((1, 65), v))[0].astype(int) for v in (True, False))
    for colours in (seen, unseen):
        assert (np.diff(colours @ [299, 587, 114]) > 0).all()
    assert np.abs(seen[:, None] - unseen[None]).max(-1).min() > 40


def test_pictures_of_unlike_sizes_are_refused() -> None:
    frame = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match=r"visible: wanted the size \(4, 5\) of frame, got \(5, 4\)"):
        error_image(frame, frame.astype(np.float32), np.zeros((5, 4), bool))
    with pytest.raises(ValueError, match="brought: wanted the size"):
        error_image(frame, np.zeros((4, 4, 3), np.float32), np.zeros((4, 5), bool))


def test_overlay_by_hand() -> None:
    frame = np.array([[[100, 100, 100], [10, 20, 30]]], np.uint8)
    label = np.array([[1, 255]], np.uint8)
    assert overlay(frame, label, PALETTE, 0.5).tolist() == [[[85, 115, 140], [10, 20, 30]]]
    assert overlay(frame, label, PALETTE, 1.0)[0, 0].tolist() == [70, 130, 180]
    assert overlay(frame, label, PALETTE, 0.0).tolist() == frame.tolist()
    assert colour_label(label, PALETTE).tolist() == [[[70, 130, 180], [0, 0, 0]]]
    with pytest.raises(ValueError, match="label: wanted the size"):
        overlay(frame, label[:, :1], PALETTE)
    with pytest.raises(ValueError, match=r"label: wanted 0 \.\. 2 or 255, got 3"):
        colour_label(np.array([[3]], np.uint8), PALETTE)
