"""Files of a run beside its checkpoints: one process at a time, leftovers of killed ones, results that are kept."""

from __future__ import annotations

import errno
import fcntl
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vda.errors import UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")  # the names of vda/checkpoint.py


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives the system's errors inside the name of what is written: they have none, or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # none of the system's, such as that of a damaged archive
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def told(error: OSError) -> str:
    """An error of the system as one sentence: the file, what is wrong with it, and what helps."""
    if error.errno is None:
        return str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror}{'; make room there' if error.errno in _FULL else ''}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other process of this kind writes below `folder`, which is made, and rid of what killed ones left.

    Raises UsageError where another one is at it. The system ends the hold however a process ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: wanted it alone, found another process that writes there") from None
        except OSError:  # a file system without locks: nothing tells the two apart
            pass
        remove_leftovers(folder)
        yield


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files and folders below `folder` that killed processes left. None may be writing there."""
    for path in [path for path in folder.rglob(".*.tmp") if _LEFTOVER.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def kept_json(path: Path) -> Any:
    """What a file of results holds that can be computed again; None where it is missing or damaged, with a warning."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        warnings.warn(f"{path}: wanted kept results, the file is damaged; computing them again", stacklevel=2)
        return None
