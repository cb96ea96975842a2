"""Settings that several parts of a run share, typed, each with its default and its source.

What belongs to one method lies in the method's own file; `vda/config.py` puts a run together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vda.errors import UsageError


def wanted(fits: bool, setting: str, wanted: str, found: Any) -> None:
    """Raises UsageError with one sentence where a setting does not fit."""
    if not fits:
        raise UsageError(f"setting {setting}: wanted {wanted}, found {found}")


@dataclass(frozen=True)
class Data:
    """Which videos play which part. DATASET/SPLIT may also be FILE.yaml/SPLIT: your own data (docs/data.md)."""

    source: str = "embedded/simulator"
    """Labelled video, as DATASET/SPLIT."""
    target: str = "embedded/camera"
    """Video to adapt to, as DATASET/SPLIT. Its labels train the oracle alone, and grade pseudo labels in the report."""
    oracle: str | None = None
    """Labelled target video for the oracle, as DATASET/SPLIT, where the target is not labelled frame by frame."""
    validation: str = "embedded/camera-val"
    """Held-out labelled video on which every stage is scored, as DATASET/SPLIT."""
    source_root: Path | None = None
    """Folder of the source data set; not needed for the embedded world and for descriptions of your own data."""
    target_root: Path | None = None
    """Folder of the target and validation data set; the source root where it is not given."""
    size: tuple[int, int] = (512, 1024)
    """Height and width at which frames are read, trained on and scored."""
    tube_length: int = 2
    """Frames of a training tube (the paper: 2). Image methods take its frames one by one, so all see equally many."""
    frame_step: int = 1
    """Distance tau between the frames of a tube, in frames of the clip."""
    workers: int = 0
    """Loader processes; 0 loads in the training process."""

    def __post_init__(self) -> None:
        wanted(min(self.size) >= 32, "data.size", "at least 32 x 32 pixels, which the discriminators need", self.size)
        wanted(self.tube_length >= 1, "data.tube_length", "at least 1 frame", self.tube_length)
        wanted(self.frame_step >= 1, "data.frame_step", "at least 1", self.frame_step)
        wanted(self.workers >= 0, "data.workers", "0 or more", self.workers)


@dataclass(frozen=True)
class Flow:
    """Optical flow between frames of a clip (docs/flow.md says how to choose)."""

    provider: Literal["exact", "dis", "flownet2", "raft", "precomputed"] = "dis"
    """The data set's own; OpenCV's DIS (no weights needed); FlowNet2 or torchvision's RAFT; files made elsewhere."""
    weights: Path | None = None
    """flownet2, raft: weights imported by `python -m vda weights import CHECKPOINT`; they say which variant it is.
    RAFT's checkpoints may also be given as they are."""
    root: Path | None = None
    """precomputed: folder of ROOT/CLIP/FRAME_I-FRAME_J with the suffix .flo, .png (KITTI), .npy or .npz."""
    cache: Path | None = None
    """Folder of the target's flow computed ahead by `python -m vda flow`; read instead of computing it."""


@dataclass(frozen=True)
class Network:
    """The per-frame segmentation network."""

    name: Literal["deeplab-resnet50", "deeplab-resnet18", "pspnet-resnet50", "pspnet-resnet18"] = "deeplab-resnet50"
    """DeepLab-v2 (four ASPP branches) or PSPNet on this backbone, output stride 8."""
    width: int = 64
    """Channels of the stem; 64 is the published width, less is for small CPU runs."""
    weights: Path | None = None
    """ImageNet weights of the backbone (.safetensors, or torchvision's .pth); random where not given."""
    variant: Literal["auto", "torchvision", "caffe"] = "auto"
    """Stride placement, channel order and normalisation of the weights; auto deduces it from the file."""
    batch_norm: Literal["train", "affine_frozen", "eval"] = "eval"
    """train: learn; affine_frozen: only running statistics move; eval: nothing moves. One policy for all methods."""

    def __post_init__(self) -> None:
        # below 8 channels, torch 2.13's backward of a strided 1x1 convolution in channels-last writes out of bounds
        wanted(self.width >= 8, "network.width", "at least 8", self.width)


