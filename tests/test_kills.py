"""Kills at random moments: nothing is lost, and nothing that lies under a final name is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import killing
import pytest

from vda.checkpoint import latest, load_checkpoint, prune


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be: what a killed process has written is there on any file system, and here at once."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.mark.timeout(900)  # a minute on an idle machine
def test_a_hundred_kills_lose_nothing(folder: Path) -> None:
    """During saves of checkpoints, writing of pseudo labels, caching of flow, and evaluation (tests/killing.py)."""
    line = [sys.executable, killing.__file__, str(folder)]
    done = subprocess.run(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = json.loads(done.stdout.splitlines()[-1])
    assert kills == {name: wanted for name, (_, wanted) in killing.CASES.items()}
    assert sum(kills.values()) >= 100


CALLS = ("open", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_at_every_call_of_a_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is replaced, the next one saved, the oldest removed: the newest that was there is never lost."""
    before = folder / "before"
    killing.save_step(before, 1)
    killing.save_step(before, 2)
    for at in range(1, 1000):
        part = folder / f"part{at}"
        shutil.copytree(before, part)
        child = os.fork()
        if child == 0:
            try:
                kill_at_call(at, monkeypatch)
                killing.save_step(part, 2)
                killing.save_step(part, 3)
                prune(part, 1)
            finally:
                os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        newest = latest(part)
        assert newest is not None
        loaded = load_checkpoint(newest)
        assert loaded.step == 3 if not killed else loaded.step in (2, 3)
        assert (loaded.modules["network"]["weight"] == loaded.step).all()
        prune(part, 1)
        assert [path.name for path in part.iterdir()] == [newest.name]
        if not killed:
            break
    assert 30 < at < 999


def kill_at_call(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends this process before the at-th call that changes a folder."""
    left = at

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
