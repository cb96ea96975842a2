"""Some of the files of a zip archive, for data sets that are larger than what one needs of them.

Nothing is written outside the folder, nothing is overwritten, and what a zip file says of itself is not believed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from vda.checkpoint import atomic_write
from vda.data.description import description_of, read_description
from vda.data.entries import Entry, shots
from vda.data.patterns import Pattern
from vda.data.problems import collected
from vda.errors import UsageError
from vda.progress import progress

MOST_RATIO = 200  # pictures are packed already; a label of one colour is 100 times smaller at most
SMALL = 1 << 20  # bytes; files of less may have any ratio
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)
Members = Mapping[str, zipfile.ZipInfo]


def extract(
    archive: Path, out: Path, *, match: Sequence[str] = (), every: int = 1, split: str = "", most_bytes: int = 200 << 30
) -> tuple[int, int]:
    """Writes members of a zip archive below `out` under their own names; (files written, files that were there).

    match: patterns (`vda/data/patterns.py`), of the whole name, or without / of its last part; one must fit. every: of
    the files that fit, every N-th in each folder by their numbers. split: FILE.yaml/SPLIT, what that split of a
    description needs of the archive.

    Raises UsageError naming the archive and the member for one that is damaged, packed with a password, no plain file,
    named so that it would lie outside `out`, there twice, or in the way of another; for more than `most_bytes` or than
    the disk has room for, and more than MOST_RATIO times what is packed; and for another file in its place. All of that
    but damage is found before anything is written.
    """
    try:
        opened = zipfile.ZipFile(archive)
    except _DAMAGED as error:
        raise UsageError(f"{archive}: wanted a zip archive, cannot read it ({_reason(error)})") from None
    with opened:
        members = _chosen(_plain_files(opened, archive), archive, out, match, every, split)
        _check_sizes(members, archive, out, most_bytes)
        missing = [info for info in members.values() if not _is_there(info, archive, out)]
        for info in progress(missing, desc=archive.name, unit="file"):
            _write(opened, archive, info, out)
    return len(missing), len(members) - len(missing)


# --- which members


def _plain_files(opened: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """All files of the archive by their names, which are safe."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in opened.infolist():
        name = info.orig_filename
        parts = name.rstrip("/").split("/")
        unsafe = not {"", ".", ".."}.isdisjoint(parts) or re.search(r"[\\\x00-\x1f]|^[A-Za-z]:", name)
        if unsafe or max(len(os.fsencode(part)) for part in parts) > 200:
            raise UsageError(f"{archive}: wanted names of files below one folder, found {name[:200]!r}")
        if info.is_dir():
            continue
        if found.setdefault(name, info) is not info:
            raise UsageError(f"{archive}: wanted every name once, found {name} twice")
    for name in found:
        if clash := next((str(p) for p in PurePosixPath(name).parents if str(p) in found), None):
            raise UsageError(f"{archive}: wanted {clash} to be a file or a folder, found both")
    return found


def _chosen(
    members: Members, archive: Path, out: Path, match: Sequence[str], every: int, split: str
) -> dict[str, zipfile.ZipInfo]:
    names = [*members]
    if split:
        names = _needed(names, out, split)
    if match:
        patterns = [Pattern(text) for text in match]
        names = [n for n in names if any(p.match(n if "/" in p.text else n.rpartition("/")[2]) for p in patterns)]
    if every > 1:
        names = _every(names, every)
    if not names:
        raise UsageError(f"{archive}: wanted files to extract, none of its {len(members)} fits")
    return {name: members[name] for name in names}


def _every(names: Sequence[str], every: int) -> list[str]:
    folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folders[name.rpartition("/")[0]].append(name)
    return [name for folder in folders.values() for name in sorted(folder, key=_numbers)[::every]]


