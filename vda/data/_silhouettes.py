"""Cut-out shapes of the embedded world: small maps of part numbers, 0 where one can see through.

A silhouette is stretched over a vertical rectangle of the world (row 0 is its top edge). The number of a part
only picks a colour (vda/data/_looks.py); it never changes the class.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

SHAPE = (96, 64)  # rows, columns of every silhouette

PLAIN, DARK, SKIN, LEGS, TRUNK, RIM, RED, GREEN = range(1, 9)  # parts
PARTS = 9

TREES = range(6)
BUSHES = range(6, 9)
PERSONS = range(9, 17)
SIGNS = range(17, 21)
LIGHT = 21
COUNT = 22


@cache
def silhouettes() -> NDArray[np.uint8]:
    """[COUNT, *SHAPE] part numbers, the same in every run."""
    rng = np.random.default_rng(20)
    shapes = np.zeros((COUNT, *SHAPE), np.uint8)
    for index in TREES:
        _tree(shapes[index], rng, conifer=index % 3 == 2)
    for index in BUSHES:
        _crown(shapes[index], rng, centre=(32, 60), radii=(26, 34), blobs=14)
    for index in PERSONS:
        _person(shapes[index], rng)
    for index in SIGNS:
        _sign(shapes[index], index - SIGNS.start)
    _traffic_light(shapes[LIGHT])
    return shapes


def _disc(shape: NDArray[np.uint8], x: float, y: float, rx: float, ry: float, part: int) -> None:
    cv2.ellipse(shape, (round(x), round(y)), (max(1, round(rx)), max(1, round(ry))), 0, 0, 360, part, -1)


def _polygon(shape: NDArray[np.uint8], points: list[tuple[float, float]], part: int) -> None:
    cv2.fillPoly(shape, [np.round(np.array(points)).astype(np.int32)], part)


def _crown(
    shape: NDArray[np.uint8],
    rng: np.random.Generator,
    centre: tuple[float, float],
    radii: tuple[float, float],
    blobs: int,
) -> None:
    """Leaves: overlapping discs, lit from above (dark ones hang lower)."""
    _disc(shape, *centre, radii[0] * 0.8, radii[1] * 0.8, PLAIN)
    for part, lift in ((PLAIN, 0.0), (DARK, 0.25)):
        for _ in range(blobs):
            angle, r = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0.05, 1))
            x = centre[0] + radii[0] * 0.75 * r * np.cos(angle)
            y = centre[1] + radii[1] * (0.75 * r * np.sin(angle) + lift)
            size = rng.uniform(4, 9) if part == PLAIN else rng.uniform(2, 5)
            _disc(shape, np.clip(x, 8, 55), np.clip(y, 8, 92), size, size, part)


def _tree(shape: NDArray[np.uint8], rng: np.random.Generator, conifer: bool) -> None:
    _polygon(shape, [(29, 95), (30, 40), (34, 40), (36, 95)], TRUNK)
    if conifer:
        for level in range(4):
            top, half = 2 + 18 * level, 11 + 5.5 * level
            _polygon(shape, [(32, top), (32 - half, top + 29), (32 + half, top + 29)], PLAIN)
            _polygon(shape, [(32, top + 20), (32 - half, top + 29), (32 + half, top + 29)], DARK)
    else:
        _crown(shape, rng, centre=(32, 34), radii=(28, 31), blobs=18)


def _person(shape: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """One pose each; a pose stays fixed so that the motion of the figure is exactly rigid."""
    stride, swing = rng.uniform(4, 15), rng.uniform(6, 17)
    hip, shoulder = rng.uniform(9, 12), rng.uniform(13, 17)
    for side in (-1, 1):
        foot = 32 + side * stride
        _polygon(shape, [(32 - hip, 50), (32 + hip, 50), (foot + 6, 95), (foot - 5, 95)], LEGS)
        hand = 32 + side * (shoulder + swing * 0.6)
        edge = 32 + side * shoulder
        _polygon(shape, [(edge - 5, 20), (edge + 4, 20), (hand + 4, 50), (hand - 3, 50)], PLAIN)
    _polygon(shape, [(32 - shoulder, 17), (32 + shoulder, 17), (32 + hip, 54), (32 - hip, 54)], PLAIN)
    _disc(shape, 32, 8, 8, 8, SKIN)
    _polygon(shape, [(23, 7), (26, 1), (38, 1), (41, 7)], DARK)


def _sign(shape: NDArray[np.uint8], kind: int) -> None:
    if kind == 0:  # round with a rim
        _disc(shape, 31.5, 47.5, 32, 48, RIM)
        _disc(shape, 31.5, 47.5, 23, 35, PLAIN)
    elif kind == 1:  # triangle
        _polygon(shape, [(31.5, 0), (0, 95), (63, 95)], RIM)
        _polygon(shape, [(31.5, 24), (13, 84), (50, 84)], PLAIN)
    elif kind == 2:  # square
        shape[:] = PLAIN
        _polygon(shape, [(31.5, 14), (14, 56), (50, 56)], RIM)
    else:  # direction board
        shape[:] = PLAIN
        shape[20:34, 8:56] = RIM
        shape[56:70, 8:40] = RIM


def _traffic_light(shape: NDArray[np.uint8]) -> None:
    shape[:] = DARK
    _disc(shape, 31.5, 17, 20, 11, RED)
    _disc(shape, 31.5, 48, 20, 11, PLAIN)
    _disc(shape, 31.5, 79, 20, 11, GREEN)
