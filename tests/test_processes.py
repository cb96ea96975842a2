"""Several processes: the same losses and weights as one, a run that ends with a cause, and one that goes on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
import torch

from vda import distributed
from vda.checkpoint import latest

ROOT = Path(__file__).parents[1]


def torchrun(*argv: object, cwd: Path, count: int = 2, restarts: int = 0) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    line += [f"--max-restarts={restarts}", *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    job = torchrun(processes.__file__, folder, cwd=folder)
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_primitives(two: list[dict[str, Any]]) -> None:
    first, second = (found["primitives"] for found in two)
    assert first["size"] == second["size"] == 2
    assert (first["share"], second["share"]) == ([0], [1, 2])
    assert (first["none of one"], second["none of one"]) == ([], [0])
    for found in (first, second):
        assert found["gather"] == [{"rank": 0, "more": [0]}, {"rank": 1, "more": [1] * 1001}]
        assert found["first"] == 5
        assert found["any"] == [True, False]
        assert found["total"].tolist() == [2**54 + 2, 1]  # beyond what a float64 holds
        assert found["average"][0].tolist() == [0.5] * 3
        assert found["average"][1].tolist() == [[5.0] * 2] * 2
        a, b, c = found["gradients"]
        assert a.tolist() == [1.5, 1.5]
        assert b.tolist() == [0.5, 0.5]
        assert c is None
        assert found["mean over none"] == 0
    assert (first["mean over"] + second["mean over"]) / 2 == 3 / 4
    assert (first["done"], second["done"]) == ([0], [])


def test_one_process_sends_nothing() -> None:
    assert distributed.size() == 1
    found = processes.primitives()
    assert found["share"] == [0, 1, 2]
    assert found["gather"] == [{"rank": 0, "more": [0]}]
    assert found["gradients"][2] is None


def test_losses_and_weights_are_those_of_one_process(two: list[dict[str, Any]]) -> None:
    """Every method, with frozen batch norm and with batch statistics over both processes; most in float64, where only a
    wrong formula makes a difference that shows."""
    whole = processes.all_trained()
    assert whole.keys() == two[0]["trained"].keys()
    for (name, (losses, state)), (rank, found) in itertools.product(whole.items(), enumerate(two)):
        shared_losses, shared_state = found["trained"][name]
        assert shared_losses == [pytest.approx(step, rel=1e-6) for step in losses], name  # reported in float32
        assert state.keys() == shared_state.keys()
        single = name.startswith(processes.SINGLE)
        close = {"rtol": 1e-4, "atol": 2e-6} if single else {"rtol": 1e-9, "atol": 1e-12}
        for key, value in state.items():
            explained = partial("{}: {}".format, f"{name}, {key}, process {rank}")
            torch.testing.assert_close(shared_state[key], value, **close, msg=explained)


def test_both_processes_end_alike(two: list[dict[str, Any]]) -> None:
    for name, (losses, state) in two[0]["trained"].items():
        other_losses, other = two[1]["trained"][name]
        assert losses == other_losses
        assert all(torch.equal(value, other[key]) for key, value in state.items()), name


def test_running_statistics_of_each_process_are_averaged(
    two: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = []
    for rank in range(2):  # what each half of the batch moves them to
        monkeypatch.setattr(
            processes,
            "shared",
            lambda batch, n=rank: (
                batch and replace(batch, frames=batch.frames[n : n + 1], labels=batch.labels[n : n + 1])
            ),
        )
        alone.append(processes.moved_apart())
    for k in range(2):
        mean = (alone[0][k] + alone[1][k]) / 2
        torch.testing.assert_close(two[0]["statistics"][k], mean)
        assert torch.equal(two[0]["statistics"][k], two[1]["statistics"][k])
        assert not torch.allclose(mean, alone[0][k])


def test_processes_that_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "gather", lambda value: [value, [1.0, 2.5]])
    distributed.check_same("weights", [1.0, 2.5])
    with pytest.raises(RuntimeError, match="weights: wanted the same in all processes"):
        distributed.check_same("weights", [1.0, 2.0])


# ---- a whole run

RUN = """
recipe: two
flow: {provider: exact}
checkpoint_every: 1
device: cpu
sync_batch_norm: true
data: {source: "embedded/simulator:4", target: "embedded/camera:4", validation: "embedded/camera-val:3", size: [64, 96]}
network: {name: deeplab-resnet18, width: 8, batch_norm: train}
snapshots: 1
methods:
  source_only: {optimiser: {iterations: 3, batch: 2, name: adam, lr: 0.001}}
  vat: {optimiser: {iterations: 4, batch: 2, name: adam, lr: 0.001}}
  vst: {optimiser: {iterations: 3, batch: 2, name: adam, lr: 0.001}}
