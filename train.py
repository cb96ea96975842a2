"""Adapt a video segmentation network from labelled source video to unlabelled target video.

python train.py                                   the whole path on the embedded world
python train.py RECIPE --help                     a recipe's settings, each with its default
python train.py RECIPE [--SETTING VALUE ...]      a recipe with changes
python train.py FILE.yaml [--SETTING VALUE ...]   settings from a file (each run folder holds one)
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from evaluate import score, write_scores
from vda import config as settings
from vda import pseudo
from vda.checkpoint import atomic_write, latest, load_checkpoint, load_weights, prune, save_checkpoint
from vda.cli import Stopped, choose_folder, create_folder, how_to_resume, parse, run_command
from vda.config import Config, Optimiser, Phase
from vda.data.tubes import Tubes, known_flow, loader, true_labels
from vda.errors import UsageError
from vda.flow import score_command as flow_scores
from vda.flow.flownet2 import build_estimator
from vda.flow.providers import DISFlow, NetworkFlow
from vda.flow.weights import save_weights
from vda.methods import METHODS, Method
from vda.panels import write_run_report
from vda.progress import progress
from vda.report import score_table
from vda.run import FLOW_WEIGHTS, SEGMENTATION, Run, network_of, open_checkpoint

KEEP_CHECKPOINTS = 2
FLOW_SCORES = "flow-scores.json"
HELD_OUT_PAIRS = 100  # on which a flow network is scored at most


# --- phases


def source_only(run: Run) -> None:
    method = METHODS["source_only"](run.network())
    fit(run, "source_only", method, run.config.supervised.optimiser, run.tubes(run.source, true_labels), None)


def oracle(run: Run) -> None:
    method = METHODS["oracle"](run.network())
    fit(run, "oracle", method, run.config.supervised.optimiser, run.tubes(run.target, true_labels), None)


def vat(run: Run) -> None:
    network = run.network("source_only")
    torch.manual_seed(run.config.seed + 1)  # the discriminator's initial weights
    method = METHODS["vat"](network, run.config.vat, run.source.num_classes, run.config.data.tube_length)
    source, target = run.tubes(run.source, true_labels), run.tubes(run.target, None, stream=1)
    fit(run, "vat", method, run.config.vat.optimiser, source, target)


def make_pseudo_labels(run: Run) -> None:
    checkpoint = open_checkpoint(run.folder / "vat")
    generator = pseudo.Generator(
        network_of(checkpoint, run.device), run.flow, run.config.pseudo, run.config.occlusion, run.device
    )
    labels = pseudo.generate(
        generator,
        run.target,
        run.folder / "pseudo",
        model=checkpoint.digest,
        flow_name=run.flow.name,
        seed=run.config.seed,
    )
    print(f"pseudo labels cover {100 * labels.coverage:.1f} % of the pixels of {run.target.name}")


def vst(run: Run) -> None:
    vst = run.config.vst
    flow = None if vst.refine == "none" else run.flow
    target = run.tubes(run.target, run.pseudo_labels, augment=vst.augment, flow=flow, stream=1)
    source = run.tubes(run.source, true_labels) if vst.source_weight else None
    method = METHODS["vst"](run.network("vat"), vst, run.config.occlusion)
    fit(run, "vst", method, vst.optimiser, source, target)


def flow(run: Run) -> None:
    training = run.config.flow_training
    torch.manual_seed(run.config.seed)
    network = build_estimator(training.variant, training.width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pairs = run.tubes(run.source, None, flow=known_flow)
    fit(run, "flow", METHODS["flow"](network), training.optimiser, pairs, None)
    path, sha256 = save_weights(run.folder / FLOW_WEIGHTS, training.variant, network.state_dict(), "flow")
    trained = NetworkFlow(network.eval(), f"{training.variant}-{sha256[:12]}", run.device)
    held_out = flow_scores.choose_pairs(run.validation, 1, HELD_OUT_PAIRS)
    scores = {source.name: flow_scores.score_pairs(source, held_out) for source in (trained, DISFlow())}
    print(flow_scores.table(scores))
    write_scores(run.folder / FLOW_SCORES, {name: flow_scores.means(rows) for name, rows in scores.items()})
    print(f"use it with --flow.provider flownet2 --flow.weights {path}")


PHASES: dict[Phase, Callable[[Run], None]] = {
    "source_only": source_only,
    "vat": vat,
    "pseudo": make_pseudo_labels,
    "vst": vst,
    "oracle": oracle,
    "flow": flow,
}


# --- the training loop


def fit(
    run: Run, phase: Phase, method: Method, optimiser: Optimiser, source: Tubes | None, target: Tubes | None
) -> None:
    """Trains `method` for `optimiser.iterations` steps, from the newest checkpoint of the phase where there is one."""
    folder = run.folder / phase
    method.to(run.device).train()
    optimisers = build_optimisers(method, optimiser, run.config)
    start = restore(folder, method, optimisers)
    trim_log(run.folder / "log.jsonl", phase, start)
    if start >= optimiser.iterations:
        print(f"{phase}: already trained, {folder}")
        return

    def batches(tubes: Tubes | None) -> Iterator[Any]:
        if tubes is None:
            return itertools.repeat(None)
        options = {"batch": optimiser.batch, "start": start, "stop": optimiser.iterations}
        return loader(tubes, **options, workers=run.config.data.workers)

    steps = progress(
        zip(range(start, optimiser.iterations), batches(source), batches(target), strict=False),
        desc=phase,
        unit="step",
        initial=start,
        total=optimiser.iterations,
    )
    with StopSignal() as stop, (run.folder / "log.jsonl").open("a", buffering=1) as log:
        for iteration, source_batch, target_batch in steps:
            began = time.perf_counter()
            set_learning_rates(optimisers, optimiser, iteration)
            pair = (b and b.to(run.device) for b in (source_batch, target_batch))
            losses = step(method, optimisers, *pair)
            steps.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
            seconds = round(time.perf_counter() - began, 4)
            log.write(json.dumps({"phase": phase, "iteration": iteration, **losses, "seconds": seconds}) + "\n")
            done = iteration + 1
            if stop.requested or done == optimiser.iterations or done % run.config.checkpoint_every == 0:
                save(run, phase, method, optimisers, done)
            if stop.requested:
                raise Stopped(f"stopped after step {done} of {phase}; {how_to_resume(run.folder)}")


def step(method: Method, optimisers: dict[str, torch.optim.Optimizer], source: Any, target: Any) -> dict[str, float]:
    """One update from one batch of each domain; the value of each loss."""
    for opt in optimisers.values():
        opt.zero_grad(set_to_none=True)
    values: dict[str, torch.Tensor] = {}
    for group in method.losses(source, target):
        torch.stack(list(group.values())).sum().backward()
        values |= {name: loss.detach() for name, loss in group.items()}
    for opt in optimisers.values():
        opt.step()
    losses = {name: float(value) for name, value in values.items()}
    if any(value != value or abs(value) == float("inf") for value in losses.values()):
        raise UsageError(f"training diverged, losses {losses}: lower the learning rate of this phase")
    return losses


def build_optimisers(method: Method, optimiser: Optimiser, config: Config) -> dict[str, torch.optim.Optimizer]:
    """One for the network (head at ten times the rate), one for the discriminators where there are any."""
    groups = method.network.parameter_groups(optimiser.lr)  # type: ignore[operator]
    decay = optimiser.weight_decay
    network: torch.optim.Optimizer = (
        torch.optim.SGD(groups, momentum=0.9, weight_decay=decay)
        if optimiser.name == "sgd"
        else torch.optim.Adam(groups, weight_decay=decay)
    )
    optimisers = {"network": network}
    if list(method.discriminators.parameters()):
        optimisers["discriminators"] = torch.optim.Adam(
            method.discriminators.parameters(), lr=config.vat.discriminator_lr, betas=(0.9, 0.99)
        )
    for opt in optimisers.values():
        for group in opt.param_groups:
            group["initial_lr"] = group["lr"]
    return optimisers


def set_learning_rates(optimisers: dict[str, torch.optim.Optimizer], optimiser: Optimiser, iteration: int) -> None:
    for opt in optimisers.values():
        for group in opt.param_groups:
            group["lr"] = group["initial_lr"] * optimiser.factor(iteration)


# --- checkpoints


def save(run: Run, phase: Phase, method: Method, optimisers: dict[str, torch.optim.Optimizer], iteration: int) -> None:
    meta = {
        "phase": phase,
        "iteration": iteration,
        "classes": list(run.source.classes),
        "network": method.network.config,
        "config": settings.to_dict(run.config),
        "config_digest": settings.digest(run.config),
    }
    state = {"optimisers": {name: opt.state_dict() for name, opt in optimisers.items()}}
    modules = {"network": method.network, "discriminators": method.discriminators}
    save_checkpoint(run.folder / phase, step=iteration, modules=modules, state=state, meta=meta)
    prune(run.folder / phase, KEEP_CHECKPOINTS)


def restore(folder: Path, method: Method, optimisers: dict[str, torch.optim.Optimizer]) -> int:
    """Loads the newest valid checkpoint of a phase; the iteration to go on with, 0 where there is none."""
    newest = latest(folder)
    if newest is None:
        return 0
    checkpoint = load_checkpoint(newest)
    load_weights(method.network, checkpoint)
    load_weights(method.discriminators, checkpoint, "discriminators")
    for name, opt in optimisers.items():
        opt.load_state_dict(checkpoint.state["optimisers"][name])
    return int(checkpoint.meta["iteration"])


def trim_log(path: Path, phase: Phase, start: int) -> None:
    """Drops what the log has beyond the checkpoint that a phase goes on from, and a line torn by a kill."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["phase"] != phase or entry["iteration"] < start:
            kept.append(line)
    atomic_write(path, "".join(f"{line}\n" for line in kept).encode())


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
    config = parse(argv, __doc__ or "")
    folder = choose_folder(config)
    run = Run(config, folder)  # opens and checks everything before anything is written
    create_folder(config, folder)
    print(f"run folder {folder}, device {run.device}, seed {config.seed}")
    try:
        for phase in config.phases:
            PHASES[phase](run)
            if phase in SEGMENTATION:
                scored(run, phase)
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {how_to_resume(folder)}") from None
    scores: dict[str, Any] = {phase: scored(run, phase) for phase in run.trained()}
    if scores:
        print(score_table(scores))
        write_scores(folder / "scores.json", scores)
    report = write_run_report(run, scores)
    files = [name for name in ("scores.json", FLOW_SCORES) if (folder / name).exists()]
    print(f"run folder {folder}: {', '.join(['checkpoints', *files, report.name])}")


def scored(run: Run, phase: Phase) -> dict[str, Any]:
    """Validation scores of a phase's last checkpoint; kept beside it, so that a resumed run reads them back."""
    checkpoint = open_checkpoint(run.folder / phase)
    path = run.folder / phase / "scores.json"
    if path.exists() and (scores := json.loads(path.read_text())).get("model") == checkpoint.digest:
        return scores
    network = network_of(checkpoint, run.device)
    scores = score(network, run.validation, run.device, name=f"score {phase}")
    scores |= {
        "model": checkpoint.digest,
        "checkpoint": checkpoint.path.name,
        "rule": "last",
        "seed": run.config.seed,
    }
    write_scores(path, scores)
    return scores


if __name__ == "__main__":
    sys.exit(run_command(train))
