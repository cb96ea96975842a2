"""Cityscapes' video (Cordts et al., CVPR 2016): snippets of 30 frames, 2048 x 1024, 17 frames/s, the 20th labelled.

Layout below the root, as it comes: leftImg8bit_sequence/PART/CITY/CITY_SSSSSS_FFFFFF_leftImg8bit.png, and
gtFine/PART/CITY/CITY_SSSSSS_FFFFFF_gtFine_labelIds.png, or labelTrainIds.png where Cityscapes' own script has made it.
PART is train, val or test. The number of the labelled frame is 19 in most cities, and anything in those that were
filmed without a stop, so a snippet is found from its label.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from vda.data.class_maps import class_table, label_id_table, maps_of
from vda.data.clip import VideoDataset
from vda.data.frame_files import FileClip, LabelFormat, data_root, file_dataset, split_words
from vda.data.labels import check_label_header, read_label
from vda.errors import UsageError

PARTS = ("train", "val", "test")
BEFORE, AFTER = 19, 10  # frames of a snippet before and after the labelled one
KINDS = ("labelTrainIds", "labelIds")  # the first that is there is read
NAME = re.compile(rf"(\w+?_\d{{6}})_(\d{{6}})_gtFine_({'|'.join(KINDS)})\.png")


class Labelled(NamedTuple):
    """A labelled frame. place: CITY_SEQUENCE; labels: its file of each of KINDS that is there."""

    place: str
    number: int
    labels: dict[str, Path]


def cityscapes(split: str, *, root: Path | None, size: tuple[int, int] = (512, 1024)) -> VideoDataset:
    """`PART[:WORD]...`, read at `size` (height, width); the words are a class map, and "pairs" or "labelled".

    A clip is a snippet of 30 frames, the 20th labelled; with "pairs" that frame and the one before it, on which DA-VSN
    and TPS train, and which then are all that has to be there; with "labelled" that frame alone, read from leftImg8bit
    where leftImg8bit_sequence is not there. Labels of test are blank: they say which frame it is, and are not read.

    Raises UsageError naming the file for whatever is not as said above; and on reading, for a damaged image and an
    unknown id.
    """
    folder = data_root("Cityscapes", root, size)
    name, class_map, options = split_words("cityscapes", split, maps_of("cityscapes"), ("pairs", "labelled"))
    if name not in PARTS:
        raise UsageError(f"cityscapes: wanted a split of {', '.join(PARTS)}, found {name!r}")
    if len(options) > 1:
        raise UsageError(f"cityscapes/{split}: wanted pairs or labelled, found both")
    before, after = {"pairs": (1, 0), "labelled": (0, 0)}[options.pop()] if options else (BEFORE, AFTER)
    videos = folder / "leftImg8bit_sequence" / name
    if (before, after) == (0, 0) and not videos.is_dir():
        videos = folder / "leftImg8bit" / name
    tables = {"labelTrainIds": class_table(class_map, "cityscapes"), "labelIds": label_id_table(class_map)}
    formats = {kind: LabelFormat(check_label_header, read_label, table) for kind, table in tables.items()}
    clips = []
    for frame in _labelled_frames(folder / "gtFine" / name):
        kind = next(kind for kind in KINDS if kind in frame.labels)
        names = [f"{frame.place}_{number:06d}" for number in range(frame.number - before, frame.number + after + 1)]
        video = videos / frame.labels[kind].parent.name
        labels = [None] * before + [None if name == "test" else str(frame.labels[kind])] + [None] * after
        clips.append(
            FileClip(
                f"{frame.place}_{frame.number:06d}",
                tuple(names),
                tuple(str(video / f"{each}_leftImg8bit.png") for each in names),
                tuple(labels),
                formats[kind],
                size,
            )
        )
    return file_dataset(f"cityscapes/{split}", class_map, clips, size)


def _labelled_frames(folder: Path) -> list[Labelled]:
    """The frames with a label in the cities of a folder, in the order of their names."""
    found: dict[tuple[str, int], Labelled] = {}
    for path in sorted(folder.glob("[!.]*/[!.]*_gtFine_label*.png")):
        match = NAME.fullmatch(path.name)
        if match is None or not path.name.startswith(f"{path.parent.name}_"):
            wanted = f"{path.parent.name}_SSSSSS_FFFFFF_gtFine_labelIds.png"
            raise UsageError(f"{path}: wanted a name like {wanted}, found another")
        place, number, kind = match[1], int(match[2]), match[3]
        found.setdefault((place, number), Labelled(place, number, {})).labels[kind] = path
    if not found:
        raise UsageError(f"{folder}: wanted folders of cities with CITY_SSSSSS_FFFFFF_gtFine_labelIds.png, found none")
    for frame in found.values():
        if frame.number < BEFORE:
            path = next(iter(frame.labels.values()))
            raise UsageError(f"{path}: wanted the label of the 20th frame of a snippet, found frame {frame.number}")
    return [found[key] for key in sorted(found)]
