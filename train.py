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
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import tyro
import yaml
from torch import nn

from evaluate import network_of, open_checkpoint, score, write_scores
from vda import config as settings
from vda import pseudo
from vda.checkpoint import atomic_write, latest, load_checkpoint, prune, save_checkpoint
from vda.cli import Stopped, choose_device, run_command
from vda.config import Config, Optimiser, Phase
from vda.data import VideoDataset, open_dataset
from vda.data.tubes import FlowSource, LabelSource, Tubes, loader, true_labels
from vda.errors import UsageError
from vda.flow.providers import PROVIDERS
from vda.methods import METHODS, Method
from vda.metrics import ConfusionMatrix
from vda.models import build_network
from vda.panels import prediction_panels, pseudo_panels
from vda.progress import progress
from vda.recipes import RECIPES
from vda.report import score_table, write_report

KEEP_CHECKPOINTS = 2


class Run:
    """One run folder, with the data, networks and checkpoints of its phases."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.device = choose_device(config.device)
        data = config.data
        target_root = data.target_root or data.source_root
        self.source = open_dataset(data.source, data.source_root, data.size)
        self.target = open_dataset(data.target, target_root, data.size)
        self.validation = open_dataset(data.validation, target_root, data.size)
        if not self.source.classes == self.target.classes == self.validation.classes:
            raise UsageError(f"data sets {data.source}, {data.target} and {data.validation}: wanted one class list")
        self.flow = PROVIDERS[config.flow]()

    def network(self, start: Phase | None = None) -> nn.Module:
        """A new network, or one with the last weights of an earlier phase."""
        if start is not None:
            return network_of(open_checkpoint(self.folder / start), self.device)
        net = self.config.network
        torch.manual_seed(self.config.seed)
        return build_network(
            net.name,
            self.source.num_classes,
            width=net.width,
            batch_norm=net.batch_norm,
            weights=net.weights,
            variant=net.variant,
        ).to(self.device, memory_format=torch.channels_last)

    def tubes(
        self,
        dataset: VideoDataset,
        labels: LabelSource | None,
        *,
        augment: settings.Augment | None = None,
        flow: FlowSource | None = None,
        stream: int = 0,
    ) -> Tubes:
        """Training tubes; `stream` keeps the draws of two data sets of one phase apart."""
        data = self.config.data
        return Tubes(
            dataset,
            length=data.tube_length,
            step=data.frame_step,
            augment=augment or self.config.augment,
            seed=2 * self.config.seed + stream,
            labels=labels,
            flow=flow,
        )

    @cached_property
    def pseudo_labels(self) -> pseudo.PseudoLabels:
        return pseudo.open_labels(self.folder / "pseudo")


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


PHASES: dict[Phase, Callable[[Run], None]] = {
    "source_only": source_only,
    "vat": vat,
    "pseudo": make_pseudo_labels,
    "vst": vst,
    "oracle": oracle,
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
    with StopSignal() as stop, (run.folder / "log.jsonl").open("a") as log:
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
            if stop.requested and done < optimiser.iterations:
                raise Stopped(f"stopped after step {done} of {phase}; {how_to_resume(run)}")


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
    method.network.load_state_dict(checkpoint.modules["network"])
    method.discriminators.load_state_dict(checkpoint.modules["discriminators"])
    for name, opt in optimisers.items():
        opt.load_state_dict(checkpoint.state["optimisers"][name])
    return int(checkpoint.meta["iteration"])


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


# --- a run from its command line


def parse(argv: Sequence[str]) -> Config:
    """Recipe or YAML file, and settings, from a command line."""
    if argv and Path(argv[0]).suffix in (".yaml", ".yml"):
        base = settings.load_yaml(Path(argv[0]), Config())
        return tyro.cli(Config, default=base, args=argv[1:], description=__doc__)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["embedded", *argv]
    return tyro.extras.overridable_config_cli(dict(RECIPES), args=list(argv), description=__doc__)


def open_folder(config: Config) -> Path:
    """The run folder: new, or the one to resume after a check that its settings are these."""
    if not config.resume:
        folder = config.out or next(f for f in run_folders(config.recipe) if not f.exists())
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder}: this folder is not empty; pass --resume to continue it, or another --out")
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(settings.to_dict(replace(config, out=None)), sort_keys=False)
        atomic_write(folder / "config.yaml", text.encode())
        return folder
    existing = list(itertools.takewhile(Path.exists, run_folders(config.recipe)))
    folder = config.out or (existing[-1] if existing else Path("runs") / f"{config.recipe}-1")
    if not (folder / "config.yaml").exists():
        raise UsageError(f"{folder}: wanted a run to resume, found no config.yaml there")
    stored = settings.load_yaml(folder / "config.yaml", Config())
    if settings.digest(stored) != settings.digest(config):
        raise UsageError(
            f"{folder}: this run was started with other settings; continue it with "
            f"`python train.py {folder}/config.yaml --resume --out {folder}`"
        )
    return folder


def run_folders(recipe: str) -> Iterator[Path]:
    return (Path("runs") / f"{recipe}-{n}" for n in itertools.count(1))


def how_to_resume(run: Run) -> str:
    return f"continue with `python train.py {run.folder}/config.yaml --resume --out {run.folder}`"


def train(argv: Sequence[str]) -> None:
    config = parse(argv)
    run = Run(config, open_folder(config))
    print(f"run folder {run.folder}, device {run.device}, seed {config.seed}")
    scores: dict[str, Any] = {}
    for phase in config.phases:
        PHASES[phase](run)
        if phase != "pseudo":
            scores[phase] = scored(run, phase)
    if scores:
        print(score_table(scores))
        write_scores(run.folder / "scores.json", scores)
    report = write_run_report(run, scores)
    print(f"run folder {run.folder}: checkpoints, scores.json, {report.name}")


def write_run_report(run: Run, scores: dict[str, Any]) -> Path:
    """The HTML page of the run, with pictures of every stage that has been trained."""
    networks = {phase: run.network(phase) for phase in PHASES if phase != "pseudo" and latest(run.folder / phase)}
    panels = prediction_panels(networks, run.validation, run.device)
    coverage = None
    if (run.folder / "pseudo" / "manifest.jsonl").exists():
        labels = run.pseudo_labels
        panels += pseudo_panels(run.target, labels, run.flow, run.config.vst.refine, run.config.occlusion)
        coverage = pseudo_scores(run.target, labels)
    log = run.folder / "log.jsonl"
    path = run.folder / "report.html"
    write_report(
        path,
        title=f"{run.config.recipe}: {run.source.name} to {run.target.name}",
        settings=settings.to_dict(run.config),
        scores=scores,
        classes=run.source.classes,
        palette=run.source.palette,
        panels=panels,
        log=[json.loads(line) for line in log.read_text().splitlines()] if log.exists() else None,
        pseudo=coverage,
    )
    return path


def pseudo_scores(target: VideoDataset, labels: pseudo.PseudoLabels) -> dict[str, Any]:
    """Coverage and, where the target happens to have labels, accuracy of the pseudo labels. For the report alone."""
    matrix = ConfusionMatrix(target.num_classes)
    for clip in target.clips:
        for i in range(len(clip)):
            truth = clip.label(i)
            if truth is not None:
                matrix.update(labels(clip, i), truth)
    return {
        "coverage": matrix.coverage().tolist(),
        "iou": matrix.iou(covered_only=True).tolist(),
        "miou": matrix.miou(covered_only=True),
        "total_coverage": labels.coverage,
    }


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
