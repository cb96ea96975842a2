"""A run on disk: its folder, data, networks and checkpoints.

Every method has a folder, and in it one for each of its rounds where it has several. `finished.json`, written when the
last round is done, says in which one the result lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vda import distributed, pseudo
from vda.checkpoint import Checkpoint, atomic_write, is_valid, latest, load_checkpoint, load_weights, step_name
from vda.config import Config, method_digest
from vda.data import VideoDataset, open_dataset
from vda.data.clip import FlowSource
from vda.data.transforms import Augment
from vda.data.tubes import LabelSource, Tubes
from vda.device import choose_device, use_deterministic_algorithms
from vda.errors import UsageError
from vda.flow.cache import CachedFlow
from vda.flow.providers import FlowProvider, NetworkFlow, both_ways, provider
from vda.live import check_tensorboard
from vda.methods import METHODS
from vda.models import Ensemble, SegmentationNetwork, build_network
from vda.options import Flow, Optimiser, Pseudo

FINISHED = "finished.json"


@lru_cache(maxsize=8)
def _open(name: str, root: Path | None, size: tuple[int, int]) -> VideoDataset:
    """Opened once for all runs of a process: the rows of a table share their data, and what it keeps in memory."""
    return open_dataset(name, root, size)


@lru_cache(maxsize=1)
def _provider(flow: Flow, device: torch.device) -> FlowProvider:
    """One flow network for all runs of a process."""
    return provider(flow, device)


class Run:
    """One run folder, with the data, networks and checkpoints of its methods."""

    def __init__(self, config: Config, folder: Path, *, shared: bool = False) -> None:
        """shared: other runs keep their methods in the same folder, so each folder's name ends in a hash of what
        decides its numbers; runs that agree in them train once."""
        self.config, self.folder, self.shared = config, folder, shared
        self.device = choose_device(config.device)
        if config.deterministic:
            use_deterministic_algorithms()
        data = config.data
        target_root = data.target_root or data.source_root
        self.source = _open(data.source, data.source_root, data.size)
        self.target = _open(data.target, target_root, data.size)
        self.labelled_target = _open(data.oracle or data.target, target_root, data.size)
        self.validation = _open(data.validation, target_root, data.size)
        datasets = (self.source, self.target, self.labelled_target, self.validation)
        if len({dataset.classes for dataset in datasets}) > 1:
            raise UsageError(f"data sets {', '.join(d.name for d in datasets)}: wanted one class list")
        self.flow = self._flow()
        self._check()

    def _flow(self) -> FlowProvider:
        computed = _provider(self.config.flow, self.device)
        cache = self.config.flow.cache
        return computed if cache is None else CachedFlow(cache, self.target, computed.name)

    # --- what would fail later, after hours

    def _check(self) -> None:
        net, done = self.config.network, set[str]()
        if self.config.tensorboard:
            check_tensorboard()
        if not self.config.methods:
            raise UsageError("methods: wanted at least one method to train, found none")
        for dataset in (self.source, self.target):
            self.tubes(dataset, None)  # refuses clips that are shorter than a tube
        if any(METHODS[name].leaves_network for name in self.config.training):
            self.check_flow({1})  # the choice of a checkpoint without labels wants it (vda/choice.py)
        if net.weights is not None and not net.weights.is_file():
            raise UsageError(f"{net.weights}: wanted a file of backbone weights, found none")
        for name in self.config.training:
            settings = self.config.methods[name]
            if settings.start:
                self._check_start(name, settings.start, done)
            elif net.weights is None and net.batch_norm != "train" and METHODS[name].leaves_network:
                raise UsageError(
                    f"network.weights: wanted a file, since batch norm is frozen ({net.batch_norm}) and random weights "
                    "have no statistics; give one, or choose --network.batch-norm train"
                )
            self._check_processes(name, settings)
            METHODS[name].check(self, settings)
            done.add(name)

    def _check_start(self, name: str, start: str, done: set[str]) -> None:
        if start not in self.config.methods:
            raise UsageError(f"{name}: starts from {start}, which is none of {', '.join(self.config.methods)}")
        if start not in done and not (self.folder_of(start) / FINISHED).exists():
            raise UsageError(
                f"{name}: starts from {start}, which is neither trained before it nor in {self.folder_of(start)}"
            )

    def _check_processes(self, name: str, settings: Any) -> None:
        count, factor = distributed.size(), self.config.batch_factor
        for field, value in vars(settings).items():
            if isinstance(value, Optimiser) and value.batch * factor % count:
                wanted = f"wanted a multiple of {count}, the processes that share it"
                found = f"{value.batch}; --batch-factor multiplies all of them" if factor == 1 else value.batch * factor
                raise UsageError(f"{name}.{field}.batch: {wanted}, found {found}")
        if count > 1 and self.config.sync_batch_norm and METHODS[name].mixes:
            raise UsageError(f"sync_batch_norm: wanted a method whose batches are all alike, {name} mixes the domains")

    def check_flow(self, steps: set[int], *, in_loader: bool = False) -> None:
        """Refuses a flow that the target lacks, or a flow network that loader processes would have to use.

        steps: distances between the frames of a pair. Flow is read both ways.
        """
        for clip in self.target.clips[:1]:
            for step in steps:
                if len(clip) > step:
                    both_ways(self.flow, clip, 0, step)
        if isinstance(self.flow, CachedFlow):
            self.flow.check(self.target, steps)
        elif (
            isinstance(self.flow, NetworkFlow) and in_loader and self.config.data.workers and self.device.type != "cpu"
        ):
            raise UsageError(
                "data.workers: wanted 0, since loader processes cannot use a flow network on a GPU; compute its flow "
                "ahead with `python -m vda flow` and give --flow.cache"
            )

    # --- folders

    def folder_of(self, name: str) -> Path:
        """The folder of a method."""
        if self.shared:
            return self.folder / f"{name}-{self._digest(name)[:12]}"
        return self.folder / name

    def _digest(self, name: str) -> str:
        """Of all that decides the numbers of a method; a part of a data set does not pass for the whole."""
        frames = [(dataset.name, dataset.num_frames) for dataset in (self.source, self.target, self.validation)]
        return hashlib.sha256(f"{method_digest(self.config, name)} {frames}".encode()).hexdigest()

    def finish(self, name: str, result: Path) -> None:
        """Notes that a method is done, and which folder of its rounds holds the result."""
        folder = self.folder_of(name)
        content = (json.dumps({"result": str(result.relative_to(folder))}) + "\n").encode()
        distributed.by_first(atomic_write, folder / FINISHED, content)

    def finished(self) -> list[str]:
        """The methods of the run that are done and have left a segmentation network, in order."""
        done = (name for name in self.config.methods if (self.folder_of(name) / FINISHED).exists())
        return [name for name in done if METHODS[name].leaves_network]

    def result(self, name: str) -> Path:
        """The folder with the result of a method that is done."""
        return result_of(self.folder_of(name))

    # --- networks

    def network(self, start: str = "") -> nn.Module:
        """A network with the last weights of a method that is done, or a new one."""
        if start:
            return self.network_at(self.result(start))
        net = self.config.network
        torch.manual_seed(self.config.seed)
        network = build_network(
            net.name,
            self.source.num_classes,
            width=net.width,
            batch_norm=net.batch_norm,
            weights=net.weights,
            variant=net.variant,
        )
        return self._in_training(_on_device(network, self.device))

    def network_at(self, folder: Path) -> nn.Module:
        """The network of the newest checkpoint in a folder."""
        checkpoint = self.checkpoint(folder)
        if checkpoint.meta["classes"] != list(self.source.classes):
            found = ", ".join(checkpoint.meta["classes"])
            raise UsageError(f"{checkpoint.path}: wanted the classes {', '.join(self.source.classes)}, found {found}")
        return self._in_training(network_of(checkpoint, self.device))

    def checkpoint(self, folder: Path) -> Checkpoint:
        """The newest valid checkpoint in a folder, the same for all processes."""
        return load_checkpoint(distributed.by_first(lambda: str(checkpoint_in(folder))))

    def _in_training(self, network: SegmentationNetwork) -> SegmentationNetwork:
        """With what a checkpoint does not hold, since it is about this machine."""
        network.frames_at_once = self.config.frames_at_once
        return network

    # --- samples and labels

    def tubes(
        self,
        dataset: VideoDataset,
        labels: LabelSource | None,
        *,
        augment: Augment | None = None,
        flow: FlowSource | None = None,
        focus: Sequence[int] = (),
        stream: int = 0,
        number: int = 0,
    ) -> Tubes:
        """Training tubes; `stream` keeps the draws of two data sets apart, `number` those of the rounds of a method."""
        data = self.config.data
        return Tubes(
            dataset,
            length=data.tube_length,
            step=data.frame_step,
            augment=augment or self.config.augment,
            seed=(2 * self.config.seed + stream) + 1_000_003 * number,
            labels=labels,
            flow=flow,
            focus=focus,
        )

    def pseudo_labels(self, folder: Path, models: Sequence[Path], settings: Pseudo) -> pseudo.PseudoLabels:
        """Labels of the target under `folder`, by the newest checkpoint in `models`, or the mean of several."""
        checkpoints = [self.checkpoint(model) for model in models]
        networks = [network_of(checkpoint, self.device) for checkpoint in checkpoints]
        network = networks[0] if len(networks) == 1 else Ensemble(networks)
        labels = pseudo.generate(
            pseudo.Generator(network, self.flow, settings, self.config.occlusion, self.device),
            self.target,
            folder / "pseudo",
            model=hashlib.sha256("".join(c.digest for c in checkpoints).encode()).hexdigest(),
            flow_name=self.flow.name,
            seed=self.config.seed,
        )
        print(f"pseudo labels cover {100 * labels.coverage:.1f} % of the pixels of {self.target.name}")
        return labels


def result_of(folder: Path) -> Path:
    """The folder of a method's result: the one that `finished.json` names, the folder itself where there is none."""
    try:
        return folder / str(json.loads((folder / FINISHED).read_text())["result"])
    except FileNotFoundError:
        return folder
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{folder / FINISHED}: wanted the name of the result's folder, the file is damaged") from None


