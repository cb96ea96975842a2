"""Training data as the methods draw it, and calls that draw it: what bench_loader.py measures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import Tensor

from vda.config import Config
from vda.data import VideoDataset, open_dataset
from vda.data.synthetic import embedded
from vda.data.tubes import Draw, Tubes, loader, true_labels
from vda.flow.providers import DISFlow, ExactFlow
from vda.methods.cbst import CBSTSettings
from vda.methods.vst import VSTSettings
from vda.recipes import SCENARIOS, Scenario

from . import networks
from .harness import Unavailable

CAMVID = Path(os.environ.get("VDA_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data") / "camvid"
TUBES = 16  # few, so that they are soon rendered and read; what one costs does not depend on it
PREFETCHED = 2  # batches that a worker has ready, torch's default
LAST = 4000  # batch; more than any number of rounds draws

World = Literal["embedded", "embedded, rendering", "camvid"]
Stream = Literal["source", "cbst", "vst"]
AUGMENT = {"source": Config().augment, "cbst": CBSTSettings().augment, "vst": VSTSettings().augment}


@dataclass(frozen=True)
class Feed:
    """What a scenario's training draws, at the scenario's size or a small one."""

    world: World
    stream: Stream
    small: bool

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.world.partition(",")[0]]

    @property
    def config(self) -> Config:
        return self.scenario.base

    @property
    def size(self) -> tuple[int, int]:
        return (24, 64) if self.small else self.config.data.size

    @property
    def batch(self) -> int:
        return self.scenario.supervised.batch

    @property
    def frames(self) -> int:
        """Of a batch."""
        return self.batch * self.config.data.tube_length

    @property
    def shape(self) -> str:
        """E.g. "vst B=2 T=2 96×192"."""
        H, W = self.size
        return f"{self.stream} B={self.batch} T={self.config.data.tube_length} {H}×{W}"

    def _open(self) -> VideoDataset:
        if self.world == "camvid":
            if not CAMVID.is_dir():
                raise Unavailable("CamVid is not in $VDA_SHARED_DATA")
            return open_dataset(self.config.data.source, CAMVID, self.size)
        if self.world == "embedded":
            return open_dataset(self.config.data.source, None, self.size)
        return embedded("simulator", size=self.size, cache=1)  # nothing is drawn twice in a row

    @cached_property
    def tubes(self) -> Tubes:
        """Some tubes, once drawn already: what stays in memory does."""
        flow = DISFlow() if self.world == "camvid" else ExactFlow()
        data = self._open()
        every = Tubes(
            data,
            length=self.config.data.tube_length,
            step=self.config.data.frame_step,
            augment=AUGMENT[self.stream],
            seed=0,
            labels=true_labels,
            flow=flow if self.stream == "vst" else None,
            focus=range(data.num_classes) if self.stream == "cbst" else (),
        )
        some = every.chosen(range(TUBES))
        for i in range(TUBES):
            some[Draw(0, i)]
        return some

    @cached_property
    def step(self) -> networks.Call:
        """A step of the scenario's network on a batch."""
        batch = next(loader(self.tubes, batch=self.batch, start=0, stop=1))
        return networks.step(self.config.network, self.tubes.dataset.num_classes, batch)


class Drawing:
    """The next batches of a stream, drawn one after another; returns the first."""

    def __init__(self, feed: Feed, workers: int, count: int) -> None:
        self.batches = loader(feed.tubes, batch=feed.batch, start=0, stop=LAST, workers=workers)
        self.count, self.ready = count, PREFETCHED * workers if count > 1 else 0

    def before(self) -> None:
        """What lies ready would seem to have cost nothing."""
        for _ in range(self.ready):
            next(self.batches)

    def __call__(self) -> list[Tensor]:
        first, *_ = [next(self.batches) for _ in range(self.count)]
        return [x for x in (first.frames, first.labels, first.flows) if x is not None]
