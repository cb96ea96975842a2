"""Where the time of a training step goes, beside bare passes of the same network: `python -m bench.steps`.

The step is that of the training loop, on tubes that the loader draws from the embedded world, with the scenario's flow
for VST. Its parts add up to all of it:

    data            waiting for the loader, and the copy to the device; without flow
    flow            the flow provider
    network         forward and backward passes of the segmentation network
    discriminator   forward and backward passes
    operators       those of vda.ops, forwards and backwards
    maps            upsampling and softmax for the discriminator, and the small change of all losses
    optimisers      their steps

Beside it, taking turns with it: the same frames through the bare network, forwards and backwards, and a supervised step
on one tube. Times are CPU time of one thread, on a GPU those of the clock with a wait at the border of each part. True
labels stand for VST's pseudo labels.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import train
from vda.config import Config
from vda.data import VideoDataset, open_dataset
from vda.data.clip import Clip, FlowField
from vda.data.tubes import Batch, Draw, LabelSource, Samples, Tubes, loader, true_labels
from vda.flow.providers import FlowProvider, both_ways, provider
from vda.methods import Method, Round, supervised, vat, vst
from vda.methods.base import Losses, frames
from vda.models import build_network
from vda.ops import _lib
from vda.options import Data, Optimiser
from vda.recipes import SCENARIOS, Scenario

from . import machine, table

PARTS = ("data", "flow", "network", "discriminator", "operators", "maps", "optimisers")
PASSES, SUPERVISED = attrgetter("passes"), attrgetter("supervised")
TUBES = 8  # few, so that they are soon rendered; what one costs does not depend on it
LAST = 1000  # batch; more than any number of rounds draws
ONE_TUBE = Optimiser(batch=1)
SIZES: dict[str, Scenario] = {
    "demo": SCENARIOS["embedded"],
    "half": Scenario("", Config(data=Data(size=(256, 512))), self_training=ONE_TUBE),
    "paper": Scenario("", Config(), self_training=ONE_TUBE),
}


# ---- the clock ----


class Clock:
    """Seconds of the parts of a step. At every moment one part is on; the time goes to it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.part, self.spent = device, "maps", defaultdict[str, float](float)
        self.since = self.now()

    def now(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def switch(self, part: str) -> str:
        """Returns the part that was on."""
        now, before = self.now(), self.part
        self.spent[before] += now - self.since
        self.since, self.part = now, part
        return before

    def seconds(self, call: Callable[[], object]) -> float:
        """Of one call, whatever its parts."""
        before = self.now()
        call()
        return self.now() - before

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        before = self.switch(part)
        try:
            yield
        finally:
            self.switch(before)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self.on(part):
                return function(*arguments, **options)

        return call

    def hook(self, part: str) -> Callable[[Tensor], None]:
        """For `Tensor.register_hook`: the part goes on when the gradient of the tensor is there."""

        def arrived(_: Tensor) -> None:
            self.switch(part)

        return arrived

    def watch(self, module: nn.Module, part: str) -> None:
        """Forward and backward passes of a module are the part."""
        forward = module.forward

        def watched(x: Tensor) -> Tensor:
            with self.on(part):
                y = forward(x)
            if y.requires_grad:
                y.register_hook(self.hook(part))
            if x.requires_grad:
                x.register_hook(self.hook("maps"))
            return y

        module.forward = watched

    def watch_losses(self, method: Method) -> None:
        """Whatever part ends a backward pass, the forward pass of the next group begins with maps."""
        losses = method.losses

        def watched(source: Any, target: Any) -> Iterator[Losses]:
            for group in losses(source, target):
                yield group
                self.switch("maps")

        method.losses = watched  # type: ignore[method-assign]


@contextmanager
def watching_operators(clock: Clock) -> Iterator[None]:
    """Calls of our operators by the methods with all their checks, and the kernels of their backward passes."""
    with ExitStack() as stack:
        for module, name in (
            (vat, "segmentation_sums"),
            (vst, "segmentation_sums"),
            (vst, "consensus"),
            (_lib, "call"),
        ):
            stack.enter_context(patch.object(module, name, clock.timed("operators", getattr(module, name))))
        yield


# ---- what is timed ----


class TimedFlow:
    """A flow provider whose time is that of the part flow."""

    def __init__(self, flow: FlowProvider, clock: Clock) -> None:
        self.flow, self.clock, self.name = flow, clock, flow.name

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        with self.clock.on("flow"):
            return self.flow(clip, i, j)

    def both(self, clip: Clip, i: int, j: int) -> tuple[FlowField, FlowField]:
        with self.clock.on("flow"):
            return both_ways(self.flow, clip, i, j)


class World:
    """The data, network and flow of a scenario, as `vda/run.py` makes them; the network's weights are random."""

    def __init__(self, scenario: Scenario, clock: Clock) -> None:
        self.scenario, self.config, self.device = scenario, scenario.base, clock.device
        data = self.config.data
        self.source, self.target = (open_dataset(name, None, data.size) for name in (data.source, data.target))
        self.flow = TimedFlow(provider(self.config.flow, self.device), clock)

    def network(self) -> nn.Module:
        settings = self.config.network
        torch.manual_seed(0)
        network = build_network(
            settings.name, self.source.num_classes, width=settings.width, batch_norm=settings.batch_norm
        )
        return network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def tubes(self, dataset: VideoDataset, labels: LabelSource | None, **options: Any) -> Tubes:
        data = self.config.data
        options = {"augment": self.config.augment, "seed": 0, "labels": labels, **options}
        tubes = Tubes(dataset, length=data.tube_length, step=data.frame_step, **options).chosen(range(TUBES))
        for i in range(TUBES):
            tubes[Draw(0, i)]  # what stays in memory does
        return tubes

    def vat(self) -> Round:
        settings = self.scenario.of(vat.VATSettings, self.scenario.adversarial)
        method = vat.VAT(self.network(), settings, self.source.num_classes, self.config.data.tube_length)
        source, target = self.tubes(self.source, true_labels), self.tubes(self.target, None)
        return Round(Path(), method, settings.optimiser, source, target)

    def vst(self) -> Round:
        settings = self.scenario.of(vst.VSTSettings, self.scenario.self_training)
        method = vst.VST(self.network(), settings, self.config.occlusion)
        target = self.tubes(self.target, true_labels, augment=settings.augment, flow=self.flow)
        return Round(Path(), method, settings.optimiser, None, target)

    def supervised(self) -> Round:
        method = supervised.SourceOnly(self.network())
        return Round(Path(), method, self.scenario.supervised, self.tubes(self.source, true_labels), None)


class Steps:
    """The steps of a round, one at each call of `step`."""

    def __init__(self, training: Round, clock: Clock) -> None:
        self.method, self.clock = training.method.to(clock.device).train(), clock
        self.optimisers = train.build_optimisers(self.method, training.optimiser)

        def drawn(domain: Samples | None) -> Iterator[Batch] | None:
            batch = training.optimiser.batch
            return None if domain is None else loader(domain, batch=batch, start=0, stop=LAST)

        self._source, self._target = drawn(training.source), drawn(training.target)
        clock.watch(self.method.network, "network")
        for discriminator in self.method.discriminators.values():
            clock.watch(discriminator, "discriminator")
        for optimiser in self.optimisers.values():
            optimiser.step = clock.timed("optimisers", optimiser.step)  # type: ignore[method-assign]
        clock.watch_losses(self.method)

    def draw(self) -> None:
        def move(domain: Iterator[Batch] | None) -> Batch | None:
            return None if domain is None else next(domain).to(self.clock.device)

        with self.clock.on("data"):
            self.source, self.target = move(self._source), move(self._target)

    def step(self) -> None:
        train.step(self.method, self.optimisers, self.source, self.target)

    def passes(self) -> None:
        """What the network alone does in a step: the frames of each domain forwards, a gradient backwards."""
        for batch in (self.source, self.target):
            if batch is not None:
                self.method.zero_grad()
                logits = self.method.network(frames(batch))
                logits.backward(torch.full_like(logits, 1 / logits.numel()))


@dataclass(frozen=True)
class Split:
    """Seconds of one step by part, of its network's bare passes, and of a supervised step."""

    parts: dict[str, float]
    passes: float
    supervised: float

    @property
    def step(self) -> float:
        return sum(self.parts.values())


METHODS: dict[str, Callable[[World], Round]] = {"vat": World.vat, "vst": World.vst}


def rounds(name: str, scenario: Scenario, clock: Clock, count: int) -> list[Split]:
    """`count` steps of the method after one that is not counted."""
    world = World(scenario, clock)
    measured, beside = Steps(METHODS[name](world), clock), Steps(world.supervised(), clock)
    splits = []
    with watching_operators(clock):
        for _ in range(count + 1):
            beside.draw()
            clock.switch("maps")
            clock.spent.clear()
            measured.draw()
            measured.step()
            clock.switch("maps")
            parts = dict(clock.spent)
            splits.append(Split(parts, clock.seconds(measured.passes), clock.seconds(beside.step)))
    return splits[1:]


def share(splits: list[Split], part: str) -> float:
    """Of the step, the median over its rounds."""
    return median(split.parts.get(part, 0.0) / split.step for split in splits)


def ratio(splits: list[Split], other: Callable[[Split], float]) -> float:
    """Of the step to what takes turns with it, the median over the rounds."""
    return median(split.step / other(split) for split in splits)


def markdown_row(name: str, splits: list[Split]) -> str:
    """The medians, parts as shares of the step."""
    cells = [name, table.duration(median(split.step for split in splits))]
    cells += [f"{100 * share(splits, part):.1f} %" for part in PARTS]
    cells += [f"{ratio(splits, other):.2f}" for other in (PASSES, SUPERVISED)]
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str]) -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.steps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="demo", help="of frames, network and batch")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine.line(machine.describe(device)) + "\n")
    print(f"| step | time | {' | '.join(PARTS)} | × passes | × supervised |")
    print(f"| --- |{' ---: |' * (len(PARTS) + 3)}", flush=True)
    found = []
    for name in METHODS:
        splits = rounds(name, SIZES[given.size], Clock(device), given.rounds)
        print(markdown_row(name, splits), flush=True)
        operators = f"operators {100 * share(splits, 'operators'):.1f} %"
        found.append(f"{name} {ratio(splits, PASSES):.2f} times its network, {operators}")
    print("\n" + "; ".join(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
