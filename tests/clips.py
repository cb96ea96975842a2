"""A clip held in arrays, for tests."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vda.data.clip import FlowField, VideoDataset


@dataclass
class ArrayClip:
    name: str
    frames: NDArray[np.uint8]  # [N, H, W, 3]
    labels: NDArray[np.uint8] | None = None  # [N, H, W]
    flow: tuple[float, float] | None = None  # the same everywhere, per frame of distance

    @property
    def frame_names(self) -> list[str]:
        return [f"{i:04d}" for i in range(len(self.frames))]

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, i: int) -> NDArray[np.uint8]:
        return self.frames[i]

    def label(self, i: int) -> NDArray[np.uint8] | None:
        return None if self.labels is None else self.labels[i]

    def exact_flow(self, i: int, j: int) -> FlowField | None:
        if self.flow is None:
            return None
        uv = np.array(self.flow, np.float32) * (j - i)
        return np.broadcast_to(uv[:, None, None], (2, *self.frames.shape[1:3])).copy()


def scrolling_clip(
    name: str = "scroll",
    length: int = 5,
    size: tuple[int, int] = (24, 40),
    classes: int = 3,
    shift: int = 2,
    seed: int = 0,
) -> ArrayClip:
    """Vertical stripes that move left by `shift` pixels a frame: F_{i -> i+1} = (-shift, 0)."""
    rng = np.random.default_rng(seed)
    H, W = size
    stripes = np.repeat(rng.integers(0, classes, W + length * shift), 4)[: W + length * shift].astype(np.uint8)
    colours = rng.integers(0, 256, (classes, 3), dtype=np.uint8)
    labels = np.stack([np.tile(stripes[i * shift : i * shift + W], (H, 1)) for i in range(length)])
    return ArrayClip(name, colours[labels], labels, flow=(-float(shift), 0.0))


def dataset(*clips: ArrayClip, classes: int = 3) -> VideoDataset:
    palette = np.linspace(0, 255, classes * 3).reshape(classes, 3).astype(np.uint8)
    names = tuple(f"class{k}" for k in range(classes))
    return VideoDataset("arrays/all", names, palette, clips, clips[0].frames.shape[1:3])
