"""Files written atomically: the old content or all of the new, whatever goes wrong."""

from __future__ import annotations

import os

import pytest

from vda import checkpoint as module_under_test
from vda.checkpoint import atomic_write


def test_atomic_write(tmp_path):
    file = tmp_path / "a.txt"
    atomic_write(file, b"one")
    assert file.read_bytes() == b"one"
    atomic_write(str(file), lambda stream: stream.write(b"two"))
    assert file.read_bytes() == b"two"
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "nowhere" / "a", b"")


@pytest.mark.parametrize("fails_at", ["content", "fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, fails_at):
    file = tmp_path / "a.txt"
    atomic_write(file, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    def half(stream):
        stream.write(b"ne")
        if fails_at == "content":
            fail()

    if fails_at != "content":
        monkeypatch.setattr(module_under_test.os, fails_at, fail)
    with pytest.raises(OSError, match="No space"):
        atomic_write(file, half)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
