"""Training data beside the network that it feeds: the loader's frames, and FDA's transfer of a frame's style.

A loader keeps up where its time per frame is below that of the network's step. Streams are those of the methods: the
source's, CBST's with resized crops around rare classes, and VST's with flow both ways. `2 workers` is what two loader
processes give while nothing else asks for the cores; `2 workers, waiting` is how long a training still waits for its
next batch, loaded while it trains. `read` is one frame with its label from files in each form in which data sets come,
brought to the size of a training.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import networks
from bench.bench_spectral import pair
from bench.feeds import Drawing, Feed, Stream, World
from bench.formats import FORMATS, clip_of
from bench.harness import Bench, Beside, call
from vda.spectral import transfer_spectrum

DRAWN = 4  # batches of a call
READ = 2  # frames of a call
ROWS = {"ours": 0, "2 workers": 2, "2 workers, waiting": 2}
CASES: list[tuple[World, Stream]] = [
    ("embedded", "source"),
    ("embedded", "cbst"),
    ("embedded", "vst"),
    ("embedded, rendering", "vst"),  # its first epoch
    ("camvid", "source"),
    ("camvid", "vst"),
]


@pytest.mark.cpu_only
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("world", "stream"), CASES)
def test_loader(bench: Bench, world: World, stream: Stream, row: str) -> None:
    feed = Feed(world, stream, small=bench.check_only)
    count = {row: 1 if "waiting" in row else DRAWN for row in ROWS}
    name = networks.training(feed.config.network)
    beside = Beside(name, lambda: feed.step(), feed.frames, count[row] * feed.frames)
    bench.case(f"loader {world}", feed.shape, kind="uint8", beside=beside)
    bench.time({row: functools.partial(Drawing, feed, ROWS[row], count[row]) for row in ROWS})


@pytest.mark.cpu_only
@pytest.mark.parametrize("row", ["ours"])
@pytest.mark.parametrize("form", FORMATS)
def test_read(bench: Bench, tmp_path: Path, form: str, row: str) -> None:
    """Frame and label from files of the usual size to 512 x 1024."""
    H, W = bench.size(512, 1024)
    height, width = FORMATS[form].size
    forward = networks.forward(15, torch.rand(1, 3, H, W))
    beside = Beside(networks.FORWARD, forward, 1, READ)
    bench.case(f"read {form}", f"{height}×{width} to {H}×{W}", kind="uint8", beside=beside)
    clip = clip_of(FORMATS[form], tmp_path, READ, (H, W), small=bench.check_only)

    def read() -> list[Tensor]:
        pairs = [(clip.frame(i), clip.label(i)) for i in range(READ)]
        return [torch.from_numpy(array) for pair in pairs for array in pair]

    bench.time({row: lambda: read})


@pytest.mark.cpu_only
@pytest.mark.parametrize("row", ["ours"])
def test_fda_transfer(bench: Bench, row: str) -> None:
    """Per frame of the source; how wide the window is hardly matters."""
    H, W = bench.size(512, 1024)
    forward = networks.forward(15, torch.rand(1, 3, H, W))
    bench.case("FDA transfer", f"β=0.09 3×{H}×{W}", beside=Beside(networks.FORWARD, forward, 1, 1))
    bench.time({row: call(transfer_spectrum, beta=0.09)}, *pair(H, W))