def network_of(checkpoint: Checkpoint, device: torch.device) -> SegmentationNetwork:
    """The network that a checkpoint holds, built from the settings that it carries."""
    name, config = checkpoint.meta.get("method"), checkpoint.meta.get("network", {})
    if name not in METHODS or not METHODS[name].leaves_network or "num_classes" not in config:
        raise UsageError(f"{checkpoint.path}: wanted a segmentation network, found that of {name}")
    network = build_network(**config)
    load_weights(network, checkpoint)
    return _on_device(network, device).eval()


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint folder, or the newest valid one of a method's or a round's folder."""
    return load_checkpoint(checkpoint_in(path))


def checkpoint_in(path: Path) -> Path:
    """Where that is."""
    if not path.is_dir():
        raise UsageError(f"{path}: wanted a checkpoint folder, found {'a file' if path.exists() else 'nothing'}")
    if (path / "manifest.json").exists():
        return path
    newest = latest(result_of(path))
    if newest is None:
        raise UsageError(f"{path}: wanted a checkpoint, found none in this folder")
    return newest


def checkpoints(folder: Path, steps: Collection[int]) -> list[Path]:
    """The valid checkpoints of these steps in a round's folder, oldest first."""
    return [path for step in sorted(steps) if (path := folder / step_name(step)).exists() and is_valid(path)]


def _on_device(network: SegmentationNetwork, device: torch.device) -> SegmentationNetwork:
    # channels last: 15 to 20 % less time for a step on a CPU, and the layout that tensor cores want
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
