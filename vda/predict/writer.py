"""What `vda predict` writes: every clip under a temporary name until it is whole, and a record of the finished ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vda.checkpoint import atomic_write
from vda.data.clip import Image
from vda.data.labels import write_label
from vda.errors import UsageError
from vda.pictures import colour_label, overlay, png
from vda.predict.footage import Footage
from vda.predict.pipeline import Segmented

Kind = Literal["overlay", "labels", "confidence", "colour"]
RECORD = "predict.json"


class Record:
    """OUTPUT/predict.json: what made the predictions, and the clips that are done.

    made_by: what decides the content of the files. Raises UsageError for a folder with something else in it, or with
    the predictions of another checkpoint or setting.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        self.folder, self.made_by = folder, json.loads(json.dumps(made_by))
        self.clips: dict[str, Any] = {}
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: wanted a folder for the predictions, found a file")
        if (folder / RECORD).exists():
            self.clips = self._read()
        elif folder.is_dir() and any(folder.iterdir()):
            raise UsageError(
                f"{folder}: wanted a new or empty folder, or one of earlier predictions, found other files"
            )

    def _read(self) -> dict[str, Any]:
        path = self.folder / RECORD
        try:
            found = json.loads(path.read_text())
            clips = dict(found.pop("clips"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UsageError(f"{path}: wanted the record of earlier predictions, the file is damaged") from None
        for key, value in self.made_by.items():
            if found.get(key) != value:
                raise UsageError(
                    f"{self.folder}: holds predictions with {key} {_short(found.get(key))}, wanted {_short(value)}; "
                    "choose another folder"
                )
        return clips

    def done(self, clip: Footage) -> bool:
        """Whether the clip is finished. Raises UsageError where one of its name, but of another source, is."""
        known = self.clips.get(clip.name)
        if known is not None and known["source"] != _source(clip):
            raise UsageError(
                f"{self.folder}: holds a clip {clip.name} of another source, {_short(known['source'])}, wanted that of "
                f"{clip.source.resolve()} as it is; choose another folder"
            )
        return known is not None

    def add(self, clip: Footage, frames: int) -> None:
        """Notes that a clip is finished."""
        size = list(clip.size)
        self.clips[clip.name] = {"source": _source(clip), "frames": frames, "rate": clip.rate, "size": size}
        self.write()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = self.made_by | {"clips": self.clips}
        atomic_write(self.folder / RECORD, (json.dumps(content, indent=1) + "\n").encode())


def _source(clip: Footage) -> dict[str, Any]:
    """What tells a source from another, and from what it was before it was edited."""
    stat = clip.source.stat()
    return {"path": str(clip.source.resolve()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class ClipWriter:
    """The files of one clip; a context whose end without an error moves them to their places, one kind at a time.

    overlay/CLIP.webm (VP9; CLIP.png of a single image), and labels, confidence and colour as KIND/CLIP/FRAME.png. After
    an error nothing of the clip is left.
    """

    def __init__(
        self, folder: Path, clip: Footage, kinds: tuple[Kind, ...], palette: NDArray[np.uint8], opacity: float
    ) -> None:
        self.folder, self.clip, self.kinds, self.palette, self.opacity = folder, clip, kinds, palette, opacity
        self.work = folder / f".{clip.name}.tmp"
        self.video: VP9Writer | None = None

    def __enter__(self) -> ClipWriter:
        shutil.rmtree(self.work, ignore_errors=True)  # of a run that was killed
        self.work.mkdir(parents=True)
        if "overlay" in self.kinds and not self.clip.still:
            self.video = VP9Writer(self.work / "overlay.webm", self.clip.size, self.clip.rate)
        return self

    def write(self, found: Segmented) -> None:
        """Writes one frame, in every kind."""
        file = f"{found.name}.png"
        if "overlay" in self.kinds:
            shown = overlay(found.frame, found.label, self.palette, self.opacity)
            if self.video is None:
                atomic_write(self.work / "overlay.png", png(shown))
            else:
                self.video.write(shown)
        if "labels" in self.kinds:
            write_label(self.work / "labels" / file, found.label)
        if "confidence" in self.kinds:
            assert found.confidence is not None
            write_label(self.work / "confidence" / file, found.confidence)
        if "colour" in self.kinds:
            (self.work / "colour").mkdir(exist_ok=True)
            atomic_write(self.work / "colour" / file, png(colour_label(found.label, self.palette)))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if self.video is not None:
                self.video.close(whole=error is None)
            if error is None:
                for made in self.work.iterdir():
                    place = self.folder / made.stem / f"{self.clip.name}{made.suffix}"
                    place.parent.mkdir(exist_ok=True)
                    if place.is_dir():
                        shutil.rmtree(place)  # of a run that was killed between two kinds
                    os.replace(made, place)
        finally:
            shutil.rmtree(self.work, ignore_errors=True)


class VP9Writer:
    """VP9 in WebM by OpenCV, which wants even sizes: the last row or column of an odd one is there twice."""

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        self.path, self.size, self.frames = path, size, 0
        height, width = (n + n % 2 for n in size)
        with _silenced():
            code = cv2.VideoWriter.fourcc(*"VP90")
            self.writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, (width, height))
        if not self.writer.isOpened():
            raise UsageError(
                f"overlay: wanted to write VP9 of {width} x {height} at {rate:g} frames per second, this OpenCV "
                "cannot; leave overlay out of --write"
            )

    def write(self, image: Image) -> None:
        """Adds one RGB image [H, W, 3]."""
        bottom, right = (n % 2 for n in self.size)
        self.writer.write(cv2.copyMakeBorder(image[..., ::-1], 0, bottom, 0, right, cv2.BORDER_REPLICATE))
        self.frames += 1

    def close(self, *, whole: bool) -> None:
        """Ends the file. whole: whether to count its frames, since OpenCV says nothing of a full disk (OSError)."""
        self.writer.release()
        if whole and (found := _packets(self.path)) != self.frames:
            raise OSError(f"{self.path}: wrote {self.frames} frames, the file has {found}; is the disk full?")
        if whole:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())  # before it gets its name


def _packets(path: Path) -> int:
    """Frames of a video file, counted without decoding them."""
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    video.set(cv2.CAP_PROP_FORMAT, -1)
    count = 0
    while video.grab():
        count += 1
    video.release()
    return count


@contextmanager
def _silenced() -> Iterator[None]:
    """Inside, standard error goes nowhere: OpenCV warns there of every WebM, whose format has no tags of its own."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
