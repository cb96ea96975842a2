"""Clips in memory with logits and flow that cost nothing, and calls that label them: what bench_pseudo.py measures."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vda.data.clip import Clip, FlowField, VideoDataset
from vda.options import Occlusion, Pseudo
from vda.pseudo import Generator, generate

from . import compositions, inputs

K, FRAMES = 15, 8
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Film:
    """A clip in memory that shows two neighbouring frames in turn."""

    name: str
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    frame_names: tuple[str, ...] = tuple(f"{i:06d}" for i in range(FRAMES))

    def __len__(self) -> int:
        return len(self.frame_names)

    def frame(self, i: int) -> NDArray[np.uint8]:
        return self.images[i % 2]

    def label(self, i: int) -> None:
        return None

    def exact_flow(self, i: int, j: int) -> None:
        return None


class Known(nn.Module):
    """A network that knows the logits [FRAMES, K, h, w] of a clip's frames, which it is asked for in order."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = itertools.cycle(logits.split(1))

    def forward(self, image: Tensor) -> Tensor:
        return next(self.logits)


@functools.lru_cache(maxsize=1)
def films(H: int, W: int) -> tuple[VideoDataset, Callable[[Clip, int, int], FlowField]]:
    """Two clips, and the flow between their frames."""
    flows, frame, near = inputs.scene(H, W, 1)
    there = flows[:, 0]
    back = -compositions.warp(there, -there)  # nearly, for a smooth field
    both = (there[0].numpy(), back[0].numpy())
    first, second = ((255 * x[0].clamp(0, 1)).byte().permute(1, 2, 0).numpy() for x in (frame, near[:, 0]))
    clips = tuple(Film(name, (first, second)) for name in ("a", "b"))
    names = tuple(f"class {k}" for k in range(K))
    data = VideoDataset("bench/all", names, np.zeros((K, 3), np.uint8), clips, (H, W))
    return data, lambda clip, i, j: both[i % 2]


def labelling(policy: str, aggregate: bool, clips: int, size: tuple[int, int], folder: Path) -> Callable[[], Path]:
    """A call that labels so many clips, into a new folder each time, which it returns."""
    data, flow = films(*size)
    data = VideoDataset(data.name, data.classes, data.palette, data.clips[:clips], data.size)
    settings = Pseudo(policy=policy, aggregate=aggregate, alpha=0.5)  # type: ignore[arg-type]
    logits = inputs.logits(K, *size, count=FRAMES)
    runs = itertools.count()

    def call() -> Path:
        here = folder / f"{clips} clips" / str(next(runs))
        generator = Generator(Known(logits), flow, settings, Occlusion(), CPU)
        generate(generator, data, here, model="", flow_name="known", seed=0)
        return here

    return call
