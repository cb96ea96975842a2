"""SYNTHIA-Seq (Ros et al., CVPR 2016): rendered sequences, 1280 x 760, 5 frames/s, eight cameras each.

Layout below the root, as it comes: SYNTHIA-SEQS-04-DAWN/RGB/Stereo_Left/Omni_F/FFFFFF.png, and GT/LABELS in place of
RGB; or as DA-VSN flattens it: SEQS-04-DAWN/rgb/FFFFFF.png and label/FFFFFF.png, one camera. Labels are PNGs of three
16-bit channels, the first of which is the class id.
"""

from __future__ import annotations

import re
from pathlib import Path

from vda.data.class_maps import class_table, maps_of
from vda.data.clip import VideoDataset
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
from vda.data.labels import check_deep_label_header, read_deep_label
from vda.errors import UsageError

FRONT = "Stereo_Left/Omni_F"
ABOVE_THE_BONNET = 640 / 760  # as in DA-VSN: the lowest 120 rows show the camera's own car
LINE = re.compile(r"(\w[\w.-]*)(?:\s+(Stereo_(?:Left|Right)/Omni_[FBLR]))?(?:\s+(\d+)-(\d+))?")


def synthia_seq(split: str, *, root: Path | None, size: tuple[int, int] = (640, 1280)) -> VideoDataset:
    """`SEQUENCE[:WORD]...` or `LIST[:WORD]...`, read at `size` (height, width); the words are a class map and "bonnet".

    SEQUENCE is 04-DAWN and the like. LIST is a file ROOT/LIST.txt with lines SEQUENCE [CAMERA] [FIRST-LAST], such as
    `04-DAWN Stereo_Left/Omni_F 0-849`; without CAMERA that one. With "bonnet" the lowest 120 of 760 rows are kept.

    Raises UsageError naming the file or the line for whatever is not as said above; and on reading, for a damaged image
    and an unknown id.
    """
    folder = data_root("SYNTHIA-Seq", root, size)
    name, class_map, options = split_words("synthia-seq", split, maps_of("synthia"), ("bonnet",))
    upper = 1.0 if "bonnet" in options else ABOVE_THE_BONNET
    labels = LabelFormat(check_deep_label_header, read_deep_label, class_table(class_map, "synthia"))
    lines = [(f"synthia-seq/{split}", name)]
    if _sequence(folder, name) is None:
        lines = read_list(folder / f"{name}.txt", "a sequence, as 04-DAWN, or here a list of sequences")
    clips = [clip for where, line in lines for clip in _clips(folder, where, line, labels, size, upper)]
    return file_dataset(f"synthia-seq/{split}", class_map, clips, size)


def _sequence(root: Path, name: str) -> Path | None:
    """Folder of a sequence."""
    folders = [root / f"{prefix}{name}" for prefix in ("SYNTHIA-SEQS-", "SEQS-", "")]
    return next((folder for folder in folders if folder.is_dir()), None)


def _clips(
    root: Path, where: str, line: str, labels: LabelFormat, size: tuple[int, int], upper: float
) -> list[FileClip]:
    match = LINE.fullmatch(line)
    if match is None:
        raise UsageError(f"{where}: wanted SEQUENCE [{FRONT}] [FIRST-LAST], found {line!r}")
    sequence, camera, first, last = match.groups()
    folder = _sequence(root, sequence)
    if folder is None:
        raise UsageError(f"{where}: wanted a sequence in {root}, found no folder SYNTHIA-SEQS-{sequence}")
    flat = (folder / "label").is_dir()
    if flat and camera:
        raise UsageError(f"{where}: wanted no camera, since {folder} is of one, found {camera}")
    view = "" if flat else camera or FRONT
    image_folder, label_folder = (
        (folder / "rgb", folder / "label") if flat else (folder / "RGB" / view, folder / "GT/LABELS" / view)
    )
    images, masks = (numbered_files(f, r"(\d{6})", "FFFFFF.png") for f in (image_folder, label_folder))
    check_partners(images, masks, image_folder, label_folder)
    numbers = [*images]
    if first is not None:
        numbers = [*range(int(first), int(last) + 1)]
        missing = [number for number in numbers if number not in images]
        if missing or not numbers:
            raise UsageError(f"{where}: wanted frames {first}-{last} of {image_folder}, found not all of them")
    name = "-".join([sequence, *filter(None, view.split("/"))])
    return [
        FileClip(
            f"{name}-{run[0]:06d}",
            tuple(f"{number:06d}" for number in run),
            tuple(images[number] for number in run),
            tuple(masks[number] for number in run),
            labels,
            size,
            upper,
        )
        for run in runs(numbers)
    ]
