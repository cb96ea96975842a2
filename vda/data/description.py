"""Your own data: a YAML file that says where frames, videos and labels are and what the labels mean (docs/data.md).

`open_dataset("town.yaml/train", ...)` opens one split of it. This file reads the YAML, `vda/data/encoding.py` the part
about labels; `vda/data/entries.py` makes clips of the files that it names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vda.data.clip import VideoDataset
from vda.data.encoding import classes_of, encoding_of
from vda.data.entries import ORDERS, Entry, Reading, clips_of
from vda.data.frame_files import FileClip, dataset_of
from vda.data.labels import image_size
from vda.data.patterns import Pattern
from vda.data.problems import problem
from vda.errors import UsageError
from vda.yaml_file import Section, hint, read_yaml, shown, whole


@dataclass(frozen=True)
class Description:
    """What the YAML file `path` says. palette: [K, 3] uint8 RGB."""

    path: Path
    classes: tuple[str, ...]
    palette: NDArray[np.uint8]
    reading: Reading
    splits: dict[str, tuple[Entry, ...]]

    def entries(self, split: str) -> tuple[Entry, ...]:
        """Raises UsageError, with the nearest name, for a split that there is not."""
        if split not in self.splits:
            known = ", ".join(self.splits)
            raise UsageError(f"{self.path}: wanted a split of {known}, found {split!r}{hint(split, self.splits)}")
        return self.splits[split]


def description_of(name: str) -> tuple[Path, str] | None:
    """(file, split) of a data set's name FILE.yaml/SPLIT, None for another. UsageError where the split is missing."""
    match = re.fullmatch(r"(.+\.ya?ml)(?:/([^/]*))?", name, re.S)
    if match is None:
        return None
    path = Path(match[1])
    if not match[2]:
        splits = ", ".join(read_description(path).splits)
        raise UsageError(f"data set {name!r}: wanted {path}/SPLIT with SPLIT one of {splits}")
    return path, match[2]


def described(path: Path, split: str, size: tuple[int, int] | None) -> VideoDataset:
    """The split of a description, frames read at `size` (height, width), or at that of the first frame.

    Videos are decoded into the description's cache where that is not done yet. Raises UsageError naming the file for
    whatever is not as the description says.
    """
    what = read_description(path)
    if not what.reading.root.is_dir():
        raise UsageError(f"{path}: wanted the folder {what.reading.root} as root, found none")
    clips = [clip for entry in what.entries(split) for clip in clips_of(entry, what.reading)]
    if not clips:
        raise UsageError(f"{path}: wanted frames in the split {split}, found none that can be used")
    size = size or _own_size(clips, path)
    sized = [replace(clip, size=size) for clip in clips]
    return dataset_of(f"{path}/{split}", what.classes, what.palette, sized, size)


def _own_size(clips: list[FileClip], path: Path) -> tuple[int, int]:
    """(height, width) of what is used of the first image; of the first whole one where problems are collected."""
    for clip in clips:
        for image in clip.images:
            with problem("image"):
                height, width = image_size(Path(image))
                return max(1, round(height * clip.upper)), width
    raise UsageError(f"{path}: wanted images that can be read, found none")


def read_description(path: Path) -> Description:
    """Raises UsageError naming the file and the key for whatever is not as docs/data.md says."""
    top = Section(
        read_yaml(path, "a description of a data set"),
        str(path),
        ("root", "classes", "encoding", "upper", "cache", "splits"),
    )
    root = path.parent / top.text("root", ".")
    classes, palette = classes_of(top)
    upper = top.number("upper", 1.0)
    if not 0 < upper <= 1:
        raise UsageError(f"{path}: upper wants a share of the rows above 0 and up to 1, found {upper}")
    format = encoding_of(top.section("encoding", ("by", "values", "ignore", "others")), top, classes, palette)
    splits = top.section("splits", None)
    if not splits.tree:
        raise UsageError(f"{path}: splits wants at least one split, found none")
    found = {}
    for name in splits.tree:
        if not isinstance(name, str) or not name or "/" in name:
            raise UsageError(f"{path}: splits wants names without /, found {shown(name)}")
        found[name] = tuple(_entry(section) for section in splits.sections(name, Entry.KEYS))
    reading = Reading(root, path.parent / top.text("cache", f"{path.stem}.frames"), format, upper)
    return Description(path, classes, palette, reading, found)


def _entry(section: Section) -> Entry:
    """One of a split's entries."""
    frames, video, labels = (_pattern(section, key) for key in ("frames", "video", "labels"))
    if (frames is None) == (video is None):
        raise UsageError(f"{section.where}: wanted either frames or video, found {'both' if frames else 'neither'}")
    for key in ("order", "step") if frames is None else ("cuts",):
        if key in section.tree:
            raise UsageError(f"{section.where}: {key} is for {'frames' if frames is None else 'video'} alone")
    pattern = frames or video
    assert pattern is not None
    wanted = pattern.wildcards + (frames is None)
    if labels is not None and labels.wildcards != wanted:
        raise UsageError(
            f"{section.where}: labels wants {wanted} wildcards, which stand for the same text as those of "
            + (f"frames, found {labels.wildcards}" if frames else f"video and for the frame, found {labels.wildcards}")
        )
    cuts = section.tree.get("cuts", True)
    if not isinstance(cuts, bool) and not (isinstance(cuts, list) and all(whole(n, 10**9) for n in cuts)):
        raise section.wrong("cuts", "true, false or a list of the frames with which shots begin")
    return Entry(
        where=section.where,
        pattern=pattern,
        is_video=frames is None,
        labels=labels,
        order=section.choice("order", ORDERS),
        step=section.count("step", 1),
        every=section.count("every", 1),
        sparse=section.flag("sparse", False),
        cuts=cuts if isinstance(cuts, bool) else tuple(cuts),
    )


def _pattern(section: Section, key: str) -> Pattern | None:
    if key not in section.tree:
        return None
    try:
        return Pattern(section.text(key, ""))
    except UsageError as error:
        raise UsageError(f"{section.where}: {key}: {error}") from None
