"""From the entries of a description to clips: which files are frames of one shot, in which order, with which labels."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, NamedTuple

from vda.data import scene_cuts
from vda.data.frame_files import FileClip, LabelFormat
from vda.data.patterns import Pattern, Wildcards
from vda.data.problems import problem
from vda.data.video_files import VideoFrames, cached_video, frame_file
from vda.errors import UsageError

UNDECIDED = (0, 0)  # size of a clip
ORDERS = ("number", "name")


@dataclass(frozen=True)
class Entry:
    """Frames or videos of a split; docs/data.md says what the keys mean. where: the file and the key, for messages."""

    KEYS: ClassVar = ("frames", "video", "labels", "order", "step", "every", "sparse", "cuts")
    where: str
    pattern: Pattern
    is_video: bool = False
    labels: Pattern | None = None
    order: str = "number"
    step: int = 1
    every: int = 1
    sparse: bool = False
    cuts: bool | tuple[int, ...] = True


@dataclass(frozen=True)
class Reading:
    """Where the files of a description are and how they are read. root: patterns are below it; cache: of frames of
    videos; upper: share of the rows, from the top, that is used."""

    root: Path
    cache: Path
    format: LabelFormat
    upper: float = 1.0


class Frame(NamedTuple):
    """name: of the frame in its clip; image, label: files below the root."""

    name: str
    image: str
    label: str | None


class Shot(NamedTuple):
    """Frames in their order, without a gap."""

    name: str
    frames: list[Frame]


@dataclass(frozen=True)
class VideoClip(FileClip):
    """A shot of a video file, read from its decoded frames."""

    video: str = ""

    def files(self, i: int) -> tuple[str, str | None]:
        """The files of frame i: the whole video, and the label of the frame."""
        return self.video, self.labels[i]


def clips_of(entry: Entry, reading: Reading) -> list[FileClip]:
    """The clips of an entry; their `size` is not decided yet. Raises UsageError naming the entry or the file."""
    return _video_clips(entry, reading) if entry.is_video else _frame_clips(entry, reading)


# --- frames that are files


def _frame_clips(entry: Entry, reading: Reading) -> list[FileClip]:
    clips = []
    for shot in shots(entry, lambda pattern: pattern.files(reading.root), reading.root):
        names, images, labels = zip(*shot.frames, strict=True)
        images = tuple(str(reading.root / image) for image in images)
        labels = tuple(label and str(reading.root / label) for label in labels)
        clips.append(FileClip(shot.name, names, images, labels, reading.format, UNDECIDED, reading.upper))
    return clips


def shots(entry: Entry, files: Callable[[Pattern], Mapping[Wildcards, str]], root: Path) -> list[Shot]:
    """The shots of an entry of frames. files: those below `root` that fit a pattern, on a disk or in a zip file.

    Raises UsageError for a pattern without files, names that do not tell the order, frames without label and labels
    without frame, and frames none of which are neighbours.
    """
    images = files(entry.pattern)
    if not images:
        raise UsageError(f"{entry.where}: wanted files like {entry.pattern.text}, found none")
    labels = {} if entry.labels is None else dict(files(entry.labels))
    images = _paired(entry, images, labels, root)
    groups: dict[str, dict[int | str, Frame]] = defaultdict(dict)
    for key, image in images.items():
        with problem("name"):
            group, place, name = _place(entry, image)
            frame = Frame(name, image, labels.get(key))
            if (other := groups[group].setdefault(place, frame)) is not frame:
                raise UsageError(f"{root / image}: wanted one file of this frame, found {other.image} too")
    found = [shot for group, frames in groups.items() for shot in _runs(entry, group, frames)]
    if found and max(len(shot.frames) for shot in found) == 1 < max(map(len, groups.values())):
        raise UsageError(_not_neighbours(entry, max(groups.values(), key=len)))
    return [Shot(shot.name, shot.frames[:: entry.every]) for shot in found]


def _paired(
    entry: Entry, images: Mapping[Wildcards, str], labels: dict[Wildcards, str], root: Path
) -> dict[Wildcards, str]:
    """The images that may be used; where problems are collected, those without a wanted label are dropped."""
    for key in sorted(labels.keys() - images.keys()):
        with problem("pair"):
            raise UsageError(f"{root / labels[key]}: wanted its frame, like {entry.pattern.text}, found no file")
    if entry.labels is None or entry.sparse:
        return dict(images)
    for key in sorted(images.keys() - labels.keys()):
        with problem("pair"):
            raise UsageError(f"{root / images[key]}: wanted its label, like {entry.labels.text}, found no file")
    return {key: image for key, image in images.items() if key in labels}


def _place(entry: Entry, image: str) -> tuple[str, int | str, str]:
    """(what names the video, the place in it, the name of the frame) of an image: from the last wildcard, or from the
    whole name where there is none."""
    found = entry.pattern.match(image)
    assert found is not None
    match, wildcards = found
    start, end = match.span(len(wildcards)) if wildcards else (0, len(image))
    text, name = image[start:end], safe_name(image[start:end] if wildcards else Path(image).stem)
    if entry.order == "name":
        return f"{image[:start]}{image[end:]}", text, name
    number = re.search(r"\d+(?=\D*$)", text[-200:], re.ASCII)
    if number is None:
        raise UsageError(
            f"{image}: wanted a number in what the last wildcard of {entry.pattern.text} stands for, found {text!r}; "
            "`order: name` goes by names"
        )
    start = end - len(text[-200:]) + number.start()
    return f"{image[:start]}{image[start + len(number[0]) :]}", int(number[0]), name


def _runs(entry: Entry, group: str, frames: Mapping[int | str, Frame]) -> list[Shot]:
    """Frames in order, cut where a number is missing."""
    name = safe_name(re.sub(r"\.\w+$", "", group)).strip("-_.") or "frames"
    runs: list[list[Frame]] = []
    last: int | str | None = None
    numbers: list[int | str] = []
    for place in sorted(frames):
        if last is None or (isinstance(place, int) and isinstance(last, int) and place - last != entry.step):
            runs.append([])
            numbers.append(place)
        runs[-1].append(frames[place])
        last = place
    if len(runs) == 1:
        return [Shot(name, runs[0])]
    return [Shot(f"{name}-{number:06d}", run) for number, run in zip(numbers, runs, strict=True)]


def _not_neighbours(entry: Entry, frames: Mapping[int | str, Frame]) -> str:
    places = sorted(place for place in frames if isinstance(place, int))
    nearest = min(b - a for a, b in pairwise(places))
    first = frames[places[0]].image
    return (
        f"{entry.where}: wanted frames whose numbers are {entry.step} apart, those like {first} are {nearest} apart or "
        f"more; say `step: {nearest}` where these are neighbours"
    )


def safe_name(text: str) -> str:
    """As a name of a file."""
    return re.sub(r"[^\w.-]+", "-", text).lstrip(".")[:150] or "-"


# --- videos


def _video_clips(entry: Entry, reading: Reading) -> list[FileClip]:
    videos = entry.pattern.files(reading.root)
    if not videos:
        raise UsageError(f"{entry.where}: wanted video files like {entry.pattern.text}, found none")
    labels: dict[Wildcards, dict[int, str]] = defaultdict(dict)
    for key, file in ({} if entry.labels is None else entry.labels.files(reading.root)).items():
        with problem("pair"):
            if key[:-1] not in videos or not re.fullmatch(r"\d{1,9}", key[-1], re.ASCII):
                raise UsageError(
                    f"{reading.root / file}: wanted the label of a frame of a video, found no such video or number"
                )
            numbered = labels[key[:-1]]
            if (other := numbered.setdefault(int(key[-1]), str(reading.root / file))) != str(reading.root / file):
                raise UsageError(f"{reading.root / file}: wanted one label of this frame, found {other} too")
    names = _names(videos.values())
    clips: list[FileClip] = []
    for key, video in videos.items():
        with problem("image"):
            clips += _shots_of_video(entry, reading, video, names[video], labels[key])
    return clips


def _shots_of_video(entry: Entry, reading: Reading, video: str, name: str, labels: Mapping[int, str]) -> list[FileClip]:
    """labels: by the number of the frame in the video."""
    path = reading.root / video
    folder, frames = cached_video(path, reading.cache, video, entry.every)
    edges = _edges(entry, frames, path)
    if labels and max(labels) >= edges[-1]:
        raise UsageError(f"{labels[max(labels)]}: wanted the label of one of the {edges[-1]} frames of {path}")
    unused = sorted(labels.keys() - {*frames.numbers})
    if unused:
        raise UsageError(
            f"{labels[unused[0]]}: wanted labels of the frames that are read, every {entry.every}, found one of another"
        )
    clips: list[FileClip] = []
    for start, stop in pairwise(edges):
        numbers = [number for number in frames.numbers if start <= number < stop]
        masks = tuple(labels.get(number) for number in numbers)
        if entry.labels is not None and not entry.sparse and None in masks:
            missing = numbers[masks.index(None)]
            raise UsageError(f"{path}: wanted a label like {entry.labels.text} for frame {missing}, found no file")
        if numbers:
            clips.append(
                VideoClip(
                    name if len(edges) == 2 else f"{name}-{start:06d}",
                    tuple(f"{number:06d}" for number in numbers),
                    tuple(str(frame_file(folder, number)) for number in numbers),
                    masks,
                    reading.format,
                    UNDECIDED,
                    reading.upper,
                    video=str(path),
                )
            )
    return clips


def _edges(entry: Entry, frames: VideoFrames, video: Path) -> list[int]:
    """0, the frames with which later shots begin, and the number of frames."""
    length = len(frames.changes)
    if isinstance(entry.cuts, bool):
        found = scene_cuts.cuts(frames.changes) if entry.cuts else []
    else:
        found = sorted({*entry.cuts} - {0})
    if found and found[-1] >= length:
        raise UsageError(f"{entry.where}: cuts wants frames of the {length} of {video}, found {found[-1]}")
    return [0, *found, length]


def _names(videos: Iterable[str]) -> dict[str, str]:
    """Video -> name of its clips: that of the file, or with its folders where two have one name."""
    stems = {video: safe_name(Path(video).stem) for video in videos}
    count = Counter(stems.values())
    return {video: stem if count[stem] == 1 else safe_name(video).strip("-_.") for video, stem in stems.items()}
