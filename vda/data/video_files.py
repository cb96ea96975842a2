"""Video files as frames: every frame is decoded once, in order, into a folder of JPEGs that training reads from.

Seeking by OpenCV is not exact for every codec, and decoding up to a frame takes as long as all frames before it; a
folder of frames is exact and as fast as any data set. The folder is made under another name and renamed when it is
complete; a later start goes on where one was stopped. It remembers the hash of the video, so that an edited video is
noticed, and the size of every frame, so that a damaged one is.

Frames are kept at the size of the video, at quality 95 without subsampled colours, a small loss against what
the video's own codec took away.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from vda.checkpoint import atomic_write, sha256_of
from vda.data import scene_cuts
from vda.data.clip import Image
from vda.errors import UsageError
from vda.progress import progress

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own complaints; ours name the file

FORMAT = 1
INDEX = "video.json"
SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv")
_JPEG = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


@dataclass(frozen=True)
class VideoFrames:
    """What a folder of frames holds: every `every`-th frame of the video, from the first.

    sha256, bytes, mtime_ns: of the video file. changes: of every frame of the video against the one before it
    (`scene_cuts.change`). sizes: bytes of the files of the frames that are kept.
    """

    format: int
    every: int
    sha256: str
    bytes: int
    mtime_ns: int
    changes: list[float]
    sizes: list[int]

    @property
    def numbers(self) -> range:
        """Numbers in the video of the frames that are kept, from 0."""
        return range(0, len(self.changes), self.every)


def frame_file(folder: Path, number: int) -> Path:
    """The file of a frame in its folder."""
    return folder / f"{number:06d}.jpg"


def cached_video(video: Path, cache: Path, name: str, every: int = 1) -> tuple[Path, VideoFrames]:
    """The folder with every `every`-th frame of a video, made where it is not there yet, and what it holds.

    cache: folder of all such folders; name: of the video, the same in the next run. Raises UsageError naming the video
    for one that is missing, of another kind than SUFFIXES, damaged or without frames.
    """
    slug = re.sub(r"[^\w.-]+", "-", Path(name).stem)[:60]
    folder = cache / f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}-every{every}"
    check_container(video)
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        return folder, _frames_of(video, folder, every)


def _frames_of(video: Path, folder: Path, every: int) -> VideoFrames:
    there = _read_index(folder)
    if there is not None and (there.every, there.sizes) == (every, _sizes(folder, there)):
        stat = video.stat()
        if (there.bytes, there.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return there
        if there.sha256 == sha256_of(video):  # a copy, or touched
            there = replace(there, mtime_ns=stat.st_mtime_ns)
            _write_index(folder, there)
            return there
        print(f"{video}: is not the video that {folder} was made from; decoding it anew", file=sys.stderr)
    elif folder.exists():
        print(f"{folder}: is damaged; decoding {video} anew", file=sys.stderr)
    return _make(video, folder, every)


def check_container(video: Path) -> None:
    """UsageError unless this is a file of SUFFIXES with the first bytes of one: FFmpeg would also follow playlists."""
    if video.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{video}: wanted a video file ({', '.join(SUFFIXES)}), found {video.suffix or 'no suffix'}")
    try:
        with video.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise UsageError(f"{video}: wanted a video file, cannot read it ({error.strerror})") from None
    quicktime = head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
    if not (quicktime or (head[:4] == b"RIFF" and head[8:] == b"AVI ") or head[:4] == b"\x1aE\xdf\xa3"):
        raise UsageError(f"{video}: wanted an MP4, AVI, WebM or Matroska file, found something else")


def open_video(video: Path) -> cv2.VideoCapture:
    """A video that can be decoded; errors as `check_container`, and for one that cannot."""
    check_container(video)
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise UsageError(f"{video}: wanted a video, found a damaged file or a codec that OpenCV lacks")
    return capture


def decoded(video: Path) -> Iterator[Image]:
    """All frames of a video in order, [H, W, 3] RGB, with a progress bar.

    Raises UsageError naming the video where it cannot be decoded, has no frame, changes its size, or has fewer frames
    than it says (by more than a second's: some headers round, or count frames that no player shows).
    """
    capture = open_video(video)
    try:
        promised = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        second = max(1, round(min(capture.get(cv2.CAP_PROP_FPS), 1000)))
        number, size = 0, None
        with progress(total=promised or None, desc=f"frames of {video.name}", unit="frame") as bar:
            while True:
                read, frame = capture.read()
                if not read:
                    break
                size = size or frame.shape
                if frame.shape != size or frame.ndim != 3:
                    raise UsageError(f"{video}: wanted frames of one size, frame {number} is of another")
                yield np.ascontiguousarray(frame[..., ::-1])
                number += 1
                bar.update()
    except cv2.error as error:
        raise UsageError(f"{video}: wanted a video, OpenCV cannot decode it ({error.err})") from None
    finally:
        capture.release()
    if number == 0 or promised - number > second:
        raise UsageError(f"{video}: wanted {promised or 'some'} frames, could decode {number}; the file is damaged")


def _make(video: Path, folder: Path, every: int) -> VideoFrames:
    """Decodes a video into `folder`; what an interrupted run left in FOLDER.part is not written again."""
    stat, sha256 = video.stat(), sha256_of(video)
    part = folder.with_name(f"{folder.name}.part")
    mark = part / "sha256"
    if not mark.is_file() or mark.read_text() != sha256:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        atomic_write(mark, sha256.encode())
    changes: list[float] = []
    sizes: list[int] = []
    before = None
    for number, frame in enumerate(decoded(video)):
        after = scene_cuts.small(frame)
        changes.append(0.0 if before is None else round(scene_cuts.change(before, after), 3))
        before = after
        if number % every == 0:
            file = frame_file(part, number)
            if not _is_whole(file):
                atomic_write(file, cv2.imencode(".jpg", frame[..., ::-1], _JPEG)[1].tobytes(), durable=False)
            sizes.append(file.stat().st_size)
    frames = VideoFrames(FORMAT, every, sha256, stat.st_size, stat.st_mtime_ns, changes, sizes)
    _write_index(part, frames)
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(part, folder)
    return frames


def _is_whole(file: Path) -> bool:
    """Whether a JPEG is there and was written to its end."""
    try:
        with file.open("rb") as opened:
            opened.seek(-2, os.SEEK_END)
            return opened.read() == b"\xff\xd9"
    except OSError:
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two runs that start together decode a video once; the second waits."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_index(folder: Path, frames: VideoFrames) -> None:
    atomic_write(folder / INDEX, (json.dumps(asdict(frames)) + "\n").encode())


def _read_index(folder: Path) -> VideoFrames | None:
    """What the folder says that it holds; None where it is not there, damaged or of another format."""
    try:
        frames = VideoFrames(**json.loads((folder / INDEX).read_bytes()))
        whole = frames.format == FORMAT and len(frames.numbers) == len(frames.sizes) > 0
        return frames if whole and all(isinstance(x, int | float) for x in frames.changes) else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _sizes(folder: Path, frames: VideoFrames) -> list[int]:
    """Sizes of the frames' files, -1 for one that is missing."""
    try:
        found = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    except OSError:
        found = {}
    return [found.get(frame_file(folder, number).name, -1) for number in frames.numbers]
