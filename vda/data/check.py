"""Every file of a data set read whole: what is wrong with it, what its labels hold, and its hashes."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vda.checkpoint import sha256_of
from vda.data import load_dataset
from vda.data.clip import IGNORE, Clip, OfFiles, VideoDataset
from vda.data.entries import VideoClip
from vda.data.labels import UnknownLabel, image_size
from vda.data.manifest import Entry, manifest_file, read_manifest
from vda.data.problems import Kind, Problem, collected
from vda.errors import UsageError
from vda.progress import progress

_AT_ONCE = 512  # frames on their way through the threads


@dataclass
class Findings:
    """What was found in a data set.

    pixels: [256] labelled pixels of every class, at index 255 the ignored ones. problems: by their message. notes: what
    may be meant so. files: of every readable file, for the manifest.
    """

    name: str
    classes: tuple[str, ...] = ()
    clips: int = 0
    frames: int = 0
    labels: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    problems: dict[str, Problem] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, Entry] = field(default_factory=dict)

    def add(self, kind: Kind, message: str) -> None:
        self.problems.setdefault(message, Problem(kind, message))


@dataclass
class _Frame:
    """What one frame's files hold."""

    clip: Clip
    i: int
    hashed: list[str]
    size: tuple[int, int] | None = None
    labelled: bool = False
    pixels: NDArray[np.int64] | None = None
    problems: list[Problem] = field(default_factory=list)
    files: dict[str, Entry] = field(default_factory=dict)


def check(name: str, root: Path | None, workers: int = 2) -> Findings:
    """Reads every file of the data set `name` whole, in `workers` threads.

    Raises UsageError for a data set without files; all that is wrong with those that it has is in the findings.
    """
    findings = Findings(name)
    with collected() as problems:
        try:
            dataset = load_dataset(name, root, None)
        except UsageError as error:
            problems.append(Problem("layout", str(error)))
            dataset = None
    for problem in problems:
        findings.add(problem.kind, problem.message)
    if dataset is None:
        return findings
    if not all(isinstance(clip, OfFiles) for clip in dataset.clips):
        raise UsageError(f"data set {name}: wanted one of files, found one that is made on the spot")
    findings.classes, findings.clips, findings.frames = dataset.classes, len(dataset.clips), dataset.num_frames
    with ThreadPoolExecutor(workers) as pool, progress(total=dataset.num_frames, desc=name, unit="frame") as bar:
        frames = _frames(dataset)
        while chunk := list(islice(frames, _AT_ONCE)):
            for frame in pool.map(_look, chunk):
                _add(findings, frame)
                bar.update()
    _sizes_of_clips(findings, dataset)
    _changed(findings, manifest_file(name, root))
    findings.notes += [*_gaps(dataset), *_same_content(dataset, findings.files), *_absent(findings)]
    return findings


def _frames(dataset: VideoDataset) -> Iterator[_Frame]:
    """All frames; each file is hashed with the first frame that is in it."""
    seen: set[str] = set()
    for clip in dataset.clips:
        for i in range(len(clip)):
            files = [file for file in _files(clip, i) if file is not None and file not in seen]
            seen |= {*files}
            yield _Frame(clip, i, files)


def _files(clip: Clip, i: int) -> tuple[str, str | None]:
    assert isinstance(clip, OfFiles)
    return clip.files(i)


def _look(frame: _Frame) -> _Frame:
    image, label = _files(frame.clip, frame.i)
    frame.labelled = label is not None
    for file in frame.hashed:
        try:
            stat = os.stat(file)
            frame.files[file] = Entry(stat.st_size, stat.st_mtime_ns, sha256_of(Path(file)))
        except OSError:  # reading it says so below
            continue
    try:
        read = frame.clip.frame(frame.i)
        height, width = read.shape[:2]
        frame.size = (height, width) if isinstance(frame.clip, VideoClip) else image_size(Path(image))
    except UsageError as error:
        frame.problems.append(Problem("image", str(error)))
    try:
        ids = frame.clip.label(frame.i)
        frame.pixels = None if ids is None else np.bincount(ids.ravel(), minlength=256)
    except UsageError as error:
        frame.problems.append(Problem("values" if isinstance(error, UnknownLabel) else "label", str(error)))
    return frame


