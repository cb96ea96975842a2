"""Every round of a run for a few steps, on a few frames, in a folder that is thrown away.

The rounds, the training loop, the checkpoints and the scoring are the run's own. What a step takes is measured and
multiplied by the number of steps; what goes over all frames (pseudo labels, scoring) by the number of frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from vda.checkpoint import latest
from vda.choice import PAIRS, snapshots, without_labels
from vda.config import Config
from vda.methods import METHODS, Method, Round
from vda.plan import memory
from vda.plan.sample import Sampled, sample
from vda.run import Run, network_of, open_checkpoint
from vda.scoring import score

WARM, STEPS = 2, 6  # steps of a round that are not measured, since caches and allocators are cold, and that are
FRAMES = 24  # of each data set
_FEW = 4  # pairs of frames for the choice without labels, of PAIRS
_KEPT = 2  # checkpoints beside the snapshots, as train.py keeps

Fit = Callable[[Run, str, Round], None]


@dataclass(frozen=True)
class Estimate:
    """One round, or the scoring of a method, in seconds and bytes.

    name: METHOD, METHOD/round-N, or with "scoring". steps: of the run; step: seconds of one. before: what comes before
    them (pseudo labels, choice of frames). saving: all checkpoints. memory: the peak. disk: what stays.
    """

    name: str
    steps: int
    step: float
    before: float
    saving: float
    memory: int
    disk: int

    @property
    def seconds(self) -> float:
        return self.before + self.steps * self.step + self.saving


def estimates(config: Config, folder: Path, fit: Fit) -> Iterator[Estimate]:
    """The rows of a run in its order. `folder` is written to; `fit` is that of train.py.

    Raises UsageError for all that would stop the run itself: its data, settings and files are checked in the same way.
    """
    needed: set[str] = set()
    for name in config.training:
        while name and name not in needed:
            needed.add(name)
            name = config.methods[name].start
    methods = {name: settings for name, settings in config.methods.items() if name in needed}
    run = Run(replace(config, methods=methods, only=(), out=None, resume=False), folder)
    parts = _shortened(run)
    for name in methods:
        rows = [*_training(run, name, parts, fit)]
        if name in config.training:  # the others are what those start from
            yield from rows
            if METHODS[name].leaves_network:
                yield _scoring(run, name, parts, rows[-1].steps)


def _shortened(run: Run) -> dict[str, Sampled]:
    """Leaves a few frames of each data set of the run."""
    data = run.config.data
    span = 1 + data.tube_length * data.frame_step
    parts = {
        name: sample(getattr(run, name), FRAMES, span if name != "validation" else 1)
        for name in ("source", "target", "labelled_target", "validation")
    }
    for name, part in parts.items():
        setattr(run, name, part.dataset)
    return parts


def _training(run: Run, name: str, parts: dict[str, Sampled], fit: Fit) -> Iterator[Estimate]:
    rounds = METHODS[name].rounds(run, run.config.methods[name], run.folder_of(name))
    pending, after = _next(run, rounds, parts)
    while pending is not None:
        training, before = pending, after
        most = memory.peak(run.device)
        memory.reset(run.device)
        stamps = _stamped(training.method)
        few = replace(training.optimiser, iterations=WARM + STEPS, schedule_length=None)
        fit(run, name, replace(training, optimiser=few))
        stamps.append(time.perf_counter())
        most = max(most, memory.peak(run.device))
        steps = [b - a for a, b in zip(stamps[WARM:-2], stamps[WARM + 1 : -1], strict=True)]
        step = median(steps)
        iterations = training.optimiser.iterations
        stays = snapshots(iterations, run.config.snapshots)
        regular = {*range(run.config.checkpoint_every, iterations + 1, run.config.checkpoint_every)} - stays
        kept = len(stays) + min(_KEPT, len(regular))
        saving = max(0.0, stamps[-1] - stamps[-2] - step) * len(stays | regular)
        checkpoint = latest(training.folder)
        assert checkpoint is not None
        weights = _bytes(checkpoint) * kept
        labels = round(parts["target"].factor * _bytes(training.folder / "pseudo"))
        label = str(training.folder.relative_to(run.folder))
        result = training.folder
        pending, after = _next(run, rounds, parts)
        if pending is None:
            before += after  # what comes behind the last round
        yield Estimate(label, iterations, step, before, saving, most, weights + labels)
    run.finish(name, result)


def _next(run: Run, rounds: Iterator[Round], parts: dict[str, Sampled]) -> tuple[Round | None, float]:
    """The next round and what it takes, on all frames, to come to it."""
    memory.reset(run.device)
    for part in parts.values():
        part.reads.clear()
    began = time.perf_counter()
    training = next(rounds, None)
    ended = time.perf_counter()
    reads = sorted(t for part in parts.values() for t in part.reads)
    if not reads:
        return training, ended - began
    # From the first frame on, time goes with the frames; before it lie networks and files that are opened once.
    factor = sum(len(part.reads) * part.factor for part in parts.values()) / len(reads)
    return training, reads[0] - began + factor * (ended - reads[0])


def _stamped(method: Method) -> list[float]:
    """The times at which the method is asked for its losses: once a step, after its batch was loaded."""
    stamps: list[float] = []
    losses = method.losses

    def stamped(source: Any, target: Any) -> Any:
        stamps.append(time.perf_counter())
        return losses(source, target)

    method.losses = stamped  # type: ignore[method-assign]
    return stamps


def _scoring(run: Run, name: str, parts: dict[str, Sampled], iterations: int) -> Estimate:
    """The scores of all snapshots of a method's last round."""
    memory.reset(run.device)
    network = network_of(open_checkpoint(run.result(name)), run.device)
    began = time.perf_counter()
    score(network, run.validation, run.device, name=f"score {name}")
    scored = time.perf_counter()
    pairs = without_labels(run, network, _FEW) and _FEW
    compared = time.perf_counter()
    once = parts["validation"].factor * (scored - began) + (PAIRS / pairs * (compared - scored) if pairs else 0.0)
    count = len(snapshots(iterations, run.config.snapshots))
    label = f"{run.folder_of(name).name} scoring"
    return Estimate(label, 0, 0.0, once * count, 0.0, memory.peak(run.device), 0)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
