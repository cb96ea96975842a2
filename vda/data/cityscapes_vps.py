"""Cityscapes-VPS (Kim et al., "Video Panoptic Segmentation", CVPR 2020): clips of 30 frames, 2048 x 1024, 17 frames/s.

Layout below the root, as the authors' scripts (prepare_data of mcahny/vps) leave it: PART/img, six frames of each clip;
PART/labelmap, their labels (8-bit train ids, 255 is void); PART/img_all, all frames; panoptic_im_PART_city_vps.json,
which clips the part has. PART is train, val or test.
The scripts make no img_all of train: its frames are then read from leftImg8bit_sequence/val, in the root or beside it.
Labels come from colours, so pole groups are poles and licence plates are cars.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

from vda.data.class_maps import class_table, maps_of
from vda.data.clip import VideoDataset
from vda.data.frame_files import FileClip, LabelFormat, data_root, file_dataset, split_words
from vda.data.labels import check_label_header, read_label
from vda.errors import UsageError

PARTS = ("train", "val", "test")
LENGTH, SPACING = 30, 5  # labelled are the 5th, 10th, ... 30th frame of a clip
NAME = re.compile(r"(\d{4})_(\d{4}_([a-z]+_\d{6})_(\d{6}))_(newImg8bit|leftImg8bit)\.png")
LABEL_SUFFIX = {"newImg8bit": "final_mask", "leftImg8bit": "gtFine_color"}  # the latter is Cityscapes' own, the 20th


class Labelled(NamedTuple):
    """A frame in PART/img. place: CITY_SEQUENCE; number: of the frame in it."""

    number: int
    place: str
    image: str
    label: str


def cityscapes_vps(split: str, *, root: Path | None, size: tuple[int, int] = (512, 1024)) -> VideoDataset:
    """`PART[:WORD]...`, read at `size` (height, width); the words are a class map and "labelled".

    A clip is all its 30 frames, six of which have labels, or with "labelled" only those six. val wants labels, the
    others have them where the folder labelmap is there.

    Raises UsageError naming the file for whatever is not as said above; and on reading, for a damaged image and an
    unknown id.
    """
    folder = data_root("Cityscapes-VPS", root, size)
    name, class_map, options = split_words("cityscapes-vps", split, maps_of("cityscapes"), ("labelled",))
    if name not in PARTS:
        raise UsageError(f"cityscapes-vps: wanted a split of {', '.join(PARTS)}, found {name!r}")
    labels = LabelFormat(check_label_header, read_label, class_table(class_map, "cityscapes"))
    part = folder / name
    label_maps = part / "labelmap"
    if name == "val" and not label_maps.is_dir():
        raise UsageError(
            f"{label_maps}: wanted the labels, made by create_panoptic_labels.py of mcahny/vps, found none"
        )
    video = None if "labelled" in options else _video_folder(folder, part)
    labelled, clips = _labelled_frames(part / "img"), []
    _check_split(folder / f"panoptic_im_{name}_city_vps.json", part / "img", labelled.keys())
    for clip, six in labelled.items():
        files = {frame.number: str(label_maps / frame.label) for frame in six} if label_maps.is_dir() else {}
        first = six[0].number - SPACING + 1
        numbers = [frame.number for frame in six] if video is None else range(first, first + LENGTH)
        names = [f"{six[0].place}_{number:06d}" for number in numbers]
        images = [part / "img" / f.image for f in six] if video is None else [_image(video, frame) for frame in names]
        clips.append(FileClip(clip, (*names,), (*map(str, images),), (*map(files.get, numbers),), labels, size))
    return file_dataset(f"cityscapes-vps/{split}", class_map, clips, size)


def _labelled_frames(folder: Path) -> dict[str, list[Labelled]]:
    """Clip -> its six labelled frames."""
    clips: dict[str, list[Labelled]] = defaultdict(list)
    for path in sorted(folder.glob("[!.]*.png")):
        match = NAME.fullmatch(path.name)
        if match is None:
            raise UsageError(f"{path}: wanted a name like VVVV_NNNN_CITY_SSSSSS_FFFFFF_newImg8bit.png, found another")
        clip, rest, place, number, kind = match.groups()
        clips[clip].append(Labelled(int(number), place, path.name, f"{clip}_{rest}_{LABEL_SUFFIX[kind]}.png"))
    if not clips:
        raise UsageError(
            f"{folder}: wanted the labelled frames, made by fetch_city_images.py of mcahny/vps, found none"
        )
    for clip, frames in clips.items():
        numbers = [frame.number for frame in frames]
        first = numbers[0]
        if numbers != [*range(first, first + LENGTH, SPACING)] or len({frame.place for frame in frames}) > 1:
            raise UsageError(
                f"{folder}: wanted {LENGTH // SPACING} frames of clip {clip}, {SPACING} apart, found "
                f"{', '.join(f'{frame.place}_{frame.number:06d}' for frame in frames)}"
            )
    return clips


def _check_split(path: Path, folder: Path, clips: Set[str]) -> None:
    """Raises UsageError where the list of a part, if it is there, has other clips than the part's folder."""
    if not path.exists():
        return
    try:
        listed = {str(image["file_name"])[:4] for image in json.loads(path.read_text())["images"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{path}: wanted JSON with the file_name of all images, found another file") from None
    for clip in sorted(listed ^ clips):
        found = f"none of {clip}" if clip in listed else f"{clip} too"
        raise UsageError(f"{folder}: wanted the clips that {path.name} lists, found {found}")


def _video_folder(root: Path, part: Path) -> Path:
    """The first folder there is of those that can hold all frames."""
    sequences = Path("leftImg8bit_sequence", "val")
    for folder in (part / "img_all", root / sequences, root.parent / sequences):
        if folder.is_dir():
            return folder
    raise UsageError(
        f"{part / 'img_all'}: wanted all frames here or in {root / sequences}, found neither; "
        f"cityscapes-vps/{part.name}:labelled needs only the labelled ones"
    )


def _image(folder: Path, frame: str) -> Path:
    """File of a frame in img_all, or in leftImg8bit_sequence/val, which has a folder for each city."""
    return (folder if folder.name == "img_all" else folder / frame.split("_")[0]) / f"{frame}_leftImg8bit.png"