@dataclass(frozen=True)
class Optimiser:
    """Optimiser and schedule of one training. The segmentation head learns at ten times `lr`."""

    iterations: int = 40_000
    """Steps."""
    batch: int = 1
    """Tubes per step and domain; of both together where they are mixed (CBST, CRST, CCM)."""
    name: Literal["sgd", "adam"] = "sgd"
    """sgd: momentum 0.9; adam: `betas`."""
    lr: float = 2.5e-4
    """Learning rate of the backbone."""
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    """poly: lr (1 - i / schedule_length)^0.9; cosine: down to lr / 1000."""
    schedule_length: int | None = None
    """Steps over which the schedule runs; `iterations` where not given (ADVENT: 250000 for 120000 steps)."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Momenta of Adam."""

    def __post_init__(self) -> None:
        length = self.schedule_length
        wanted(self.iterations >= 1, "optimiser.iterations", "at least 1", self.iterations)
        wanted(self.batch >= 1, "optimiser.batch", "at least 1", self.batch)
        wanted(self.lr > 0, "optimiser.lr", "more than 0", self.lr)
        wanted(
            length is None or length >= self.iterations, "optimiser.schedule_length", "at least `iterations`", length
        )
        wanted(self.weight_decay >= 0, "optimiser.weight_decay", "0 or more", self.weight_decay)

    def factor(self, iteration: int) -> float:
        """Learning rate of a step, as a share of the first one."""
        if self.schedule == "constant":
            return 1.0
        progress = iteration / (self.schedule_length or self.iterations)
        if self.schedule == "poly":
            return float((1 - progress) ** 0.9)
        return 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Pseudo:
    """Which predictions on the target become labels (vda/policies.py)."""

    policy: Literal["clip_adaptive", "instance_adaptive", "class_balanced", "top_portion", "class_or_image", "all"] = (
        "clip_adaptive"
    )
    """Thresholds per clip (Eq. 11), per frame (IAST), or of the whole set (CBST, FDA, CCM); all: no threshold."""
    aggregate: bool = False
    """Average each prediction with those of its neighbours i-1 and i+1, warped by optical flow (Eq. 10)."""
    theta_init: float = 0.9
    """theta_0 of Algorithm 1."""
    alpha: float = 0.2
    """Proportion of a class that is labelled (clip_adaptive, instance_adaptive: where theta is 1)."""
    beta: float = 0.9
    """clip_adaptive, instance_adaptive: momentum of the thresholds."""
    gamma: float = 8.0
    """clip_adaptive, instance_adaptive: exponent that gives unsure classes fewer labels."""
    rule: Literal["paper", "iast"] = "paper"
    """clip_adaptive, instance_adaptive: element number of Eq. 11 and strict >, or IAST's percentile and >=."""
    cap: float = 0.9
    """top_portion: confidence from which a pixel is labelled even beyond its class's proportion."""

    def __post_init__(self) -> None:
        wanted(0 < self.theta_init < 1, "pseudo.theta_init", "between 0 and 1", self.theta_init)
        wanted(0 < self.alpha <= 1, "pseudo.alpha", "above 0, at most 1", self.alpha)
        wanted(0 <= self.beta <= 1, "pseudo.beta", "0 to 1", self.beta)
        wanted(self.gamma >= 0, "pseudo.gamma", "0 or more", self.gamma)
        wanted(0 < self.cap <= 1, "pseudo.cap", "above 0, at most 1", self.cap)


@dataclass(frozen=True)
class Occlusion:
    """Where a neighbour shows what a frame shows (vda/occlusion.py).

    Photometric: where exp(-alpha e) > threshold, e the norm of the colour difference on [0, 1] RGB. The paper gives
    neither alpha nor the range of colours. alpha = 50 with the squared norm cuts at 12 grey levels per channel, as
    alpha = 1 with the printed, unsquared norm does on ImageNet-normalised colours.
    """

    test: Literal["photometric", "consistency", "both"] = "photometric"
    """Colours agree (the paper), the flow there and the flow back agree, or both."""
    alpha: float = 50.0
    """Steepness; more means stricter."""
    threshold: float = 0.7
    """th of the paper."""
    squared: bool = True
    """Whether e is the squared norm."""

    def __post_init__(self) -> None:
        wanted(self.alpha > 0, "occlusion.alpha", "more than 0", self.alpha)
        wanted(0 < self.threshold < 1, "occlusion.threshold", "between 0 and 1", self.threshold)


@dataclass(frozen=True)
class Report:
    """The page of a run (docs/report.md)."""

    clips: int = 3
    """Clips to play, the worst first; as many of the pseudo labels."""
    frames: int = 24
    """Frames of a clip that are shown, from its first labelled one on."""

    def __post_init__(self) -> None:
        wanted(self.clips >= 0, "report.clips", "0 or more", self.clips)
        wanted(self.frames >= 1, "report.frames", "at least 1", self.frames)
