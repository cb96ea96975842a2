"""Several processes share the work between trainings: the same files, byte for byte, and scores as one process alone.

tests/shards.py is what every process does.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import shards
import torch
from shards import LENGTHS, PAIRS

from vda import distributed
from vda.__main__ import main
from vda.policies import POLICIES

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patched:  # sets back what `evaluated` changes
        patched.chdir(folder)
        patched.setattr(shards.evaluate, "open_dataset", None)
        shards.everything(folder)
    return folder


def torchrun(processes: int, folder: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums of floats depend on the number of threads
    }
    command = [*launch, str(TESTS / "shards.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.parent != folder}


def parts(count: int, processes: int) -> list[range]:
    """The part of each process: successive, sizes that differ by one at most."""
    edges = [count * r // processes for r in range(processes + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def with_neighbours(count: int, part: range) -> int:
    """Frames that a process needs for a part of a clip that it aggregates."""
    return len({j for i in part for j in (i - 1, i, i + 1) if 0 <= j < count})


@pytest.mark.parametrize("processes", [2, 3])
def test_shared_work_is_the_work_of_one_process(processes: int, alone: Path, tmp_path: Path) -> None:
    torchrun(processes, tmp_path)
    mine, theirs = files(alone), files(tmp_path)
    assert theirs.keys() == mine.keys()
    assert [name for name in mine if theirs[name] != mine[name]] == []

    wanted = json.loads((alone / "0.json").read_text())
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    for of_process in found:
        assert of_process["selection"]["chosen"] == wanted["selection"]["chosen"]
        assert of_process["proportion"] == wanted["proportion"]
        for name in ("scores", "one clip", "without labels", "lone frames"):
            assert of_process["scores"][name] == wanted["scores"][name]
        assert of_process["flow"]["reported"] == wanted["flow"]["reported"]
    check_shares(found, processes)
    choosing = [of_process["selection"]["frames seen"] for of_process in found]
    assert choosing == [wanted["selection"]["frames seen"]] + [0] * (processes - 1)


def check_shares(found: list[Any], processes: int) -> None:
    """Every process did its part and no more."""
    for rank, of_process in enumerate(found):
        part = [(n, parts(n, processes)[rank]) for n in LENGTHS]
        for policy, aggregate in shards.SETTINGS:
            once = sum(with_neighbours(n, own) if aggregate else len(own) for n, own in part)
            passes = 2 if POLICIES[policy].set_wide else 1
            assert of_process["labels"][f"{policy}-{aggregate}"] == passes * once
        clips = parts(len(LENGTHS), processes)[rank]
        assert of_process["scores"]["frames scored"] == sum(LENGTHS[c] for c in clips)
        assert of_process["scores"]["frames seen"] == 2 * len(parts(PAIRS, processes)[rank])
        reported = of_process["flow"]["reported"]
        assert of_process["flow"]["computed"] == [len(parts(n, processes)[rank]) for n in reported]


def test_what_is_compared_says_something(alone: Path) -> None:
    """No score is at its end or missing, every policy labels some pixels, and a stopped run did a part again."""
    found = json.loads((alone / "0.json").read_text())
    for scores in (found["scores"]["scores"], found["scores"]["one clip"]):
        assert all(0 < scores[name] < 1 for name in ("miou", "vpq", "tc"))
    assert 0 < found["scores"]["one clip"]["mvc"]["8"] < 1
    assert 0 < found["scores"]["without labels"]["agreement"] < 1
    assert found["scores"]["lone frames"] == {}
    assert found["selection"]["chosen"][0] == found["selection"]["chosen"][1]
    assert found["flow"]["reported"][0] == sum(max(n - step, 0) for n in LENGTHS for step in (1, 2))
    assert 0 < found["flow"]["reported"][1] < found["flow"]["reported"][0]
    assert found["flow"]["reported"][2] == 0
    assert 0 < found["labels after a stop"] < sum(LENGTHS)
    for policy, aggregate in shards.SETTINGS:
        lines = (alone / "labels" / f"{policy}-{aggregate}" / "manifest.jsonl").read_text().splitlines()
        covered = [sum(json.loads(line)["coverage"]) for line in lines[1:]]
        assert all(0 < share <= 1 for share in covered)
        assert (min(covered) == 1) == (policy == "all")


@pytest.mark.parametrize("command", ["predict", "data", "export", "flow"])
def test_commands_that_share_nothing_want_one_process(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert main([command, "a.png", "b.png", "-o", "c.flo"]) == 2
    assert "wanted one process, found 3 that torchrun started" in capsys.readouterr().err
    assert distributed.size() == 1
