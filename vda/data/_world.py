"""Vocabulary of the embedded world: classes, upright blocks, the camera and how it drives.

World axes: x right and z forward where the street has heading 0, y up, metres; the heading turns from z to x.
Everything is a `Prim`: an upright box, or a cut-out of no thickness (vda/data/_silhouettes.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from vda.errors import UsageError

CLASSES = (
    "road",
    "sidewalk",
    "building",
    "fence",
    "pole",
    "sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "car",
)
ROAD, SIDEWALK, BUILDING, FENCE, POLE, SIGN, VEGETATION, TERRAIN, SKY, PERSON, CAR = range(len(CLASSES))

CAMERA_HEIGHT = 1.5  # m
SMALL = 1.4  # pixels of width below which a thing is not drawn
VIEW = 170.0  # m; what lies farther is part of the skyline
BEHIND = 12.0  # m behind the camera that may still reach into the picture (corners of buildings)
CROSSING = 11.0  # m of cross street at the start of a block that has one

STATIC, STROLL, CROSS, LANE, LEAD = range(5)  # kinds of motion

PRIM = np.dtype(
    [
        ("uid", "i8"),  # the same in every frame
        ("label", "u1"),
        ("shape", "i2"),  # silhouette, -1 for a box
        ("part", "u1"),  # part number of a box
        ("tint", "u4"),  # random; picks the colour variant
        ("motion", "u1"),
        ("z", "f8"),  # place along the street
        ("d", "f8"),  # and to the right of its middle
        ("ahead", "f8"),  # offset along the heading, for objects of several boxes
        ("turn", "f8"),  # heading minus the street's heading there
        ("a", "f8"),  # half width (right), half depth (forward)
        ("b", "f8"),
        ("y0", "f8"),  # bottom, top
        ("y1", "f8"),
        ("speed", "f8"),  # m / frame
        ("when", "f8"),  # the frame at which a walker is at (z, d)
    ]
)
Prims = NDArray[np.void]  # [N] of PRIM
Poses = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # x, z, heading: [N] each


@dataclass(frozen=True)
class Drive:
    """How the camera moves and how lively the street is.

    speed: metres per frame (nominal; each clip draws its own within 20 %). turn: 1 for the usual bends of the
    street, 0 for a straight one. sway: 1 for the usual swaying of the camera car (sideways, yaw, bob, speed),
    0 for none. traffic: moving cars and walking persons; False leaves only what stands still.
    """

    speed: float = 0.4
    turn: float = 1.0
    sway: float = 1.0
    traffic: bool = True

    def __post_init__(self) -> None:
        for field, limit in zip(fields(self)[:3], (2.0, 2.0, 4.0), strict=True):
            value = getattr(self, field.name)
            if not 0 <= value <= limit:
                raise UsageError(f"drive.{field.name}: wanted a number from 0 to {limit:g}, found {value!r}")


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera: column u looks along (u - cx) / f, row v along (v - cy) / f below the horizon.

    x, z: place in metres; yaw: heading in radians; f, cx, cy: pixels.
    """

    x: float
    z: float
    yaw: float
    f: float
    cx: float
    cy: float