def _numbers(name: str) -> list[tuple[int, str]]:
    """A key that sorts frame 9 before frame 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


def _needed(names: Sequence[str], out: Path, split: str) -> list[str]:
    """What a split of a description needs, its root being where it is."""
    found = description_of(split)
    if found is None:
        raise UsageError(f"--split {split}: wanted FILE.yaml/SPLIT")
    description = read_description(found[0])
    below = {Path(os.path.relpath(out / name, description.reading.root)).as_posix(): name for name in names}
    root = description.reading.root
    needed = [file for entry in description.entries(found[1]) for file in _needed_by(entry, [*below], root)]
    return [below[file] for file in dict.fromkeys(needed)]


def _needed_by(entry: Entry, names: Sequence[str], root: Path) -> list[str]:
    images = entry.pattern.among(names)
    if entry.is_video or not images:  # the frames may be in another archive
        return [*images.values(), *(entry.labels.among(names).values() if entry.labels else ())]
    with collected():  # so may their labels
        found = shots(replace(entry, sparse=True), lambda pattern: pattern.among(names), root)
    frames = [frame for shot in found for frame in shot.frames]
    return [file for frame in frames for file in (frame.image, frame.label) if file is not None]


# --- what may be written


def _check_sizes(members: Members, archive: Path, out: Path, most_bytes: int) -> None:
    for name, info in members.items():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise UsageError(f"{archive}: wanted plain files, {name} is {'a link' if stat.S_ISLNK(kind) else 'none'}")
        if info.flag_bits & 0x1:
            raise UsageError(f"{archive}: wanted files without a password, {name} has one")
        if info.file_size > SMALL and info.file_size > MOST_RATIO * info.compress_size:
            raise UsageError(
                f"{archive}: {name} would grow from {info.compress_size} to {info.file_size} bytes, "
                f"more than {MOST_RATIO} times, which no picture does"
            )
    if sum(info.compress_size for info in members.values()) > archive.stat().st_size:
        raise UsageError(f"{archive}: wanted files one behind the other, found some that share their content")
    total, room = sum(info.file_size for info in members.values()), _room(out)
    if total > most_bytes or total > room:
        limit = f"--most-gb allows {most_bytes >> 30} GiB" if total > most_bytes else f"the disk has {room >> 30} GiB"
        raise UsageError(f"{archive}: wanted to write {total / (1 << 30):.1f} GiB to {out}, but {limit}")


def _room(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent if folder.parent != folder else Path("/")
    return shutil.disk_usage(folder).free


def _is_there(info: zipfile.ZipInfo, archive: Path, out: Path) -> bool:
    """Whether a member was written before. UsageError for another file, and for a way out of the folder by a link."""
    path = out / info.orig_filename
    if not path.parent.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{path.parent}: wanted a folder in {out}, found a link that leads out of it")
    if not os.path.lexists(path):
        return False
    if not path.is_symlink() and path.is_file() and path.stat().st_size == info.file_size and _crc(path) == info.CRC:
        return True
    raise UsageError(f"{path}: wanted nothing or the file of {archive}, found another; remove it to have it written")


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _write(opened: zipfile.ZipFile, archive: Path, info: zipfile.ZipInfo, out: Path) -> None:
    path = out / info.orig_filename
    path.parent.mkdir(parents=True, exist_ok=True)

    def copy(file: BinaryIO) -> None:
        left = info.file_size
        try:
            member = opened.open(info)
        except _DAMAGED as error:
            raise UsageError(f"{archive}: {info.orig_filename} is damaged ({_reason(error)})") from None
        with member:
            while left >= 0 and (block := _block(member, archive, info)):
                left -= len(block)
                if left >= 0:
                    file.write(block)
        if left:
            raise UsageError(f"{archive}: {info.orig_filename} is damaged, wanted {info.file_size} bytes")

    atomic_write(path, copy, durable=False)


def _block(member: IO[bytes], archive: Path, info: zipfile.ZipInfo) -> bytes:
    """Read apart from writing, so that a full disk is not called a damaged archive."""
    try:
        return member.read(1 << 20)
    except _DAMAGED as error:
        raise UsageError(f"{archive}: {info.orig_filename} is damaged ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