def _add(findings: Findings, frame: _Frame) -> None:
    findings.labels += frame.labelled
    findings.files |= frame.files
    if frame.size is not None:
        findings.sizes[frame.size] += 1
    if frame.pixels is not None:
        findings.pixels += frame.pixels
    for problem in frame.problems:
        findings.add(problem.kind, problem.message)


def _sizes_of_clips(findings: Findings, dataset: VideoDataset) -> None:
    """A clip is of one size; frames are brought to one size, so another shape would be squeezed."""
    if len(findings.sizes) < 2:
        return
    for clip in dataset.clips:
        if isinstance(clip, VideoClip):
            continue
        sizes: dict[str, tuple[int, int]] = {}
        for i in range(len(clip)):
            image = _files(clip, i)[0]
            if image in findings.files:
                try:
                    sizes[image] = image_size(Path(image))
                except UsageError:
                    continue
        usual = Counter(sizes.values()).most_common(1)
        for image, (height, width) in sizes.items():
            if (height, width) != usual[0][0]:
                wanted = "{1} x {0}".format(*usual[0][0])
                findings.add("size", f"{image}: wanted the size of its clip, {wanted}, found {width} x {height}")


def _changed(findings: Findings, manifest: Path | None) -> None:
    """Files that another check has seen with another content, though nothing says that they were written since."""
    if manifest is None or not manifest.is_file():
        return
    try:
        before = read_manifest(manifest)
    except UsageError:
        findings.notes.append(f"{manifest}: is damaged; it is written anew")
        return
    for file, entry in findings.files.items():
        old = before.get(os.path.relpath(file, manifest.parent))
        if old is not None and old[:2] == entry[:2] and old.sha256 != entry.sha256:
            findings.add("changed", f"{file}: wanted the content of the last check, found another of one size and time")


# --- what may be meant so


def _gaps(dataset: VideoDataset) -> list[str]:
    """Numbers that are missing among the frames of a folder, one note for each series."""
    series: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for clip in dataset.clips:
        for i, name in enumerate(clip.frame_names):
            number = re.search(r"\d+(?=\D*$)", name, re.ASCII)
            if number is not None and not isinstance(clip, VideoClip):
                image = _files(clip, i)[0]
                series[os.path.dirname(image), name[: number.start()]][int(number[0])] = image
    notes = []
    for numbers in series.values():
        ordered = sorted(numbers)
        steps = [b - a for a, b in pairwise(ordered)]
        usual = Counter(steps).most_common(1)[0][0] if steps else 1
        gaps = [a for a, step in zip(ordered, steps, strict=False) if step > usual]
        if gaps:
            after = f"the first after {numbers[gaps[0]]}"
            notes.append(
                f"{os.path.dirname(numbers[gaps[0]])}: {len(gaps)} gaps in the numbers, {after}; clips end there"
            )
    return notes


def _same_content(dataset: VideoDataset, files: dict[str, Entry]) -> list[str]:
    """Frames that are one picture: a camera that stood still, or a copy under another name."""
    first: dict[str, str] = {}
    copies = []
    for clip in dataset.clips:
        for i in range(0 if isinstance(clip, VideoClip) else len(clip)):
            image = _files(clip, i)[0]
            if image in files and first.setdefault(files[image].sha256, image) != image:
                copies.append((image, first[files[image].sha256]))
    return [f"{len(copies)} frames are a copy of another; {copies[0][0]} of {copies[0][1]}"] if copies else []


def _absent(findings: Findings) -> list[str]:
    if not findings.labels:
        return []
    absent = [name for k, name in enumerate(findings.classes) if not findings.pixels[k]]
    return [f"no pixel is of {', '.join(absent)}"] if absent else []


def shares(findings: Findings) -> NDArray[np.float64]:
    """[K + 1] percent of the labelled frames' pixels: each class, and what is ignored; NaN without labels."""
    counts = np.append(findings.pixels[: len(findings.classes)], findings.pixels[IGNORE]).astype(np.float64)
    total = counts.sum()
    return 100 * counts / total if total else np.full_like(counts, np.nan)


def compare(all_findings: Sequence[Findings]) -> None:
    """Adds a problem to the last of several where their class lists differ."""
    lists = {findings.name: findings.classes for findings in all_findings if findings.classes}
    if len({*lists.values()}) > 1:
        each = "; ".join(f"{name} has {', '.join(classes)}" for name, classes in lists.items())
        all_findings[-1].add("classes", f"{' and '.join(lists)}: wanted one class list, {each}")
