"""Colours of the embedded world's things, RGB in [0, 255]: first the simulator's, then the camera's.

The camera's palette keeps what tells things apart in both domains (the sidewalk is lighter than the road,
leaves are darker than grass, the sky is the brightest) but moves the colours onto those of other classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vda.data import _silhouettes as cut
from vda.data._world import (
    BUILDING,
    CAR,
    CLASSES,
    FENCE,
    PERSON,
    POLE,
    ROAD,
    SIDEWALK,
    SIGN,
    SKY,
    TERRAIN,
    VEGETATION,
)

_VARIANTS = 6
_Colour = tuple[int, int, int]

_SIMULATOR: dict[int, list[_Colour]] = {
    ROAD: [(92, 88, 104), (78, 78, 88), (112, 106, 114)],
    SIDEWALK: [(206, 152, 178), (204, 172, 152), (184, 160, 190)],
    BUILDING: [(178, 92, 70), (196, 130, 78), (160, 78, 92), (208, 160, 110), (150, 100, 84), (190, 110, 96)],
    FENCE: [(128, 84, 40), (150, 104, 60)],
    POLE: [(120, 124, 130)],
    SIGN: [(250, 212, 30), (40, 90, 230), (245, 245, 245)],
    VEGETATION: [(34, 140, 40), (54, 156, 34), (24, 120, 52)],
    TERRAIN: [(138, 206, 84), (120, 186, 70), (164, 200, 96)],
    SKY: [(84, 156, 250), (130, 184, 250), (66, 130, 232), (172, 206, 250)],
    PERSON: [(230, 40, 60), (240, 120, 40), (200, 40, 160), (60, 60, 220), (240, 220, 60), (40, 180, 170)],
    CAR: [(30, 60, 200), (210, 24, 36), (240, 240, 245), (250, 200, 20), (20, 150, 160), (30, 30, 40)],
}
_CAMERA: dict[int, list[_Colour]] = {
    ROAD: [(150, 142, 132), (128, 124, 120), (140, 136, 134)],
    SIDEWALK: [(184, 178, 164), (172, 166, 158), (194, 182, 160)],
    BUILDING: [
        (150, 140, 128),
        (128, 112, 100),
        (172, 164, 150),
        (112, 104, 104),
        (160, 136, 112),
        (138, 120, 118),
    ],
    FENCE: [(84, 92, 84), (120, 112, 100)],
    POLE: [(92, 88, 84)],
    SIGN: [(204, 176, 90), (86, 106, 160), (222, 216, 206)],
    VEGETATION: [(82, 92, 56), (98, 98, 60), (70, 86, 62)],
    TERRAIN: [(150, 142, 92), (132, 138, 84), (160, 148, 108)],
    SKY: [(226, 224, 220), (206, 216, 228), (184, 204, 228)],
    PERSON: [(52, 50, 58), (96, 60, 56), (64, 72, 92), (120, 112, 104), (44, 60, 56), (150, 130, 120)],
    CAR: [(70, 74, 84), (44, 44, 46), (196, 196, 196), (116, 120, 124), (112, 52, 48), (60, 72, 104)],
}

_SIMULATOR_PARTS: dict[int, dict[int, _Colour]] = {
    ROAD: {cut.RIM: (250, 250, 250)},
    BUILDING: {cut.DARK: (70, 90, 130)},
    FENCE: {cut.DARK: (84, 54, 24)},
    SIGN: {cut.RIM: (220, 30, 30), cut.DARK: (24, 24, 28), cut.RED: (250, 40, 30), cut.GREEN: (40, 230, 90)},
    VEGETATION: {cut.DARK: (18, 104, 30), cut.TRUNK: (104, 66, 34)},
    PERSON: {cut.DARK: (60, 36, 20), cut.SKIN: (240, 190, 150), cut.LEGS: (40, 50, 120)},
    CAR: {cut.DARK: (60, 80, 110), cut.TRUNK: (16, 16, 18), cut.RED: (255, 60, 40)},
}
_CAMERA_PARTS: dict[int, dict[int, _Colour]] = {
    ROAD: {cut.RIM: (212, 208, 200)},
    BUILDING: {cut.DARK: (76, 78, 82)},
    FENCE: {cut.DARK: (58, 62, 58)},
    SIGN: {
        cut.RIM: (160, 64, 56),
        cut.DARK: (38, 40, 38),
        cut.RED: (230, 90, 60),
        cut.GREEN: (120, 190, 150),
    },
    VEGETATION: {cut.DARK: (54, 60, 40), cut.TRUNK: (72, 62, 54)},
    PERSON: {cut.DARK: (44, 38, 34), cut.SKIN: (176, 140, 118), cut.LEGS: (50, 54, 66)},
    CAR: {cut.DARK: (62, 68, 72), cut.TRUNK: (26, 26, 26), cut.RED: (176, 60, 50)},
}


def _colours(things: dict[int, list[_Colour]]) -> list[list[_Colour]]:
    return [[things[k][v % len(things[k])] for v in range(_VARIANTS)] for k in range(len(CLASSES))]


def _part_colours(things: dict[int, list[_Colour]], parts: dict[int, dict[int, _Colour]]) -> list[list[_Colour]]:
    return [[parts.get(k, {}).get(part, things[k][0]) for part in range(cut.PARTS)] for k in range(len(CLASSES))]


def _unit(colours: list[list[list[_Colour]]]) -> NDArray[np.float32]:
    return np.array(colours, np.float32) / np.float32(255)


# [2, K, variants, 3] and [2, K, parts, 3], in [0, 1]
PALETTES = _unit([_colours(_SIMULATOR), _colours(_CAMERA)])
PART_COLOURS = _unit([_part_colours(_SIMULATOR, _SIMULATOR_PARTS), _part_colours(_CAMERA, _CAMERA_PARTS)])
