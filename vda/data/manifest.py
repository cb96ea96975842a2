"""Manifests: what `vda data check` saw of a data set's files, for training to trust or refuse.

A manifest has the size, the time of change and the SHA-256 of every file. A file whose size and time are the same is
trusted; one of another time (a copy, say) is trusted where its content has the same hash; every other is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vda.checkpoint import atomic_write, sha256_of
from vda.data.clip import OfFiles, VideoDataset
from vda.data.description import description_of
from vda.errors import UsageError
from vda.progress import progress

FORMAT = 1


class Entry(NamedTuple):
    """Of one file."""

    size: int  # bytes
    mtime_ns: int
    sha256: str


def manifest_file(name: str, root: Path | None) -> Path | None:
    """Where the manifest of a data set lies: beside the description, or in the root; None where there are no files."""
    if found := description_of(name):
        path, split = found
        return path.with_name(f"{path.stem}-{_safe(split)}.manifest.json")
    return None if root is None else root / f"{_safe(name)}.manifest.json"


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def files_of(dataset: VideoDataset) -> Iterator[str]:
    """Every file of a data set once: frames, labels, videos."""
    seen: dict[str, None] = {}
    for clip in dataset.clips:
        if isinstance(clip, OfFiles):
            seen |= dict.fromkeys(file for i in range(len(clip)) for file in clip.files(i) if file is not None)
    yield from seen


def write_manifest(path: Path, name: str, entries: dict[str, Entry]) -> None:
    """entries: by the path of the file; kept relative to the manifest, so that a data set can move."""
    files = {os.path.relpath(file, path.parent): list(entry) for file, entry in sorted(entries.items())}
    content = {"format": FORMAT, "data": name, "files": files}
    atomic_write(path, (json.dumps(content | {"sha256": _hash(content)}, indent=0) + "\n").encode())


def read_manifest(path: Path) -> dict[str, Entry]:
    """Entries by the path of the file relative to the manifest. Raises UsageError for a damaged one."""
    try:
        content = json.loads(path.read_bytes())
        claimed = content.pop("sha256")
        files = {str(file): Entry(int(a), int(b), str(c)) for file, (a, b, c) in content["files"].items()}
        intact = claimed == _hash(content) and content["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise UsageError(f"{path}: wanted a manifest, found a damaged file; `vda data check` writes it anew")
    return files


def _hash(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verify(dataset: VideoDataset, path: Path | None) -> None:
    """Refuses a data set some file of which is not as its manifest says; nothing where there is no manifest.

    Raises UsageError naming the first file that is new, missing or changed.
    """
    if path is None or not path.is_file():
        return
    known = read_manifest(path)
    again = f"`vda data check {dataset.name}` looks again"
    copied = []
    for file in files_of(dataset):
        entry = known.pop(os.path.relpath(file, path.parent), None)
        if entry is None:
            raise UsageError(f"{file}: wanted a file that is in {path}, found a new one; {again}")
        stat = os.stat(file)
        if stat.st_size != entry.size:
            raise UsageError(f"{file}: wanted the {entry.size} bytes of {path}, found {stat.st_size}; {again}")
        if stat.st_mtime_ns != entry.mtime_ns:
            copied.append((file, entry))
    for relative in known:  # no longer used, which is fine, or lost
        if not (path.parent / relative).exists():
            raise UsageError(f"{path.parent / relative}: wanted the file that is in {path}, found none; {again}")
    for file, entry in progress(copied, desc=f"hashes of {dataset.name}", unit="file", disable=len(copied) < 1000):
        if sha256_of(Path(file)) != entry.sha256:
            raise UsageError(f"{file}: wanted the content that is in {path}, found another; {again}")
