"""Adapt a video segmentation network from labelled source video to unlabelled target video.

    python train.py                the whole path on the embedded world
    python train.py SCENARIO       the paper's method on a scenario
    python train.py recipe NAME    one method, or another row of the paper's tables
    python train.py table N        all rows of a table, each part trained once
    python train.py FILE.yaml      settings from a file; every run folder has one
    torchrun --nproc-per-node N train.py ...    the same in N processes, one for each GPU (docs/processes.md)

recipe and table take --data SCENARIO, and all take settings as --SETTING VALUE. --help behind any of them lists its
settings; `python train.py recipe --help` lists the names.
"""

from __future__ import annotations

import itertools
import signal
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from vda import config as settings
from vda import distributed
from vda.checkpoint import latest, load_checkpoint, load_weights, prune, save_checkpoint
from vda.choice import scored, snapshots
from vda.cli import STOPPED, Stopped, can_resume, choose_folder, create_folder, parse, resumable, run_command
from vda.data.tubes import Samples, loader
from vda.errors import UsageError
from vda.files import alone
from vda.live import Live
from vda.methods import METHODS, Method, Round
from vda.models import SegmentationNetwork
from vda.models.synced import moving_statistics, synchronise_batch_norm
from vda.options import Optimiser
from vda.panels import write_run_report
from vda.precision import Precision
from vda.progress import progress
from vda.report import score_table
from vda.run import FINISHED, Run
from vda.scoring import write_scores
from vda.tables import command as tables

KEEP_CHECKPOINTS = 2  # besides the snapshots
MODULES = ("network", "discriminators", "auxiliary")  # of a method, in its checkpoints


def train_method(run: Run, name: str) -> None:
    """All rounds of a method of the run; nothing where they are done."""
    folder = run.folder_of(name)
    if distributed.by_first((folder / FINISHED).exists):
        print(f"{name}: already trained, {folder}")
        return
    rounds = METHODS[name].rounds(run, run.config.methods[name], folder)
    result = folder
    with alone(folder) if distributed.is_first() else nullcontext():
        distributed.wait()  # until what killed processes left is gone
        for number in itertools.count():
            _seed(run, name, number)  # initial weights of discriminators and new heads
            training = next(rounds, None)
            if training is None:
                break
            fit(run, name, training)
            result = training.folder
        run.finish(name, result)


def _seed(run: Run, *what: object) -> None:
    torch.manual_seed(zlib.crc32("/".join(map(str, (run.config.seed, *what))).encode()))


# --- the training loop


def fit(run: Run, name: str, training: Round) -> None:
    """Trains one round for its optimiser's number of steps, from its newest checkpoint where there is one."""
    method, optimiser, folder = training.method, training.optimiser, training.folder
    label = str(folder.relative_to(run.folder))
    method.to(run.device).train()
    if run.config.sync_batch_norm:
        synchronise_batch_norm(method)
    optimisers, precision = build_optimisers(method, optimiser), Precision(run.config.precision, run.device)
    start = restore(folder, method, optimisers, precision)
    distributed.check_same(f"{label}: weights", fingerprint(method))
    if run.config.compile and isinstance(method.network, SegmentationNetwork):
        method.network.compile()

    def batches(samples: Samples | None) -> Iterator[Any]:
        if samples is None:
            return itertools.repeat(None)
        options = {"batch": optimiser.batch * run.config.batch_factor, "start": start, "stop": optimiser.iterations}
        return loader(samples, **options, workers=run.config.data.workers)

    numbers = range(start, optimiser.iterations)
    stays = snapshots(optimiser.iterations, run.config.snapshots)
    with StopSignal() as stop, Live(training, label, run.config, run.source.palette, start) as live:
        drawn = zip(numbers, batches(training.source), batches(training.target), strict=False)
        steps = progress(live.timed(drawn), desc=label, unit="step", initial=start, total=optimiser.iterations)
        for iteration, *pair in steps:
            # dropout: a resumed run draws what the uninterrupted one would, and every process something else
            _seed(run, label, iteration, *([distributed.rank()] if distributed.rank() else []))
            set_learning_rates(optimisers, optimiser, iteration)
            source, target = (batch and batch.to(run.device) for batch in pair)
            losses = step(method, optimisers, source, target, precision)
            steps.set_postfix({key: f"{value:.3f}" for key, value in losses.items()}, refresh=False)
            live.step(iteration, losses, source, target)
            done, stopping = iteration + 1, distributed.any_of(stop.requested)  # after the same step everywhere
            if stopping or done in stays or done % run.config.checkpoint_every == 0:
                distributed.by_first(save, run, name, training, optimisers, precision, done, stays)
            if stopping:
                raise Stopped(f"stopped after step {done} of {label}")


def step(
    method: Method,
    optimisers: dict[str, torch.optim.Optimizer],
    source: Any,
    target: Any,
    precision: Precision | None = None,
) -> dict[str, float]:
    """One update from one batch of each domain; the value of each loss, over all processes."""
    precision = precision or Precision()
    for opt in optimisers.values():
        opt.zero_grad(set_to_none=True)
    values: dict[str, torch.Tensor] = {}
    groups = method.losses(source, target)
    while True:
        with precision.autocast():  # the forward pass alone
            group = next(groups, None)
        if group is None:
            break
        precision.backward(torch.stack(list(group.values())).sum())
        values |= {name: loss.detach() for name, loss in group.items()}
    learning = [p for opt in optimisers.values() for group in opt.param_groups for p in group["params"]]
    distributed.average_gradients(learning)
    precision.step(optimisers.values())
    distributed.average(moving_statistics(method))  # so that a checkpoint holds what all processes have seen
    # one transfer, and so one wait for the device, for all of them
    found = torch.stack([value.float() for value in values.values()])
    distributed.average([found])
    losses = dict(zip(values, found.tolist(), strict=True))
    if any(value != value or abs(value) == float("inf") for value in losses.values()):
        raise UsageError(f"training diverged, losses {losses}: lower the learning rate of this training")
    return losses


