"""What `vda predict` reads: a video file, folders of images, or one image, frame after frame in constant memory."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vda.data.clip import Image
from vda.data.entries import safe_name
from vda.data.labels import image_size, read_image
from vda.data.video_files import SUFFIXES, open_video
from vda.errors import UsageError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_RATE_OF_IMAGES = 25.0


@dataclass(frozen=True)
class Footage:
    """One clip: `frames()` reads (name, RGB image [H, W, 3]) in turn, from the first one each time.

    name: safe as a folder name. source: its file or folder. size: (height, width) of every frame. rate: frames per
    second. count: frames, by the header for a video. still: whether it is one image.
    """

    name: str
    source: Path
    size: tuple[int, int]
    rate: float
    count: int
    frames: Callable[[], Iterator[tuple[str, Image]]]
    still: bool = False


def open_footage(path: Path, rate: float | None = None) -> list[Footage]:
    """The clips of `path`: one of a video, an image or a folder of images; one for each in a folder of videos, or of
    folders of images.

    rate: frames per second instead of the video's own (of images: 25). Raises UsageError for anything else, for images
    of a clip that differ in size, and for two images that would have one name.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _distinct(path, _folders(path, rate))
    if not path.exists():
        raise UsageError(f"{path}: wanted a video, an image or a folder of images, found nothing there")
    if suffix in SUFFIXES:
        return [_video(path, rate)]
    if suffix in IMAGES:
        return [_images(path.stem, path, [path], rate or _RATE_OF_IMAGES, still=True)]
    known = ", ".join((*SUFFIXES, *IMAGES))
    raise UsageError(f"{path}: wanted a folder or a file of {known}, found {suffix or 'no suffix'}")


def _distinct(folder: Path, clips: list[Footage]) -> list[Footage]:
    for name, count in Counter(clip.name for clip in clips).items():
        if count > 1:
            raise UsageError(f"{folder}: wanted every name of a clip once, found {count} of {name}")
    return clips


# --- images


def _folders(folder: Path, given: float | None) -> list[Footage]:
    rate = given or _RATE_OF_IMAGES
    images = _listed(folder)
    subfolders = sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=_natural)
    parts = {sub: found for sub in subfolders if (found := _listed(sub))}
    if images and parts:
        raise UsageError(
            f"{folder}: wanted images or folders of images, found both: {images[0].name} and {next(iter(parts)).name}/"
        )
    videos = sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "."), key=_natural)
    if videos and (images or parts):
        raise UsageError(f"{folder}: wanted videos or images, found both: {videos[0].name} and images")
    if videos:
        return [_video(video, given) for video in videos]
    if images:
        return [_images(folder.resolve().name or "images", folder, images, rate)]
    if parts:
        return [_images(sub.name, sub, found, rate) for sub, found in parts.items()]
    raise UsageError(f"{folder}: wanted videos, images ({', '.join(IMAGES)}) or folders of images, found none")


def _listed(folder: Path) -> list[Path]:
    """The images of a folder in the order of their names."""
    images = (p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    return sorted((p for p in images if p.is_file()), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _images(name: str, source: Path, files: list[Path], rate: float, *, still: bool = False) -> Footage:
    for stem, count in Counter(file.stem for file in files).items():
        if count > 1:
            raise UsageError(f"{source}: wanted every name of an image once, found {count} of {stem}")
    size = image_size(files[0])
    for file in files:
        _same_size(str(file), image_size(file), size)

    def frames() -> Iterator[tuple[str, Image]]:
        for file in files:
            yield file.stem, read_image(file)

    return Footage(safe_name(name), source, size, rate, len(files), frames, still)


def _same_size(where: str, found: tuple[int, int], size: tuple[int, int]) -> None:
    if found != size:
        raise UsageError(
            f"{where}: wanted the size of the first frame, {size[1]} x {size[0]}, found {found[1]} x {found[0]}"
        )


# --- video


def _video(path: Path, rate: float | None) -> Footage:
    video = open_video(path)
    whole, first = video.read()
    rate = rate or video.get(cv2.CAP_PROP_FPS)
    count = video.get(cv2.CAP_PROP_FRAME_COUNT)
    video.release()
    if not whole:
        raise UsageError(f"{path}: wanted a video, its first frame cannot be decoded")
    if not 0 < rate < 1000:
        raise UsageError(f"{path}: wanted frames per second in the header, found {rate:g}; give --rate")
    size = (first.shape[0], first.shape[1])  # not the header's: a phone's video is turned while it is read
    known = int(count) if math.isfinite(count) and 0 < count < 2**40 else 0
    return Footage(safe_name(path.stem), path, size, rate, known, lambda: _video_frames(path, size, known))


def _video_frames(path: Path, size: tuple[int, int], count: int) -> Iterator[tuple[str, Image]]:
    """The frames 000000, 000001, .. of a video; UsageError names the first one that is missing."""
    video = open_video(path)
    period = 1000 / max(video.get(cv2.CAP_PROP_FPS), 1e-3)
    number, before, gap = 0, 0.0, None
    try:
        while True:
            read, frame = video.read()
            if not read:
                break
            now = video.get(cv2.CAP_PROP_POS_MSEC)
            if gap is None and number and now - before > 1.5 * period:
                gap = number
            before = now
            _same_size(f"{path}, frame {number}", (frame.shape[0], frame.shape[1]), size)
            yield f"{number:06d}", np.ascontiguousarray(frame[..., ::-1])
            number += 1
    finally:
        video.release()
    # A header may count a few frames that no player shows (cut with an edit list), or round a duration to frames.
    if count - number > max(1, round(1000 / period)):
        missing = number if gap is None else gap
        raise UsageError(
            f"{path}: wanted {count} frames as its header says, frame {missing} is damaged, {number} can be read"
        )
