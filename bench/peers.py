"""The same operators in other libraries. A row of a library that is not installed says so and is left out."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .harness import Call, Unavailable

_PACKAGES = {
    "spatial_correlation_sampler": "spatial-correlation-sampler",
    "mmcv.ops": "mmcv",
    "kornia": "kornia",
    "cv2": "opencv-python",
}


def library(module: str) -> Any:
    """The module, or Unavailable: a benchmark has no business failing for want of a peer."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # compiled extensions fail in many ways
        package = _PACKAGES[module]
        missing = isinstance(error, ModuleNotFoundError)
        reason = "is not installed" if missing else f"does not load ({str(error).partition(chr(10))[0][:80]})"
        raise Unavailable(f"{package} {reason}") from error


# ---- correlation ----


def spatial_correlation_sampler(f1: Tensor, f2: Tensor) -> Tensor:
    """[B, C, H, W] x2 -> [B, 441, H, W]; the division by C, which it leaves to the caller, is part of the row."""
    sample = library("spatial_correlation_sampler").spatial_correlation_sample
    volume = sample(f1, f2, kernel_size=1, patch_size=21, stride=1, padding=0, dilation_patch=2)
    return volume.flatten(1, 2) / f1.shape[1]


def mmcv_correlation(f1: Tensor, f2: Tensor) -> Tensor:
    """The same; its max_displacement counts steps."""
    correlation = library("mmcv.ops").Correlation(kernel_size=1, max_displacement=10, stride=1, dilation_patch=2)
    return correlation(f1, f2).flatten(1, 2) / f1.shape[1]


# ---- warp ----


def kornia_remap(image: Tensor, flow: Tensor) -> Call:
    """kornia.geometry.transform.remap at p + flow(p)."""
    remap = library("kornia").geometry.transform.remap
    H, W = flow.shape[-2:]
    columns, rows = torch.arange(W, device=flow.device), torch.arange(H, device=flow.device)[:, None]
    return lambda: remap(image, columns + flow[:, 0], rows + flow[:, 1], align_corners=True)


class _OpenCV:
    """Images and maps as OpenCV keeps them (rows of pixels of channels), made before the clock runs."""

    def __init__(self, flow: Tensor) -> None:
        self.cv2 = library("cv2")
        self.cv2.setNumThreads(torch.get_num_threads())
        H, W = flow.shape[-2:]
        self.u, self.v = (np.ascontiguousarray(x) for x in flow[0].numpy())
        self.columns = np.arange(W, dtype=np.float32)
        self.rows = np.arange(H, dtype=np.float32)[:, None]

    def remap(self, image: np.ndarray, how: int, fill: int = 0) -> np.ndarray:
        x, y = self.u + self.columns, self.v + self.rows
        return self.cv2.remap(image, x, y, how, borderMode=self.cv2.BORDER_CONSTANT, borderValue=fill)


def cv2_remap(image: Tensor, flow: Tensor) -> Call:
    """cv2.remap of an image [1, C, H, W]."""
    opencv = _OpenCV(flow)
    pixels = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    return lambda: torch.from_numpy(opencv.remap(pixels, opencv.cv2.INTER_LINEAR)).permute(2, 0, 1)[None]


def cv2_consensus(mode: str) -> Any:
    """cv2.remap of the reference at the nearest pixel, then a comparison in NumPy."""

    def prepare(label: Tensor, reference: Tensor, flow: Tensor) -> Call:
        opencv = _OpenCV(flow)
        mine, other = label[0].numpy(), reference[0].numpy()
        ignore = np.uint8(255)

        def run() -> Tensor:
            moved = opencv.remap(other, opencv.cv2.INTER_NEAREST, 255)
            keep = mine == moved if mode == "strict" else mine != ignore
            return torch.from_numpy(np.where(keep, mine, ignore if mode == "strict" else moved))[None]

        return run

    return prepare