def build_optimisers(method: Method, optimiser: Optimiser) -> dict[str, torch.optim.Optimizer]:
    """One for the network and its auxiliary heads (heads at ten times the rate), one for the discriminators."""
    groups = method.network.parameter_groups(optimiser.lr)
    if heads := list(method.auxiliary.parameters()):
        groups.append({"name": "auxiliary", "params": heads, "lr": 10 * optimiser.lr})
    decay = optimiser.weight_decay
    network: torch.optim.Optimizer = (
        torch.optim.SGD(groups, momentum=0.9, weight_decay=decay)
        if optimiser.name == "sgd"
        else torch.optim.Adam(groups, betas=optimiser.betas, weight_decay=decay)
    )
    optimisers = {"network": network}
    if critics := list(method.discriminators.parameters()):
        adam = method.discriminator_optimiser
        optimisers["discriminators"] = torch.optim.Adam(critics, lr=adam.lr, betas=adam.betas)
    for opt in optimisers.values():
        for group in opt.param_groups:
            group["initial_lr"] = group["lr"]
    return optimisers


def set_learning_rates(optimisers: dict[str, torch.optim.Optimizer], optimiser: Optimiser, iteration: int) -> None:
    for opt in optimisers.values():
        for group in opt.param_groups:
            group["lr"] = group["initial_lr"] * optimiser.factor(iteration)


# --- checkpoints


def save(
    run: Run,
    name: str,
    training: Round,
    optimisers: dict[str, torch.optim.Optimizer],
    precision: Precision,
    iteration: int,
    stays: set[int],
) -> None:
    method = training.method
    meta = {
        "method": name,
        "iteration": iteration,
        "classes": list(run.source.classes),
        "palette": run.source.palette.tolist(),
        "network": method.network.config,
        "config": settings.to_dict(run.config),
        "config_digest": settings.digest(run.config),
    }
    state = {
        "optimisers": {key: opt.state_dict() for key, opt in optimisers.items()},
        "precision": precision.state_dict(),
    }
    modules = {key: getattr(method, key) for key in MODULES}
    save_checkpoint(training.folder, step=iteration, modules=modules, state=state, meta=meta)
    prune(training.folder, KEEP_CHECKPOINTS, spare=stays)


def restore(folder: Path, method: Method, optimisers: dict[str, torch.optim.Optimizer], precision: Precision) -> int:
    """Loads the newest valid checkpoint of a round; the iteration to go on with, 0 where there is none."""
    newest = distributed.from_first(str((distributed.is_first() and latest(folder)) or ""))
    if not newest:
        return 0
    checkpoint = load_checkpoint(newest)
    for key in MODULES:
        load_weights(getattr(method, key), checkpoint, key)
    try:
        for name, opt in optimisers.items():
            opt.load_state_dict(checkpoint.state["optimisers"][name])
        precision.load_state_dict(checkpoint.state["precision"])
    except (KeyError, ValueError) as error:
        raise UsageError(f"{newest}: wanted the state of this training's optimisers, found another's") from error
    return int(checkpoint.meta["iteration"])


def fingerprint(method: Method) -> list[float]:
    """Sums over all tensors of a method, that are unlike where any weight is."""
    return [float(x.double().sum()) for x in method.state_dict().values()]


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a request that the loop honours after the current step."""

    def __enter__(self) -> StopSignal:
        self.requested = False
        self._before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


# --- a run


def train(argv: Sequence[str]) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside the loop, as Ctrl-C
    if argv[:1] == ["table"]:
        tables.main(argv[1:], train_method)
        return
    config = parse(argv, __doc__ or "")
    distributed.start(config.device)
    if distributed.again():
        config = replace(config, resume=can_resume(config))
    folder = Path(distributed.from_first(str(choose_folder(config))))
    run = Run(config, folder)  # opens and checks everything before anything is written
    distributed.by_first(create_folder, config, folder)
    processes = f", {distributed.size()} processes" if distributed.size() > 1 else ""
    print(f"run folder {folder}, device {run.device}, seed {config.seed}{processes}")
    with resumable(folder):
        (folder / STOPPED).unlink(missing_ok=True)
        for name in config.training:
            train_method(run, name)
            if METHODS[name].leaves_network:
                scored(run, name)
        scores: dict[str, Any] = {name: scored(run, name) for name in distributed.by_first(run.finished)}
        if distributed.is_first():
            finish(run, scores)


def finish(run: Run, scores: dict[str, Any]) -> None:
    """What stands at the end of a run: the scores of all methods, and the report."""
    if scores:
        print(score_table(scores))
        write_scores(run.folder / "scores.json", scores)
    report = write_run_report(run, scores)
    files = [name for name in ("scores.json",) if (run.folder / name).exists()]
    print(f"run folder {run.folder}: {', '.join(['checkpoints', *files, report.name])}")


if __name__ == "__main__":
    sys.exit(run_command(train))
