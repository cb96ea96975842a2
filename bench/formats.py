"""Frames and labels in the forms in which data sets come, written to be read by bench_loader.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as Pillow

from vda.data.clip import LabelMap
from vda.data.frame_files import FileClip, LabelFormat
from vda.data.labels import (
    check_colour_label_header,
    check_deep_label_header,
    check_label_header,
    id_table,
    read_colour_label,
    read_deep_label,
    read_label,
    write_label,
)
from vda.data.synthetic import embedded
from vda.data.transforms import resize_label

CLASSES = 32
_COLOURS = {(k, 255 - k, 7 * k): k for k in range(CLASSES)}
_PALETTE = np.array([*_COLOURS], np.uint8)
_TABLE = id_table({k: k for k in range(CLASSES)} | {255: 255})


@dataclass(frozen=True)
class Format:
    """size: height and width of the files. suffix: of a frame. write, labels: how a label is written and read."""

    size: tuple[int, int]
    suffix: str
    write: Callable[[Path, LabelMap], object]
    labels: LabelFormat


def _write_palette(path: Path, label: LabelMap) -> None:
    image = Pillow.frombytes("P", label.shape[::-1], label.tobytes())
    image.putpalette(_PALETTE.ravel().tolist())
    image.save(path)


def _write_colours(path: Path, label: LabelMap) -> None:
    Pillow.fromarray(_PALETTE[label]).save(path)


def _write_deep(path: Path, label: LabelMap) -> None:
    cv2.imwrite(str(path), np.stack([0 * label, label, label], -1).astype(np.uint16))


_palette = LabelFormat(partial(check_label_header, palette=True), partial(read_label, palette=True), _TABLE)

# "frame, label" -> its form
FORMATS: dict[str, Format] = {
    "jpg, palette": Format((1080, 1920), ".jpg", _write_palette, _palette),  # VIPER offers both
    "png, palette": Format((1080, 1920), ".png", _write_palette, _palette),
    # Cityscapes
    "png, 8 bits": Format((1024, 2048), ".png", write_label, LabelFormat(check_label_header, read_label, _TABLE)),
    "png, colours": Format(  # CamVid as published
        (720, 960),
        ".png",
        _write_colours,
        LabelFormat(check_colour_label_header, partial(read_colour_label, table=_COLOURS), _TABLE),
    ),
    "png, 16 bits": Format(  # SYNTHIA-Seq
        (760, 1280), ".png", _write_deep, LabelFormat(check_deep_label_header, read_deep_label, _TABLE)
    ),
}


def clip_of(form: Format, folder: Path, count: int, size: tuple[int, int], *, small: bool) -> FileClip:
    """`count` frames of the embedded world as files of the form, to be read at `size`; small: half of that as files.

    Their pixels are drawn at `size` and enlarged, with a camera's noise, which is most of what a PNG has to hold.
    """
    source = embedded("simulator", size=size, clips=1).clips[0]
    height, width = (max(1, n // 2) for n in size) if small else form.size
    rng = np.random.default_rng(0)
    for i in range(count):
        label = source.label(i)
        assert label is not None
        frame = cv2.resize(source.frame(i), (width, height), interpolation=cv2.INTER_LINEAR)
        noisy = np.clip(frame + rng.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)
        Pillow.fromarray(noisy).save(folder / f"{i}{form.suffix}", quality=95)  # which a PNG ignores
        form.write(folder / f"label{i}.png", resize_label(label, (height, width)))
    return FileClip(
        "clip",
        tuple(map(str, range(count))),
        tuple(str(folder / f"{i}{form.suffix}") for i in range(count)),
        tuple(str(folder / f"label{i}.png") for i in range(count)),
        form.labels,
        size,
    )
