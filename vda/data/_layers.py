"""Textured layers in motion: endless pairs of images with exact flow, made on the spot, no files.

A background and some shapes in front of it, each with a texture and an affine motion of its own, as in FlyingChairs
(Dosovitskiy et al., ICCV 2015), with drawn textures in place of photographs. Both images are resampled from the
canvases, so that neither is the sharper one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vda.data.clip import FlowField, Image

MOTION = 12.0  # pixels
Affine = NDArray[np.floating[Any]]  # [3, 3], points (x, y, 1)


@dataclass(frozen=True)
class Pair:
    """Two images [H, W, 3] uint8 RGB, and the flows [2, H, W] from the first to the second and back, pixels."""

    first: Image
    second: Image
    flow: FlowField
    back: FlowField


@dataclass
class _View:
    """One of the two pictures as it is painted, and where each of its points goes in the other one."""

    image: NDArray[np.float32]
    flow: FlowField

    def paint(self, image: NDArray[np.float32], shape: NDArray[np.float32], at: Affine, move: Affine) -> None:
        size = self.image.shape[:2]
        alpha = _drawn(shape, at, size, cv2.BORDER_CONSTANT)
        self.image += alpha[..., None] * (_drawn(image, at, size) - self.image)
        self.flow = np.where(alpha > 0.5, _displacement(move, size), self.flow)


def layers(rng: np.random.Generator, size: tuple[int, int], *, motion: float = MOTION) -> Pair:
    """One pair of `size` (height, width), decided by `rng` alone; about 0.1 s for 320 x 448.

    motion: mean length in pixels of the displacement of a shape against the background; the background moves half
    as far, and what turns and stretches does so in proportion. Without motion the two images differ in exposure and
    noise only.
    """
    H, W = size
    centre, strength = np.array([W / 2, H / 2]), motion / MOTION
    camera = _about(centre, rng, motion / 2, spread=0.05 * strength)
    margin = 1.4 * np.hypot(H, W) / 2  # of a square background that no motion leaves
    place = _about(centre, rng, 0.0, spread=0.02) @ _shift(centre - margin)
    background = texture(rng, (int(2 * margin), int(2 * margin)))
    views = [
        _View(_drawn(background, at, size), _displacement(move, size))
        for at, move in ((place, camera), (camera @ place, np.linalg.inv(camera)))
    ]
    for _ in range(int(rng.integers(2, 11))):
        side = int(rng.integers(max(8, min(size) // 12), max(9, min(size) // 2)))
        image, shape = texture(rng, (side, side)), silhouette(rng, side)
        spot = rng.uniform((0, 0), (W, H))
        place = _about(spot, rng, 0.0, spread=0.1) @ _shift(spot - side / 2)
        move = _about(spot, rng, motion, spread=0.08 * strength) @ camera
        views[0].paint(image, shape, place, move)
        views[1].paint(image, shape, move @ place, np.linalg.inv(move))
    noise = rng.uniform(0, 5)
    images = [
        rng.uniform(0.8, 1.2) * v.image + rng.uniform(-12, 12) + noise * rng.standard_normal(v.image.shape, np.float32)
        for v in views
    ]
    first, second = (np.clip(np.rint(image), 0, 255).astype(np.uint8) for image in images)
    return Pair(first, second, views[0].flow, views[1].flow)


def texture(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """[H, W, 3] in 0 .. 255: smooth noise of several scales in random colours, under flat and outlined shapes."""
    H, W = size
    image = np.tile(rng.uniform(30, 225, 3).astype(np.float32), (H, W, 1))
    for scale in (2, 5, 12, 40):
        grid = rng.standard_normal((H // scale + 2, W // scale + 2, 3), np.float32)
        grid = grid @ rng.normal(scale=rng.exponential(10), size=(3, 3)).astype(np.float32)
        image += cv2.resize(grid, (W, H), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(0, 4 + min(H * W // 1500, 40)))):
        corners = rng.uniform((0, 0), (W, H)) + rng.normal(scale=rng.uniform(3, 30), size=(int(rng.integers(3, 6)), 2))
        colour = rng.uniform(0, 255, 3).tolist()
        points = [np.rint(corners * 16).astype(np.int32)]
        if rng.random() < 0.5:
            cv2.fillPoly(image, points, colour, cv2.LINE_AA, shift=4)
        else:
            cv2.polylines(image, points, True, colour, int(rng.integers(1, 4)), cv2.LINE_AA, shift=4)
    return np.clip(image, 0, 255).astype(np.float32)


def silhouette(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """[side, side] in 0 .. 1: a blob of random harmonics, or a polygon; nothing on the border."""
    angle = np.linspace(0, 2 * np.pi, 90 if rng.random() < 0.5 else int(rng.integers(3, 9)), endpoint=False)
    radius = 1 + sum(rng.normal(scale=0.25) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 4))
    radii = np.clip(radius, 0.2, 2) / 2 * (side / 2 - 2)
    points = side / 2 + radii[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    shape = np.zeros((side, side), np.uint8)
    cv2.fillPoly(shape, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    shape[[0, -1]] = shape[:, [0, -1]] = 0  # where a smoothed spike may reach
    return shape.astype(np.float32) / np.float32(255)


def _about(centre: NDArray[np.float64], rng: np.random.Generator, motion: float, spread: float) -> Affine:
    """A random affine map about a point: a displacement of mean length `motion`, rotation and stretch by `spread`."""
    angle = rng.uniform(0, 2 * np.pi)
    shift = rng.exponential(motion) * np.array([np.cos(angle), np.sin(angle)])
    turn = rng.normal(scale=spread)
    stretch = np.eye(2) + rng.normal(scale=spread / 3, size=(2, 2)) + rng.normal(scale=spread) * np.eye(2)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ stretch
    out = np.eye(3)
    out[:2, :2], out[:2, 2] = linear, centre - linear @ centre + shift
    return out


def _shift(by: NDArray[np.float64]) -> Affine:
    out = np.eye(3)
    out[:2, 2] = by
    return out


def _drawn(
    canvas: NDArray[np.float32], at: Affine, size: tuple[int, int], border: int = cv2.BORDER_REFLECT
) -> NDArray[np.float32]:
    """The canvas under the map `at`."""
    out = cv2.warpAffine(canvas, at[:2], (size[1], size[0]), flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(out, np.float32)


def _displacement(move: Affine, size: tuple[int, int]) -> FlowField:
    """move(p) - p, [2, H, W]."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    grid = np.stack([x, y, np.ones_like(x)])
    return np.tensordot((move - np.eye(3))[:2].astype(np.float32), grid, 1).astype(np.float32)
