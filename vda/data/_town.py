"""Furnishing of the embedded world: what a block of the street holds, and the cars that drive through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vda.data import _silhouettes as cut
from vda.data._world import (
    BUILDING,
    CAR,
    CROSS,
    CROSSING,
    FENCE,
    LANE,
    LEAD,
    PERSON,
    POLE,
    PRIM,
    SIGN,
    STATIC,
    STROLL,
    VEGETATION,
    VIEW,
    Prims,
)

if TYPE_CHECKING:
    from vda.data._street import Street

Ground = NDArray[np.bool_]  # [3]: left paved, right paved, has a crossing


class _Site:
    """Collects prims; gives each its identity."""

    def __init__(self, base: int, rng: np.random.Generator) -> None:
        self.base, self.rng, self.rows = base, rng, []  # type: ignore[var-annotated]

    def add(
        self,
        label: int,
        z: float,
        d: float,
        a: float,
        b: float,
        y0: float,
        y1: float,
        *,
        shape: int = -1,
        part: int = cut.PLAIN,
        tint: int | None = None,
        motion: int = STATIC,
        ahead: float = 0.0,
        turn: float = 0.0,
        speed: float = 0.0,
        when: float = 0.0,
    ) -> None:
        tint = int(self.rng.integers(1 << 31)) if tint is None else tint
        uid = self.base + len(self.rows)
        self.rows.append((uid, label, shape, part, tint, motion, z, d, ahead, turn, a, b, y0, y1, speed, when))

    def prims(self) -> Prims:
        return np.array(self.rows, PRIM)

    # furniture

    def post(self, z: float, d: float, height: float, half: float = 0.13) -> None:
        self.add(POLE, z, d, half, half, 0, height)

    def lamp(self, z: float, d: float, inward: float) -> None:
        height = self.rng.uniform(5.5, 7.5)
        self.post(z, d, height, 0.15)
        self.add(POLE, z, d + inward * 0.9, 0.95, 0.12, height - 0.3, height)

    def sign(self, z: float, d: float) -> None:
        kind = int(self.rng.integers(len(cut.SIGNS)))
        half = self.rng.uniform(0.6, 0.85) * (1.3 if kind == 3 else 1)
        low = self.rng.uniform(1.9, 2.4)
        self.post(z, d, low + 0.3, 0.11)
        self.add(SIGN, z - 0.12, d, half, 0, low, low + self.rng.uniform(1.2, 1.6), shape=cut.SIGNS[kind])

    def traffic_light(self, z: float, d: float, inward: float) -> None:
        self.post(z, d, 5.4, 0.15)
        reach = self.rng.uniform(2.0, 3.2)
        self.add(POLE, z, d + inward * reach / 2, reach / 2, 0.1, 5.15, 5.4)
        for side, low in ((inward * reach, 3.8), (0.0, 2.0)):
            self.add(SIGN, z - 0.14, d + side, 0.4, 0, low, low + 1.6, shape=cut.LIGHT)

    def tree(self, z: float, d: float, scale: float = 1.0) -> None:
        shape = cut.TREES[int(self.rng.integers(len(cut.TREES)))]
        height = scale * self.rng.uniform(4.5, 8.5)
        self.add(VEGETATION, z, d, height * self.rng.uniform(0.28, 0.4), 0, 0, height, shape=shape)

    def bush(self, z: float, d: float) -> None:
        shape = cut.BUSHES[int(self.rng.integers(len(cut.BUSHES)))]
        self.add(VEGETATION, z, d, self.rng.uniform(0.8, 1.8), 0, -0.1, self.rng.uniform(1.0, 2.0), shape=shape)

    def person(self, z: float, d: float, motion: int, when: float) -> None:
        height = self.rng.uniform(1.6, 2.0)
        shape = cut.PERSONS[int(self.rng.integers(len(cut.PERSONS)))]
        speed = self.rng.choice((-1, 1)) * self.rng.uniform(0.02, 0.07)
        self.add(
            PERSON, z, d, 0.25 * height, 0, 0, height, shape=shape, motion=motion, speed=speed, when=when
        )  # fmt: skip

    def car(self, z: float, d: float, motion: int = STATIC, speed: float = 0.0) -> None:
        """Wheels, body and cabin; sometimes a van or a truck."""
        rng, tint = self.rng, int(self.rng.integers(1 << 31))
        half, width = rng.uniform(1.9, 2.3), rng.uniform(0.82, 0.95)
        body, roof = rng.uniform(0.85, 1.0), rng.uniform(1.4, 1.6)
        boxes = [(0.0, half, width, 0.18, body, cut.PLAIN)]
        kind = rng.random()
        if kind < 0.7:  # bonnet in front, seen from behind as the lower roof line
            boxes.append((-0.25 * half, 0.62 * half, width * 0.9, body, body + 0.55 * (roof - body), cut.DARK))
            boxes.append((-0.3 * half, 0.5 * half, width * 0.82, body + 0.55 * (roof - body), roof, cut.PLAIN))
        elif kind < 0.9:
            boxes.append((-0.12 * half, 0.86 * half, width * 0.94, body, 1.5, cut.DARK))
            boxes.append((-0.12 * half, 0.86 * half, width * 0.94, 1.5, rng.uniform(1.9, 2.2), cut.PLAIN))
        else:
            boxes.append((-0.2 * half, 0.95 * half, width * 1.1, body, rng.uniform(2.4, 3.0), cut.PLAIN))
        for side in (-0.62, 0.62):
            boxes.append((side * half, 0.33, width * 0.96, 0.0, 0.36, cut.TRUNK))
        for ahead, b, a, y0, y1, part in boxes:
            self.add(
                CAR, z, d, a, b, y0, y1, part=part, tint=tint, motion=motion, ahead=ahead, speed=speed
            )  # fmt: skip


def build_block(street: Street, index: int, rng: np.random.Generator) -> tuple[Prims, Ground]:
    """One block: houses, fences and ground cover by the zone of each side, the rest at random."""
    site = _Site((1 << 50) + index * 4096, rng)
    start, end = index * street.block, (index + 1) * street.block
    crossing = street.crossing(index)
    begin = start + (CROSSING + 1.0 if crossing else 0.0)
    paved = []
    for side in (-1, 1):
        zone = rng.choice(("town", "garden", "park"), p=(0.4, 0.33, 0.27))
        paved.append(zone == "town")
        {"town": _town, "garden": _garden, "park": _park}[zone](site, street, side, begin, end)
        _pavement(site, street, side, begin, end)
    if crossing:
        _corner(site, street, start)
    return site.prims(), np.array([*paved, crossing])


def _spots(rng: np.random.Generator, begin: float, end: float, gap: float) -> list[float]:
    """Places about `gap` apart."""
    count = int((end - begin) / gap)
    return [float(begin + gap * (k + rng.uniform(0.15, 0.85))) for k in range(count)]


def _house_row(
    site: _Site, begin: float, end: float, face: float, side: int, width: tuple[float, float],
    height: tuple[float, float], gap: float,
) -> None:  # fmt: skip
    """Houses side by side whose fronts are about `face` metres from the middle of the street."""
    rng, z = site.rng, begin
    while end - z > width[0] * 0.6:
        length = min(rng.uniform(*width), end - z)
        depth, tall = rng.uniform(4, 7), rng.uniform(*height)
        setback = face + rng.uniform(0, 1.2)
        space = gap * rng.uniform(0.2, 1.0)
        site.add(
            BUILDING, z + length / 2, side * (setback + depth), depth, max(0.5, (length - space) / 2), 0, tall
        )  # fmt: skip
        z += length


def _town(site: _Site, street: Street, side: int, begin: float, end: float) -> None:
    _house_row(site, begin, end, street.kerb + 0.4, side, (9, 19), (7, 20), gap=2.5)
    for z in _spots(site.rng, begin, end, 15):
        if site.rng.random() < 0.5:
            site.tree(z, side * (street.half_road + 0.9), 0.75)


def _garden(site: _Site, street: Street, side: int, begin: float, end: float) -> None:
    rng = site.rng
    _fence(site, street, side, begin, end)
    _house_row(site, begin, end, street.kerb + rng.uniform(5, 9), side, (10, 16), (4.5, 8), gap=6)
    for z in _spots(rng, begin, end, 8):
        (site.tree if rng.random() < 0.5 else site.bush)(z, side * (street.kerb + rng.uniform(1.5, 5)))


def _park(site: _Site, street: Street, side: int, begin: float, end: float) -> None:
    rng = site.rng
    if rng.random() < 0.6:
        _fence(site, street, side, begin, end)
    for z in _spots(rng, begin, end, 7):
        site.tree(z, side * (street.kerb + rng.uniform(2, 9)))
    for z in _spots(rng, begin, end, 9):
        site.bush(z, side * (street.kerb + rng.uniform(1.2, 6)))
    for z in _spots(rng, begin, end, 6):
        site.tree(z, side * (street.kerb + rng.uniform(14, 40)), 1.3)


def _fence(site: _Site, street: Street, side: int, begin: float, end: float) -> None:
    """Panels along the outer edge of the sidewalk; short, so that they follow the bend."""
    rng, tint = site.rng, int(site.rng.integers(1 << 31))
    height, count = rng.uniform(1.0, 1.9), max(1, round((end - begin) / 5))
    half = (end - begin) / count / 2
    for k in range(count):
        if rng.random() < 0.9:
            z = begin + half * (2 * k + 1)
            site.add(FENCE, z, side * (street.kerb + 0.25), 0.04, half, 0.0, height, tint=tint)


def _pavement(site: _Site, street: Street, side: int, begin: float, end: float) -> None:
    """Lamps, signs, parked cars and persons of one side."""
    rng, edge = site.rng, street.half_road
    for z in _spots(rng, begin, end, 17):
        site.lamp(z, side * (edge + 0.4), -side)
    for z in _spots(rng, begin, end, 13):
        site.sign(z, side * (edge + rng.uniform(0.5, 0.9)))
    if edge > 5.2:
        for z in _spots(rng, begin, end, 8.5):
            if rng.random() < 0.35:
                site.car(z, side * (edge - 1.05))
    for z in _spots(rng, begin, end, 4.5):
        arrival = (z - street.start) / max(street.speed, 0.1)
        site.person(z, side * rng.uniform(street.verge + 0.4, street.kerb - 0.3), STROLL, arrival)


def _corner(site: _Site, street: Street, start: float) -> None:
    """Traffic lights on both sides of a cross street, and persons who cross ours."""
    rng = site.rng
    site.traffic_light(start - 1.2, street.half_road + 0.5, -1)
    site.traffic_light(start + CROSSING + 1.2, -street.half_road - 0.5, 1)
    for _ in range(2):
        z = start + rng.uniform(1.5, CROSSING - 1.5)
        site.person(z, 0.0, CROSS, rng.uniform(0, 400))


def traffic(street: Street, t: float, stream: Callable[..., np.random.Generator]) -> Prims:
    """Cars that drive, as far as they may be seen at frame t: oncoming ones and two ahead in our lane.

    `stream(*key)` gives the generator of one car, so that a car is the same in every frame.
    """
    rng = stream(3, 0)
    spacing, speed = rng.uniform(20, 34), -rng.uniform(0.3, 0.6) * street.drive.speed / 0.5
    here = street.progress(t) - speed * t
    found = []
    for k in range(int(np.floor((here - 5) / spacing)), int(np.floor((here + VIEW) / spacing)) + 1):
        car = stream(4, k)
        if car.random() < 0.75:
            site = _Site((2 << 50) + k * 64, car)
            site.car(k * spacing + car.uniform(0, spacing - 7), -street.lane, LANE, speed)
            found.append(site.prims())
    for k in range(2):
        car = stream(5, k)
        site = _Site((3 << 50) + k * 64, car)
        site.car((9 + 26 * k) + car.uniform(0, 16), street.lane + car.uniform(-0.3, 0.3), LEAD)
        found.append(site.prims())
    return np.concatenate(found)
