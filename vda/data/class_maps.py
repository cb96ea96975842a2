"""Class lists that a synthetic and a real data set share, and the raw ids of each that count as a class.

"paper-15" (VIPER) and "paper-11" (SYNTHIA) are those of Park et al., Tables 1 and 10. The paper does not say which ids
it joined; these are the literal partners, with VIPER's infrastructure as pole: it has no other, and the same colour.
"-merged" also counts riders as persons, vans as cars and lane markings as road. "davsn-15" and "davsn-12" are those of
DA-VSN (Guan et al., ICCV 2021) and TPS, which score the twelve without fence. Scores of different lists do not compare.
"""

from __future__ import annotations

import colorsys
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vda.data.clip import IGNORE
from vda.data.labels import IdTable, id_table

Coding = Literal["cityscapes", "viper", "synthia"]


class Ids(NamedTuple):
    """Raw ids of one class."""

    cityscapes: tuple[int, ...]
    """Train ids, 0 .. 18."""
    viper: tuple[int, ...] = ()
    """0 .. 31, of VIPER's classes.csv."""
    synthia: tuple[int, ...] = ()
    """0 .. 15."""


ClassMap = dict[str, Ids]  # class -> ids, in label order

PAPER_15: ClassMap = {
    "road": Ids((0,), viper=(3,)),
    "sidewalk": Ids((1,), viper=(4,)),
    "building": Ids((2,), viper=(9,)),
    "fence": Ids((4,), viper=(11,)),
    "pole": Ids((5,), viper=(10,)),  # infrastructure
    "traffic light": Ids((6,), viper=(13,)),
    "traffic sign": Ids((7,), viper=(14,)),
    "vegetation": Ids((8,), viper=(7, 8)),  # tree, vegetation
    "terrain": Ids((9,), viper=(6,)),
    "sky": Ids((10,), viper=(2,)),
    "person": Ids((11,), viper=(20,)),
    "car": Ids((13,), viper=(24,)),
    "truck": Ids((14,), viper=(27,)),
    "bus": Ids((15,), viper=(26,)),
    "motorcycle": Ids((17,), viper=(23,)),
}

PAPER_11: ClassMap = {
    "road": Ids((0,), synthia=(3,)),
    "sidewalk": Ids((1,), synthia=(4,)),
    "building": Ids((2,), synthia=(2,)),
    "pole": Ids((5,), synthia=(7,)),
    "traffic light": Ids((6,), synthia=(15,)),
    "traffic sign": Ids((7,), synthia=(9,)),
    "vegetation": Ids((8,), synthia=(6,)),
    "sky": Ids((10,), synthia=(1,)),
    "person": Ids((11,), synthia=(10,)),
    "rider": Ids((12,), synthia=(11,)),  # SYNTHIA's bicycle, with whoever rides it
    "car": Ids((13,), synthia=(8,)),
}

DAVSN_15: ClassMap = {
    "road": Ids((0,), viper=(3,)),
    "sidewalk": Ids((1,), viper=(4,)),
    "building": Ids((2,), viper=(9,)),
    "fence": Ids((4,), viper=(11,)),
    "traffic light": Ids((6,), viper=(13,)),
    "traffic sign": Ids((7,), viper=(14,)),
    "vegetation": Ids((8,), viper=(7, 8)),
    "terrain": Ids((9,), viper=(6,)),
    "sky": Ids((10,), viper=(2,)),
    "person": Ids((11, 12), viper=(20,)),  # with riders
    "car": Ids((13,), viper=(24,)),
    "truck": Ids((14,), viper=(27,)),
    "bus": Ids((15,), viper=(26,)),
    "motorcycle": Ids((17,), viper=(23,)),
    "bicycle": Ids((18,), viper=(22,)),
}

DAVSN_12: ClassMap = {
    "road": Ids((0,), synthia=(3,)),
    "sidewalk": Ids((1,), synthia=(4,)),
    "building": Ids((2,), synthia=(2,)),
    "fence": Ids((4,), synthia=(5,)),
    "pole": Ids((5,), synthia=(7,)),
    "traffic light": Ids((6,), synthia=(15,)),
    "traffic sign": Ids((7,), synthia=(9,)),
    "vegetation": Ids((8,), synthia=(6,)),
    "sky": Ids((10,), synthia=(1,)),
    "person": Ids((11,), synthia=(10,)),
    "rider": Ids((12,), synthia=(11,)),
    "car": Ids((13,), synthia=(8,)),
}

CLASS_MAPS: dict[str, ClassMap] = {
    "paper-15": PAPER_15,
    "paper-15-merged": PAPER_15 | {"person": Ids((11, 12), viper=(20,)), "car": Ids((13,), viper=(24, 25))},
    "paper-11": PAPER_11,
    "paper-11-merged": PAPER_11 | {"road": Ids((0,), synthia=(3, 12))},
    "davsn-15": DAVSN_15,
    "davsn-12": DAVSN_12,
}

# Every id that may stand in a label file; those of no class are ignored, others are an error.
KNOWN: dict[Coding, tuple[int, ...]] = {
    "cityscapes": (*range(19), IGNORE),
    "viper": tuple(range(32)),
    "synthia": tuple(range(16)),
}

# Cityscapes' label ids that have a train id, in the order of those; the files hold 0 .. 33.
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

COLOURS = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}  # RGB, Cityscapes'


def maps_of(coding: Coding) -> tuple[str, ...]:
    """Names of the class maps in which every class has ids of the coding."""
    return tuple(name for name, classes in CLASS_MAPS.items() if all(getattr(ids, coding) for ids in classes.values()))


def class_table(name: str, coding: Coding) -> IdTable:
    """[256] from the raw ids of the coding to the classes of a map, IGNORE for ids of no class."""
    classes = enumerate(CLASS_MAPS[name].values())
    return id_table(
        dict.fromkeys(KNOWN[coding], IGNORE) | {raw: k for k, ids in classes for raw in getattr(ids, coding)}
    )


def label_id_table(name: str) -> IdTable:
    """[256] from Cityscapes' label ids to the classes of a map, IGNORE for those of no class."""
    classes = class_table(name, "cityscapes")
    found = {raw: int(classes[train]) for train, raw in enumerate(_LABEL_IDS)}
    return id_table(dict.fromkeys(range(34), IGNORE) | found)


def palette(name: str) -> NDArray[np.uint8]:
    """[K, 3] RGB of the classes of a map."""
    return np.array([COLOURS[label] for label in CLASS_MAPS[name]], np.uint8)


def made_up_colour(k: int) -> tuple[int, int, int]:
    """RGB of class k where nobody gave one: hues by the golden ratio, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb(k * 0.618034 % 1, 0.65, 0.9 - 0.15 * (k % 3))
    return round(255 * red), round(255 * green), round(255 * blue)
