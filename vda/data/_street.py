"""The street of the embedded world: its curve, the camera car on it, and where everything is at any time.

The middle of the street is the curve x = c(z). Blocks of the street are drawn from (seed, index of the
block), so a place looks the same however long the clip is and whichever frame is asked for first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vda.data._town import build_block, traffic
from vda.data._world import BEHIND, CROSS, LANE, LEAD, STROLL, VIEW, Camera, Drive, Poses, Prims


class Street:
    """One layout. Deterministic in (seed, drive)."""

    def __init__(self, seed: tuple[int, ...], drive: Drive) -> None:
        self.seed, self.drive = seed, drive
        rng = self._rng(0)
        self.amplitude = drive.turn * rng.uniform((4.0, 0.8), (11.0, 2.0))
        self.wavelength = rng.uniform((130.0, 60.0), (220.0, 90.0))
        self.phase = rng.uniform(0, 2 * np.pi, 2)
        self.half_road = rng.uniform(4.3, 6.2)
        self.verge = self.half_road + rng.choice((0.0, 1.0)) * rng.uniform(1.2, 2.6)  # a strip of grass
        self.kerb = self.verge + rng.uniform(2.6, 4.6)  # outer edge of the sidewalk
        self.block = rng.uniform(50, 72)
        self.start = rng.uniform(0, self.block)
        self.speed = drive.speed * rng.uniform(0.8, 1.2)
        self.sway_phase = rng.uniform(0, 2 * np.pi, 4)
        self.skyline = rng.uniform((0.3, 0, 0), (1.0, 2 * np.pi, 2 * np.pi))
        self.lane = 1.75
        self._blocks: dict[int, tuple[Prims, NDArray[np.bool_]]] = {}

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([*self.seed, *(k + (1 << 20) for k in key)])

    # the curve and the camera

    def centre(self, z: NDArray[np.floating]) -> NDArray[np.floating]:
        """x of the middle of the street at z [any shape]."""
        a, w, p = self.amplitude, 2 * np.pi / self.wavelength, self.phase
        return a[0] * np.sin(w[0] * z + p[0]) + a[1] * np.sin(w[1] * z + p[1])

    def slope(self, z: NDArray[np.floating]) -> NDArray[np.floating]:
        """dx / dz of the middle of the street, the tangent of its heading."""
        a, w, p = self.amplitude, 2 * np.pi / self.wavelength, self.phase
        return a[0] * w[0] * np.cos(w[0] * z + p[0]) + a[1] * w[1] * np.cos(w[1] * z + p[1])

    def progress(self, t: float) -> float:
        """z of the camera car at frame t."""
        wave = 2 * np.pi / 45
        sway = 0.35 * min(1.0, self.drive.sway)
        return self.start + self.speed * (t + sway * np.sin(wave * t + self.sway_phase[0]) / wave)

    def camera(self, t: float, size: tuple[int, int]) -> Camera:
        """The camera at frame t for pictures of size (H, W)."""
        H, W = size
        z, sway, p = np.asarray(self.progress(t)), self.drive.sway, self.sway_phase
        slope = self.slope(z)
        d = self.lane + 0.3 * sway * np.sin(2 * np.pi * t / 60 + p[1])
        yaw = np.arctan(slope) + sway * (
            0.02 * np.sin(2 * np.pi * t / 34 + p[2]) + 0.004 * np.sin(2 * np.pi * t / 9 + p[0])
        )
        bob = 0.004 * sway * np.sin(2 * np.pi * t / 7 + p[3])
        return Camera(
            x=float(self.centre(z) + d * np.hypot(1, slope)),
            z=float(z),
            yaw=float(yaw),
            f=0.85 * W,
            cx=(W - 1) / 2,
            cy=(H - 1) * (0.46 + bob),
        )

    # what stands where

    def blocks(self, first: int, last: int) -> tuple[Prims, NDArray[np.bool_]]:
        """Prims and ground [blocks, 3] (left paved, right paved, has a crossing) of blocks first .. last."""
        found = []
        for index in range(first, last + 1):
            if index not in self._blocks:
                if len(self._blocks) > 32:
                    self._blocks.clear()
                self._blocks[index] = build_block(self, index, self._rng(1, index))
            found.append(self._blocks[index])
        return np.concatenate([p for p, _ in found]), np.stack([g for _, g in found])

    def crossing(self, index: int) -> bool:
        """Whether block `index` begins with a cross street."""
        return bool(self._rng(2, index).random() < 0.6)

    def visible(self, t: float) -> Prims:
        """Everything that may be seen at frame t: [N] of PRIM."""
        z = self.progress(t)
        first, last = (int(np.floor((z + reach) / self.block)) for reach in (-BEHIND, VIEW))
        prims, _ = self.blocks(first, last)
        if self.drive.traffic:
            prims = np.concatenate([prims, traffic(self, t, self._rng)])
        return prims

    def poses(self, prims: Prims, t: float) -> Poses:
        """Where the prims are at frame t."""
        motion, speed = prims["motion"], prims["speed"]
        elapsed = (t - prims["when"]) if self.drive.traffic else np.zeros(len(prims))
        z = prims["z"].copy()
        lane, lead = motion == LANE, motion == LEAD
        z[lane] += speed[lane] * t
        if lead.any():
            z[lead] += self.progress(t) + 1.5 * np.sin(2 * np.pi * t / 70 + prims["tint"][lead] % 7)
        slope = self.slope(z)
        heading = np.arctan(slope)
        sin, cos = np.sin(heading), np.cos(heading)
        along = np.where(motion == STROLL, speed * elapsed, 0) + prims["ahead"]
        # a triangular wave across the road: out and back again
        width = 2 * self.half_road
        swing = np.abs((speed * elapsed + prims["d"] + self.half_road) % (2 * width) - width) - self.half_road
        d = np.where(motion == CROSS, swing, prims["d"])
        x = self.centre(z) + d * np.hypot(1, slope) + along * sin
        return x, z + along * cos, heading + prims["turn"]
