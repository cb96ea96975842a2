"""VIPER (Richter, Hayder, Koltun, "Playing for Benchmarks", ICCV 2017): sequences of GTA V, 1920 x 1080, 15 frames/s.

Layout below the root, as it comes: PART/img/SSS/SSS_FFFFF.jpg (or .png), PART/cls/SSS/SSS_FFFFF.png (palette PNG of
class ids), and where wanted PART/flow/SSS/SSS_FFFFF.npz (flow to the next frame); PART is train, val or test.

The downloads are cut by the last digit of the frame number: 0, 1, 2 to 9. Frames of those that are here both as images
and as labels are used, and a clip ends where a number is missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2

from vda.data.class_maps import class_table, maps_of
from vda.data.clip import FlowField, LabelMap, VideoDataset
from vda.data.flow_files import read_flow
from vda.data.frame_files import (
    FileClip,
    LabelFormat,
    check_partners,
    data_root,
    file_dataset,
    numbered_files,
    read_list,
    runs,
    split_words,
)
from vda.data.labels import check_label_header, check_same_size, image_size, read_label
from vda.data.transforms import resize_flow
from vda.errors import UsageError

PARTS = ("train", "val", "test")
UNLABELLED, CAR = 0, 24
read_ids = partial(read_label, palette=True)


@dataclass(frozen=True)
class ViperClip(FileClip):
    """One run of frames; the flow from a frame to the next is known where its file is there."""

    flow_folder: Path = Path()

    def exact_flow(self, i: int, j: int) -> FlowField | None:
        path = self.flow_folder / f"{self.frame_names[i]}.npz"
        if j != i + 1 or not path.is_file():
            return None
        flow, image = read_flow(path), Path(self.images[i])
        check_same_size((flow.shape[1], flow.shape[2]), image_size(image), path, image)
        return resize_flow(flow, self.size)


def viper(split: str, *, root: Path | None, size: tuple[int, int] = (720, 1280)) -> VideoDataset:
    """`PART[:WORD]...` or `LIST[:WORD]...`, read at `size` (height, width); the words are a class map and "ego".

    LIST is a file ROOT/LIST.txt of sequences, one a line: SSS of train, or PART/SSS. So `viper/day` reads day.txt:
    which sequences were filmed by day is not in the data. The camera's own car, the region of cars at the middle of the
    bottom row, is not labelled (as in DA-VSN), with "ego" it is. Frames of test have no labels.

    Raises UsageError naming the file or the line for whatever is not as said above; and on reading, for a damaged image
    and an unknown id.
    """
    folder = data_root("VIPER", root, size)
    name, class_map, options = split_words("viper", split, maps_of("viper"), ("ego",))
    read = read_ids if "ego" in options else without_ego
    labels = LabelFormat(partial(check_label_header, palette=True), read, class_table(class_map, "viper"))
    sequences = _sequences(folder, name)
    clips = [clip for part, sequence in sequences for clip in _clips(folder / part, sequence, labels, size)]
    return file_dataset(f"viper/{split}", class_map, clips, size)


def without_ego(path: Path) -> LabelMap:
    """[H, W] raw ids, with the cars that are connected to the middle of the bottom row made unlabelled."""
    ids = read_ids(path)
    height, width = ids.shape
    if ids[height - 1, width // 2] == CAR:
        cv2.floodFill(ids, None, (width // 2, height - 1), UNLABELLED, flags=8)
    return ids


def _sequences(root: Path, name: str) -> list[tuple[str, str]]:
    """(part, sequence) of a split."""
    if name in PARTS:
        images = root / name / "img"
        found = sorted(p.name for p in images.iterdir() if re.fullmatch(r"\d{3}", p.name)) if images.is_dir() else []
        if not found:
            raise UsageError(f"{images}: wanted folders of sequences, 001 and on, found none")
        return [(name, sequence) for sequence in found]
    wanted = f"the split {', '.join(PARTS)}, or here a list of sequences, one a line"
    sequences = []
    for where, text in read_list(root / f"{name}.txt", wanted):
        match = re.fullmatch(r"(?:(train|val|test)/)?(\d{3})", text)
        if match is None:
            raise UsageError(f"{where}: wanted a sequence, as 001, train/001 or val/001, found {text!r}")
        sequences.append((match[1] or "train", match[2]))
    return sequences


def _clips(part: Path, sequence: str, format: LabelFormat, size: tuple[int, int]) -> list[ViperClip]:
    image_folder, label_folder = part / "img" / sequence, part / "cls" / sequence
    pattern, shape = rf"{sequence}_(\d{{5}})", f"{sequence}_FFFFF"
    images = numbered_files(image_folder, pattern, shape)
    labels: dict[int, str] = {}
    if part.name != "test":
        labels = numbered_files(label_folder, pattern, shape)
        packages = {*map(_package, images)} & {*map(_package, labels)}
        if not packages:
            raise UsageError(f"{label_folder}: wanted labels of the frames in {image_folder}, found those of others")
        images = {number: path for number, path in images.items() if _package(number) in packages}
        labels = {number: path for number, path in labels.items() if _package(number) in packages}
        check_partners(images, labels, image_folder, label_folder)
    return [
        ViperClip(
            f"{part.name}-{sequence}-{run[0]:05d}",
            tuple(f"{sequence}_{number:05d}" for number in run),
            tuple(images[number] for number in run),
            tuple(labels.get(number) for number in run),
            format,
            size,
            flow_folder=part / "flow" / sequence,
        )
        for run in runs([*images])
    ]


def _package(number: int) -> int:
    """Which download a frame is in."""
    return min(number % 10, 2)
