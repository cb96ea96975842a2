"""Peak memory of a training step, all frames of a tube at once and frame by frame: `python -m bench.peaks`.

One child process per row. `tensors` is the most that weights, optimisers, frames and all that the step makes take
together; `process`, on a CPU, the most that the process had resident: with Python and torch themselves and scratch
memory of the convolutions. Frames, labels and weights are random. A step on small frames comes before the one that is
measured, after which the optimisers' states exist.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import train
from vda.data.tubes import Batch
from vda.methods import Method
from vda.methods.vat import VAT, VATSettings
from vda.methods.vst import VST, VSTSettings
from vda.models import build_network
from vda.options import Occlusion
from vda.plan import memory as resident

from . import machine, memory, timing

K = 15
SMALL = (64, 64)
# For children: glibc gives what is freed back to the system from 1 MiB on. By default blocks of up to 32 MiB stay, and
# the holes between them have made a peak of 1.4 GiB one of 2.3.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
METHODS = ("vat", "vst")


def method(name: str, length: int, frames_at_once: int) -> Method:
    """The method with the paper's network and default settings."""
    torch.manual_seed(0)
    network = build_network("deeplab-resnet50", K).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.frames_at_once = frames_at_once
    made = VAT(network, VATSettings(), K, length) if name == "vat" else VST(network, VSTSettings(), Occlusion())
    return made.train()


def batch(length: int, size: tuple[int, int]) -> Batch:
    """One tube of noise."""
    frames = torch.rand(1, length, 3, *size)
    labels = torch.randint(K, (1, length, *size), dtype=torch.uint8)
    return Batch(frames, labels, torch.zeros(1, length - 1, 2, 2, *size), [], torch.zeros(1, dtype=torch.int64))


@dataclass(frozen=True)
class Peak:
    """Of one step, in bytes, and its seconds: CPU time, on a GPU those of the clock."""

    tensors: int
    process: int
    seconds: float


def measure(name: str, length: int, frames_at_once: int, size: tuple[int, int]) -> Peak:
    """A step of the method in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = method(name, length, frames_at_once).to(device)
    optimisers = train.build_optimisers(trained, VATSettings().optimiser)

    def draw(size: tuple[int, int]) -> tuple[Batch | None, Batch]:
        return batch(length, size).to(device) if name == "vat" else None, batch(length, size).to(device)

    train.step(trained, optimisers, *draw(SMALL))
    trained.zero_grad()
    both = draw(size)
    held = sum(x.nbytes for x in tensors(trained, optimisers, both))
    resident.reset(device)
    before = time.process_time()
    if device.type == "cuda":
        _, seconds = timing.once(lambda: train.step(trained, optimisers, *both), device)
        return Peak(resident.peak(device), 0, seconds)
    during = memory.tensor_peak(lambda: train.step(trained, optimisers, *both))
    return Peak(held + during, resident.peak(device), time.process_time() - before)


def tensors(
    trained: Method, optimisers: dict[str, torch.optim.Optimizer], both: tuple[Batch | None, Batch]
) -> Iterator[Tensor]:
    """What there is before the step."""
    yield from trained.parameters()
    yield from trained.buffers()
    for optimiser in optimisers.values():
        for state in optimiser.state.values():
            yield from (x for x in state.values() if isinstance(x, Tensor))
    for domain in both:
        yield from (x for x in vars(domain).values() if isinstance(x, Tensor)) if domain else ()


def main(arguments: list[str]) -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m bench.peaks", description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512), metavar=("H", "W"), help="of the frames")
    parser.add_argument("--lengths", type=int, nargs="+", default=(2, 4, 8), metavar="T", help="frames of a tube")
    parser.add_argument("--parts", type=int, nargs="+", default=(0, 1), metavar="N", help="frames at once, 0: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--row", action="store_true", help="only the first row, as JSON, in this process")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    rows = itertools.product(given.methods, given.lengths, given.parts)
    if given.row:
        print(json.dumps(asdict(measure(*next(rows), tuple(given.size)))))
        return 0
    print(machine.line(machine.describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))))
    print("\n| step | T | frames at once | tensors | process | seconds |\n| --- |" + " ---: |" * 5, flush=True)
    for name, length, parts in rows:
        row = ["--row", "--methods", name, "--lengths", str(length), "--parts", str(parts)]
        row += ["--threads", str(given.threads), "--size", *map(str, given.size)]
        command = [sys.executable, "-m", "bench.peaks", *row]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **RETURNED})
        if done.returncode:
            cells = ["not measured", f"exit status {done.returncode}", ""]
        else:
            found = Peak(**json.loads(done.stdout))
            cells = [f"{x / 2**30:.2f} GiB" for x in (found.tensors, found.process)] + [f"{found.seconds:.1f}"]
        print(f"| {name} | {length} | {parts or 'all'} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