"""


def workers(job: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started."""
    return [int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]


def logged(run: Path) -> list[dict[str, float]]:
    """All lines of all logs, without times."""
    lines = [json.loads(line) for path in sorted(run.rglob("log.jsonl")) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("seconds")} for line in lines]


def numbers(run: Path) -> dict[str, bytes]:
    """Weights, states of the optimisers, and pseudo labels: what must not depend on a stop."""
    names = ("*.safetensors", "state.pt", "*.png", "manifest.jsonl")
    return {str(path.relative_to(run)): path.read_bytes() for name in names for path in run.rglob(name)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of two processes, "whole"."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.yaml").write_text(RUN)
    job = torchrun(ROOT / "train.py", "run.yaml", "--out", "whole", cwd=folder)
    output, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert "2 processes" in output
    assert output.count("run folder whole, device") == 1  # the first process speaks for all
    return folder


def test_run_of_two_processes_is_that_of_one(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "run.yaml", "--out", "alone"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (
        sorted(str(p.relative_to(folder / run)) for p in (folder / run).rglob("*")) for run in ("alone", "whole")
    )
    assert one == two
    for alone, shared in zip(logged(folder / "alone"), logged(folder / "whole"), strict=True):
        assert (alone["phase"], alone["iteration"]) == (shared["phase"], shared["iteration"])
        if alone["phase"] != "vst":  # whose labels may differ in a pixel of which the network was unsure
            assert shared == {key: x if isinstance(x, str) else pytest.approx(x, rel=0.02) for key, x in alone.items()}


def test_a_killed_worker_ends_the_job_with_a_cause_and_a_restart_goes_on(folder: Path) -> None:
    job = torchrun(ROOT / "train.py", "run.yaml", "--out", "restarted", cwd=folder, restarts=1)
    deadline = time.monotonic() + 200
    while not (folder / "restarted" / "vat" / "step-000002").exists():
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(workers(job)[-1], signal.SIGKILL)
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert "exitcode: -9" in errors
    assert "another process has ended" in errors
    assert numbers(folder / "restarted") == numbers(folder / "whole")
    assert logged(folder / "restarted") == logged(folder / "whole")


def test_sigterm_stops_all_after_the_same_step_and_one_process_goes_on(folder: Path) -> None:
    # loader processes get the signal too, and nothing but the stop saves anything
    options = ["--only", "source_only", "--data.workers", 1, "--checkpoint-every", 1000]
    options += ["--source-only.optimiser.iterations", 40]
    job = torchrun(ROOT / "train.py", "run.yaml", "--out", "stopped", *options, cwd=folder)
    log, deadline = folder / "stopped" / "source_only" / "log.jsonl", time.monotonic() + 200
    while not (log.exists() and log.read_text()):
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.terminate()
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    command = "torchrun --nproc-per-node 2 train.py stopped/config.yaml --resume --out stopped"
    assert errors.count(f"continue with `{command}`") == 1, errors
    assert (folder / "stopped" / "stopped").exists()
    assert latest(folder / "stopped" / "source_only") is not None
    alone = [sys.executable, str(ROOT / "train.py"), "run.yaml", "--out", "stopped", "--resume", *map(str, options)]
    done = subprocess.run(alone, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line["iteration"] for line in logged(folder / "stopped")] == list(range(40))
    assert not (folder / "stopped" / "stopped").exists()


def test_a_batch_that_the_processes_cannot_share_is_refused(folder: Path) -> None:
    job = torchrun(ROOT / "train.py", "run.yaml", "--out", "odd", "--vat.optimiser.batch", 3, cwd=folder)
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    wanted = "vat.optimiser.batch: wanted a multiple of 2, the processes that share it, found 3"
    assert f"{wanted}; --batch-factor multiplies all of them" in errors
    assert not (folder / "odd").exists()
