"""A run on disk: its folder, data, networks and checkpoints."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from vda import pseudo
from vda.checkpoint import Checkpoint, latest, load_checkpoint, load_weights
from vda.cli import choose_device
from vda.config import Config, Phase
from vda.data import VideoDataset, open_dataset
from vda.data.clip import FlowSource
from vda.data.transforms import Augment
from vda.data.tubes import LabelSource, Tubes
from vda.errors import UsageError
from vda.flow.cache import CachedFlow
from vda.flow.providers import FlowProvider, NetworkFlow, both_ways, provider
from vda.models import build_network

SEGMENTATION: tuple[Phase, ...] = ("source_only", "vat", "vst", "oracle")  # these leave a segmentation network
FLOW_WEIGHTS = "flow.safetensors"  # what the phase "flow" leaves in the run folder
NEEDS: dict[Phase, Phase] = {"vat": "source_only", "pseudo": "vat", "vst": "pseudo"}  # phase -> what it starts from


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
        self.flow = self._flow()
        self._check()

    def _flow(self) -> FlowProvider:
        computed = provider(self.config.flow, self.device)
        cache = self.config.flow.cache
        return computed if cache is None else CachedFlow(cache, self.target, computed.name)

    def _check(self) -> None:
        """Refuses what would fail later, after hours: clips shorter than a tube, a flow that the target lacks."""
        self._check_flow()
        net, done = self.config.network, set[str]()
        if net.weights is not None and not net.weights.is_file():
            raise UsageError(f"{net.weights}: wanted a file of backbone weights, found none")
        if net.weights is None and net.batch_norm != "train" and {"source_only", "oracle"} & {*self.config.phases}:
            raise UsageError(
                f"network.weights: wanted a file, since batch norm is frozen ({net.batch_norm}) and random weights "
                "have no statistics; give one, or choose --network.batch-norm train"
            )
        for phase in self.config.phases:
            needed = NEEDS.get(phase)
            if needed and needed not in done and not (self.folder / needed).exists():
                raise UsageError(
                    f"phases: {phase} starts from {needed}, which is neither before it nor in {self.folder}"
                )
            done.add(phase)

    def _check_flow(self) -> None:
        """Flow is read both ways: by VST between the frames of a tube, for pseudo labels between neighbours."""
        data, phases = self.config.data, self.config.phases
        clip, (i, j, *_) = self.tubes(self.target, None).tubes[0]
        if {"pseudo", "vst"} & {*phases}:
            both_ways(self.flow, clip, i, j)
        if isinstance(self.flow, CachedFlow):
            steps = {data.frame_step} if "vst" in phases else set[int]()
            self.flow.check(self.target, steps | ({1} if "pseudo" in phases else set()))
        forks = "vst" in phases and data.workers > 0 and self.device.type == "cuda"
        if forks and isinstance(self.flow, NetworkFlow):
            raise UsageError(
                "data.workers: wanted 0, since loader processes cannot use a flow network on a GPU; compute its flow "
                "ahead with `python -m vda flow` and give --flow.cache"
            )
        clip, (i, j, *_) = self.tubes(self.source, None).tubes[0]
        if "flow" in phases and (data.tube_length != 2 or clip.exact_flow(i, j) is None):
            raise UsageError(
                f"phase flow: wanted tubes of 2 frames of a data set that knows its flow (motion, pairs, embedded), "
                f"found {data.source} with tubes of {data.tube_length}"
            )

    def trained(self) -> list[Phase]:
        """The phases that have left a segmentation network in the run folder."""
        return [phase for phase in SEGMENTATION if latest(self.folder / phase)]

    def network(self, start: Phase | None = None) -> nn.Module:
        """A new network, or one with the last weights of an earlier phase."""
        if start is not None:
            checkpoint = open_checkpoint(self.folder / start)
            if checkpoint.meta["classes"] != list(self.source.classes):
                found = ", ".join(checkpoint.meta["classes"])
                raise UsageError(
                    f"{checkpoint.path}: wanted the classes {', '.join(self.source.classes)}, found {found}"
                )
            return network_of(checkpoint, self.device)
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
        return _on_device(network, self.device)

    def tubes(
        self,
        dataset: VideoDataset,
        labels: LabelSource | None,
        *,
        augment: Augment | None = None,
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
        model = open_checkpoint(self.folder / "vat").digest
        return pseudo.open_labels(self.folder / "pseudo", self.target, model)


def network_of(checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """The network that a checkpoint holds, built from the settings that it carries."""
    if checkpoint.meta["phase"] not in SEGMENTATION:
        phase = checkpoint.meta["phase"]
        raise UsageError(f"{checkpoint.path}: wanted a segmentation network, found that of phase {phase}")
    network = build_network(**checkpoint.meta["network"])
    load_weights(network, checkpoint)
    return _on_device(network, device).eval()


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint folder, or the newest valid one of a phase folder."""
    if not path.is_dir():
        raise UsageError(f"{path}: wanted a checkpoint folder, found {'a file' if path.exists() else 'nothing'}")
    newest = path if (path / "manifest.json").exists() else latest(path)
    if newest is None:
        raise UsageError(f"{path}: wanted a checkpoint, found none in this folder")
    return load_checkpoint(newest)


def _on_device(network: nn.Module, device: torch.device) -> nn.Module:
    # channels last: 15 to 20 % less time for a step on a CPU, and the layout that tensor cores want
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
