"""Benchmarks of training steps, without their clocks: whose time is whose, and what counts as memory."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from bench import memory, peaks, steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> steps.Clock:
    """A clock that is a second later at every look."""
    ticks = itertools.count()
    monkeypatch.setattr(steps.Clock, "now", lambda self: float(next(ticks)))
    return steps.Clock(torch.device("cpu"))


def test_time_goes_to_the_part_that_is_on(clock: steps.Clock) -> None:
    with clock.on("data"), clock.on("flow"):
        clock.switch("network")  # as a hook does, until flow ends
    assert clock.part == "maps"
    assert clock.spent == {"maps": 1, "data": 2, "flow": 1, "network": 1}


def test_a_module_is_timed_forwards_and_backwards(clock: steps.Clock) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    clock.watch(first, "network")
    clock.watch(second, "discriminator")
    order = []
    switch = clock.switch
    clock.switch = lambda part: (order.append(part), switch(part))[1]  # type: ignore[method-assign]
    second(first(torch.ones(1, 2)).relu()).sum().backward()
    assert order == ["network", "maps", "discriminator", "maps", "discriminator", "maps", "network"]


SCENARIO = steps.SIZES["demo"]
SMALL = replace(SCENARIO, base=replace(SCENARIO.base, data=replace(SCENARIO.base.data, size=(32, 64))))


@pytest.mark.parametrize(("name", "without"), [("vat", {"flow"}), ("vst", {"discriminator"})])
def test_the_parts_of_a_step(name: str, without: set[str], clock: steps.Clock) -> None:
    (split,) = steps.rounds(name, SMALL, clock, 1)
    assert set(split.parts) == set(steps.PARTS) - without
    assert split.step == sum(split.parts.values()) > 0
    assert min(split.passes, split.supervised) > 0
    row = steps.markdown_row(name, [split])
    assert row.count("|") == len(steps.PARTS) + 5
    assert f"| {100 * split.parts['network'] / split.step:.1f} % |" in row


def test_only_what_is_made_during_a_call_counts() -> None:
    held = [torch.empty(1_000_000)]

    def call() -> None:
        one = torch.empty(500_000)
        held.clear()
        torch.empty(750_000)
        del one

    assert memory.tensor_peak(call) == pytest.approx(5_000_000, abs=1000)


def test_the_peak_of_a_step_holds_the_network_and_its_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "build_network", functools.partial(peaks.build_network, width=16))
    found = peaks.measure("vst", 2, 1, (32, 64))
    weights = 4 * sum(p.numel() for p in peaks.method("vst", 2, 1).parameters())
    assert 3 * weights < found.tensors < found.process  # parameters, momenta, and gradients at the end
