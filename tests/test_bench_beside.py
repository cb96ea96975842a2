"""Benchmarks of what runs beside a network, without their clocks: pseudo labels, loaders, shares and memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import ceilings, feeds, films, harness, inputs, machine, memory, table, timing
from vda.data.labels import read_label
from vda.ops import warp_occlusion
from vda.policies import POLICIES


@pytest.mark.parametrize("aggregate", [False, True])
def test_pseudo_labels_of_a_bench_are_like_any(aggregate: bool, tmp_path: Path) -> None:
    """A part of the pixels, of many classes, is labelled: a file of one value would be written in no time."""
    H, W = 64, 128
    for policy in POLICIES:
        folder = films.labelling(policy, aggregate, 2, (H, W), tmp_path / policy)()
        labels = np.stack([read_label(path) for path in sorted(folder.rglob("*.png"))])
        assert labels.shape == (2 * films.FRAMES, H, W)
        assert 0.05 < (labels == 255).mean() < 0.95 if policy != "all" else labels.max() < films.K
        assert len(np.unique(labels)) > 5


def test_frames_of_a_bench_show_each_other() -> None:
    data, flow = films.films(512, 1024)
    frames = [torch.from_numpy(data.clips[0].frame(i)).permute(2, 0, 1)[None] / 255 for i in range(2)]
    for i in range(2):
        field = torch.from_numpy(flow(data.clips[0], i, 1 - i))[None]
        _, visible = warp_occlusion(frames[i], frames[1 - i], field, alpha=inputs.ALPHA, squared=True)
        assert 0.74 < visible.float().mean().item() < 0.97


def test_batches_that_lie_ready_are_drawn_before_the_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()

    def loader(*_: Any, **__: Any) -> Iterator[Any]:
        return (SimpleNamespace(frames=i, labels=None, flows=None) for i in numbers)

    monkeypatch.setattr(feeds, "loader", loader)
    drawing = feeds.Drawing(SimpleNamespace(tubes=None, batch=1), workers=2, count=3)
    assert drawing() == [0]  # and two more
    drawing.before()  # two of each worker
    assert (drawing(), next(numbers)) == ([7], 10)
    waiting = feeds.Drawing(SimpleNamespace(tubes=None, batch=1), workers=2, count=1)
    waiting.before()
    assert waiting() == [11]


# ---- clocks, by their logic alone ----


class Pedantic:
    """The fixture of pytest-benchmark with a clock that shows what it is told."""

    def __init__(self, *times: float) -> None:
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=list(times)))
        self.extra_info: dict[str, float] = {}

    def pedantic(self, call: Any, *, setup: Any, rounds: int, warmup_rounds: int) -> None:
        assert (rounds, warmup_rounds) == (len(self.stats.stats.data), 0)
        for _ in range(rounds):
            setup()
            call()


def test_a_row_and_what_it_runs_beside_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    clock = iter([0.5, 9.0, 4.0, 1.0, 6.0])  # the check, then the network: once before the rounds, and before each

    def once(call: Any, device: torch.device) -> tuple[Any, float]:
        return call(), next(clock)

    monkeypatch.setattr(timing, "once", once)
    options = {"list": False, "check": False, "full": False, "benchmark_max_time": "1.0", "benchmark_min_rounds": 5}
    run = table.Results(machine.describe(torch.device("cpu")), {"copy": 10e9})
    config: Any = SimpleNamespace(getoption=options.__getitem__)
    bench = harness.Bench("ours", Pedantic(0.4, 0.3, 0.9), config, ceilings.Ceilings(torch.device("cpu")), run)
    bench.case("loading", "2×3", beside=harness.Beside("net", lambda: done.append("net"), frames=2, row_frames=8))
    bench.time({"ours": lambda: lambda: done.append("row")})
    assert done == ["row"] + ["net"] + ["net", "row"] * 3
    run.finish()
    (found,) = run.rows
    assert (found.median, found.beside_frame, found.fraction) == (0.4, 2.0, None)
    assert found.share == pytest.approx(0.15 * 2 / 8)  # the middle one of 0.4 / 4, 0.3 / 1 and 0.9 / 6
    lines = table.markdown(run).splitlines()
    assert [cell.strip() for cell in lines[-1].strip("|").split("|")] == [
        *("loading", "2×3 float32", "**ours**", "50.0 ms (±38 %)", "20.0", "net", "2.00 s", "3.8 %", "")
    ]
    assert not any(line.startswith("| op") and "of ceiling" in line for line in lines)  # no table of nothing


# ---- memory ----


def test_peaks_are_those_of_tensors_and_arrays() -> None:
    def mixed() -> None:
        a = torch.zeros(1000, 1000)
        del a
        b = torch.zeros(2000, 1000)
        c = np.zeros(3_000_000, np.uint8)
        assert len(b) < len(c)

    memory.peak(mixed)
    assert memory.peak(mixed) == pytest.approx(8e6 + 3e6, rel=0.02)


@pytest.mark.parametrize("policy", POLICIES)
def test_pseudo_labels_take_the_memory_of_one_clip(policy: str, tmp_path: Path) -> None:
    H, W = 96, 192
    one, two = (films.labelling(policy, True, clips, (H, W), tmp_path) for clips in (1, 2))
    assert memory.growth(one, two) < 0.2 * films.FRAMES * H * W
