"""CamVid (Brostow et al., Pattern Recognition Letters 30, 2009) by video sequence, 11 classes, 480 x 360.

Layout below the root: `splits.json`, `SEQUENCE/frames/NAME.jpg`, `SEQUENCE/labels/NAME.png` (0..10, 255 is
void). `splits.json` lists the frames of each sequence in time order and its `contiguous_runs`; one run is one
clip, for frames on two sides of a gap are not neighbours. Labels come once a second, so neighbours are a
second apart, except in 0016E5_15Hz (1/15 s).
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vda.data.clip import IGNORE, FlowField, Image, LabelMap, VideoDataset
from vda.data.frame_files import check_headers, data_root
from vda.data.labels import (
    check_label_header,
    id_table,
    read_image,
    read_label,
    to_train_ids,
)
from vda.data.problems import problem
from vda.data.transforms import resize_image, resize_label
from vda.errors import UsageError

# class -> display colour, in label order
_COLOURS = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Sidewalk": (0, 0, 192),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
CLASSES = tuple(_COLOURS)
_TABLE = id_table({i: i for i in (*range(len(CLASSES)), IGNORE)})

_SUNNY = ("0006R0", "0016E5", "0016E5_15Hz", "Seq05VD")
_DUSK = ("0001TP",)
Part = Literal["all", "first half", "second half"]

# split -> sequences and the part of each. The paper's "foggy" sequence is 0001TP, filmed at dusk; its halves
# are the train and test frames of the SegNet release.
SPLITS: dict[str, tuple[tuple[str, ...], Part]] = {
    "sunny": (_SUNNY, "all"),
    "sunny-15hz": (("0016E5_15Hz",), "all"),
    "dusk": (_DUSK, "all"),
    "dusk-train": (_DUSK, "first half"),
    "dusk-val": (_DUSK, "second half"),
}


@dataclass(frozen=True)
class CamVidClip:
    """One contiguous run; frames and labels are read and resized to `size` (height, width) when asked for."""

    name: str
    frame_names: tuple[str, ...]
    folder: Path
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.frame_names)

    def frame(self, i: int) -> Image:
        return resize_image(read_image(self.frame_path(i)), self.size)

    def label(self, i: int) -> LabelMap:
        path = self.label_path(i)
        return resize_label(to_train_ids(read_label(path), _TABLE, path), self.size)

    def exact_flow(self, i: int, j: int) -> FlowField | None:
        return None

    def frame_path(self, i: int) -> Path:
        return self.folder / "frames" / f"{self.frame_names[i]}.jpg"

    def label_path(self, i: int) -> Path:
        return self.folder / "labels" / f"{self.frame_names[i]}.png"

    def files(self, i: int) -> tuple[str, str]:
        """The files of frame i: its image and its label."""
        return str(self.frame_path(i)), str(self.label_path(i))

    def check(self) -> None:
        """Every frame has a label of its own size and of the right kind, told from the files' headers."""
        for i in range(len(self)):
            image, label = self.frame_path(i), self.label_path(i)
            with problem("pair"):
                if not image.is_file():
                    raise UsageError(f"{image}: wanted a frame that splits.json names, found no file")
                if not label.is_file():
                    raise UsageError(f"{label}: wanted the label of frame {image.name}, found no file")
                check_headers(image, label, check_label_header)


def camvid(split: str, *, root: Path | None, size: tuple[int, int] = (360, 480)) -> VideoDataset:
    """The clips of one of SPLITS below `root`, read at `size` (height, width).

    All headers are read once here, pixels only when a frame is asked for. Raises UsageError naming the file
    for a missing root, frame or label, a `splits.json` that is missing, unreadable or of another class list,
    a run of one frame, a label of another size or kind; and on reading, for a damaged image or an unknown
    label value.
    """
    if split not in SPLITS:
        near = difflib.get_close_matches(split, SPLITS, n=1)
        hint = f", perhaps you meant {near[0]}" if near else ""
        raise UsageError(f"camvid: wanted a split of {', '.join(SPLITS)}, found {split!r}{hint}")
    root = data_root("CamVid", root, size)
    index = _read_index(root / "splits.json")
    sequences, part = SPLITS[split]
    clips = [clip for sequence in sequences for clip in _clips(index, root, sequence, part, size)]
    for clip in clips:
        clip.check()
    palette = np.array(list(_COLOURS.values()), np.uint8)
    return VideoDataset(f"camvid/{split}", CLASSES, palette, tuple(clips), size)


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: wanted the list of sequences of CamVid, found no file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: wanted JSON, found an unreadable file ({error})") from None
    if not isinstance(index, dict) or not isinstance(index.get("sequences"), dict):
        raise UsageError(f"{path}: wanted the key 'sequences', found none")
    if index.get("classes") != list(CLASSES):
        raise UsageError(f"{path}: wanted 'classes' {', '.join(CLASSES)}, found {index.get('classes')}")
    return index


def _clips(index: dict[str, Any], root: Path, sequence: str, part: Part, size: tuple[int, int]) -> list[CamVidClip]:
    where = f"{root / 'splits.json'}: sequence {sequence}"
    try:
        names = [str(name) for name in index["sequences"][sequence]["frames"]]
        runs = [(int(r["start"]), int(r["stop"])) for r in index["sequences"][sequence]["contiguous_runs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{where}: wanted 'frames' and 'contiguous_runs' of start and stop, found none ({error})"
        ) from None
    for name in names:
        if Path(name).name != name:
            raise UsageError(f"{where}: wanted plain file names as frames, found {name!r}")
    middle = len(names) // 2
    first = middle if part == "second half" else 0
    last = middle if part == "first half" else len(names)
    suffix = {"all": "", "first half": "-train", "second half": "-val"}[part]
    clips = []
    for number, (start, stop) in enumerate(runs):
        if not 0 <= start < stop <= len(names):
            raise UsageError(f"{where}: wanted runs within its {len(names)} frames, found {start}..{stop}")
        start, stop = max(start, first), min(stop, last)
        if stop - start == 1:
            found = names[start]
            raise UsageError(f"{where}: wanted clips of at least 2 frames, found the single frame {found}")
        if stop > start:
            name = f"{sequence}{suffix}" + (f"-{number}" if len(runs) > 1 else "")
            clips.append(CamVidClip(name, tuple(names[start:stop]), root / sequence, size))
    if not clips:
        raise UsageError(f"{where}: wanted frames for its {part} part, found none")
    return clips
