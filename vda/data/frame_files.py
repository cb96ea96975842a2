"""Shared parts of the readers of numbered frames: splits with words, listings, runs without a gap, clips of files."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vda.data.class_maps import CLASS_MAPS, palette
from vda.data.clip import FlowField, Image, LabelMap, VideoDataset
from vda.data.labels import IdTable, check_same_size, image_size, read_image, to_train_ids
from vda.data.problems import problem
from vda.data.transforms import resize_image, resize_label
from vda.errors import UsageError
from vda.progress import progress


@dataclass(frozen=True, eq=False)
class LabelFormat:
    """How label files are read. header: (height, width) of a file; read: its raw ids [H, W]; table: their classes."""

    header: Callable[[Path], tuple[int, int]]
    read: Callable[[Path], LabelMap]
    table: IdTable


@dataclass(frozen=True)
class FileClip:
    """Image files, some or all with a label file; read and resized to `size` (height, width) when asked for.

    Paths are kept as text, a fifth of the memory. upper: share of the rows, from the top, that is used.
    """

    name: str
    frame_names: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str | None, ...]
    format: LabelFormat
    size: tuple[int, int]
    upper: float = 1.0

    def __len__(self) -> int:
        return len(self.frame_names)

    def frame(self, i: int) -> Image:
        image = read_image(Path(self.images[i]))
        return resize_image(image[: self._rows(len(image))], self.size)

    def label(self, i: int) -> LabelMap | None:
        file = self.labels[i]
        if file is None:
            return None
        label = to_train_ids(self.format.read(Path(file)), self.format.table, Path(file))
        return resize_label(label[: self._rows(len(label))], self.size)

    def exact_flow(self, i: int, j: int) -> FlowField | None:
        return None

    def files(self, i: int) -> tuple[str, str | None]:
        """The files of frame i: its image and its label."""
        return self.images[i], self.labels[i]

    def check(self) -> None:
        """UsageError for an image that is missing or none, and for a label of another size or kind; headers only."""
        for image, label in zip(self.images, self.labels, strict=True):
            check_headers(Path(image), None if label is None else Path(label), self.format.header)

    def _rows(self, height: int) -> int:
        return max(1, round(height * self.upper))


def check_headers(image: Path, label: Path | None, label_header: Callable[[Path], tuple[int, int]]) -> None:
    """UsageError for an image that is missing or none, and for a label of another size or kind."""
    image_shape = label_shape = None
    with problem("image"):
        image_shape = image_size(image)
    if label is not None:
        with problem("label" if label.exists() else "pair"):
            label_shape = label_header(label)
    if label is not None and image_shape is not None and label_shape is not None:
        with problem("size"):
            check_same_size(label_shape, image_shape, label, image)


def file_dataset(name: str, class_map: str, clips: Sequence[FileClip], size: tuple[int, int]) -> VideoDataset:
    """The data set of these clips in a named class list; errors as `dataset_of`."""
    return dataset_of(name, tuple(CLASS_MAPS[class_map]), palette(class_map), clips, size)


def dataset_of(
    name: str, classes: tuple[str, ...], palette: NDArray[np.uint8], clips: Sequence[FileClip], size: tuple[int, int]
) -> VideoDataset:
    """The data set of these clips, every header checked. Raises UsageError for a clip that is there twice."""
    for clip, count in Counter(clip.name for clip in clips).items():
        if count > 1:
            with problem("name"):
                raise UsageError(f"{name}: wanted every run of frames once, found {clip} {count} times")
    long = sum(map(len, clips)) >= 10_000
    for each in progress(clips, desc=f"headers of {name}", unit="clip", disable=not long):
        each.check()
    return VideoDataset(name, classes, palette, tuple(clips), size)


def data_root(title: str, root: Path | None, size: tuple[int, int]) -> Path:
    """`root`, where it is a folder and `size` is possible; else UsageError. title: the data set's name in prose."""
    if root is None:
        raise UsageError(f"{title.lower()}: wanted the folder of the data set as its root, found none given")
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise UsageError(f"{root}: wanted the folder of {title}, found {found}")
    if min(size) < 1:
        raise UsageError(f"{title.lower()}: wanted a size of at least 1 x 1, found {size[0]} x {size[1]}")
    return root


def split_words(
    dataset: str, split: str, class_maps: Sequence[str], options: Collection[str] = ()
) -> tuple[str, str, set[str]]:
    """`SPLIT[:WORD]...` as the split, its class map (the first where none is named) and the options named.

    Raises UsageError for another word, for two class maps, and for a split that is no plain name.
    """
    name, *words = split.split(":")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"{dataset}/{split}: wanted a split of letters, digits, - and _, found {name!r}")
    known = [*class_maps, *options]
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            hint = f", perhaps you meant {near[0]}" if near else ""
            raise UsageError(f"{dataset}/{split}: wanted, after the colon, {', '.join(known)}; found {word!r}{hint}")
    maps = [word for word in words if word in class_maps]
    if len(maps) > 1:
        raise UsageError(f"{dataset}/{split}: wanted one class list, found {' and '.join(maps)}")
    return name, (maps or class_maps)[0], {*words} - {*maps}


def numbered_files(folder: Path, pattern: str, shape: str) -> dict[int, str]:
    """Frame number -> path of the images in a folder, in the order of the numbers.

    pattern: regular expression of a name without suffix whose group is the number; shape: the same for people. Raises
    UsageError for a missing folder, one without images, an image of another name, and two of one frame.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: wanted a folder of {shape}, found {'a file' if folder.exists() else 'none'}")
    files: dict[int, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix not in (".png", ".jpg") or name.startswith("."):
            continue
        with problem("name"):
            match = re.fullmatch(pattern, stem)
            if match is None:
                raise UsageError(f"{folder / name}: wanted a name like {shape}, found another")
            path = os.path.join(folder, name)
            if (other := files.setdefault(int(match[1]), path)) != path:
                raise UsageError(f"{path}: wanted one file of this frame, found {os.path.basename(other)} too")
    if not files:
        raise UsageError(f"{folder}: wanted {shape}, found none")
    return dict(sorted(files.items()))


def check_partners(images: dict[int, str], labels: dict[int, str], image_folder: Path, label_folder: Path) -> None:
    """Raises UsageError for a frame without its label and a label without its frame; where problems are collected, they
    are dropped."""
    for number in sorted(images.keys() ^ labels.keys()):
        with problem("pair"):
            there = Path(images.pop(number) if number in images else labels.pop(number))
            if there.parent == image_folder:
                missing = (label_folder / there.name).with_suffix(".png")
                raise UsageError(f"{missing}: wanted the label of frame {there.name}, found no file")
            raise UsageError(f"{image_folder / there.stem}.*: wanted the frame of label {there}, found no file")


def runs(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers cut at every gap: on two sides of one, frames are no neighbours."""
    found: list[list[int]] = []
    for number in numbers:
        if not found or number != found[-1][-1] + 1:
            found.append([])
        found[-1].append(number)
    return found


def read_list(path: Path, wanted: str) -> list[tuple[str, str]]:
    """(where, text) of the lines of a text file; blank ones and those after # are left out.

    Raises UsageError for a missing, unreadable or empty file. wanted: what it lists.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise UsageError(f"{path}: wanted {wanted}, found no file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: wanted {wanted}, found an unreadable file ({error})") from None
    entries = [
        (f"{path}, line {k}", text) for k, line in enumerate(lines, 1) if (text := line.partition("#")[0].strip())
    ]
    if not entries:
        raise UsageError(f"{path}: wanted {wanted}, found no line")
    return entries
