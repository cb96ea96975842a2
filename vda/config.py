"""Every setting of a run, typed, with its default and its source.

The command line (tyro) and YAML files both end in these dataclasses, so there is one list of settings.
A recipe (`vda/recipes.py`) is a difference from the defaults here.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from vda.data.transforms import Augment
from vda.errors import UsageError

Phase = Literal["source_only", "vat", "pseudo", "vst", "oracle", "flow"]


def _wanted(fits: bool, setting: str, wanted: str, found: Any) -> None:
    if not fits:
        raise UsageError(f"setting {setting}: wanted {wanted}, found {found}")


@dataclass(frozen=True)
class Data:
    """Which videos play which part."""

    source: str = "embedded/simulator"
    """Labelled video, as DATASET/SPLIT."""
    target: str = "embedded/camera"
    """Video to adapt to, as DATASET/SPLIT. Its labels train the oracle alone, and grade pseudo labels in the report."""
    validation: str = "embedded/camera-val"
    """Held-out labelled video on which every stage is scored, as DATASET/SPLIT."""
    source_root: Path | None = None
    """Folder of the source data set; not needed for the embedded world."""
    target_root: Path | None = None
    """Folder of the target and validation data set; the source root where it is not given."""
    size: tuple[int, int] = (512, 1024)
    """Height and width at which frames are read, trained on and scored."""
    tube_length: int = 2
    """Frames of a training tube (the paper: 2)."""
    frame_step: int = 1
    """Distance tau between the frames of a tube, in frames of the clip."""
    workers: int = 0
    """Loader processes; 0 loads in the training process."""

    def __post_init__(self) -> None:
        _wanted(min(self.size) >= 32, "data.size", "at least 32 x 32 pixels, which the discriminators need", self.size)
        _wanted(self.tube_length >= 2, "data.tube_length", "at least 2 frames", self.tube_length)
        _wanted(self.frame_step >= 1, "data.frame_step", "at least 1", self.frame_step)
        _wanted(self.workers >= 0, "data.workers", "0 or more", self.workers)


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

    name: Literal["deeplab-resnet50", "deeplab-resnet18"] = "deeplab-resnet50"
    """DeepLab-v2 (four ASPP branches, output stride 8) on this backbone."""
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
        _wanted(self.width >= 8, "network.width", "at least 8", self.width)


@dataclass(frozen=True)
class Optimiser:
    """Optimiser and schedule of one phase. The segmentation head learns at ten times `lr`."""

    iterations: int = 40_000
    """Steps of this phase."""
    batch: int = 1
    """Tubes per step and domain."""
    name: Literal["sgd", "adam"] = "sgd"
    """sgd: momentum 0.9; adam: betas (0.9, 0.999)."""
    lr: float = 2.5e-4
    """Learning rate of the backbone."""
    schedule: Literal["poly", "cosine"] = "poly"
    """poly: lr (1 - i / schedule_length)^0.9; cosine: down to lr / 1000."""
    schedule_length: int | None = None
    """Steps over which the schedule runs; `iterations` where not given (ADVENT: 250000 for 120000 steps)."""
    weight_decay: float = 5e-4
    """L2 penalty."""

    def __post_init__(self) -> None:
        length = self.schedule_length
        _wanted(self.iterations >= 1, "optimiser.iterations", "at least 1", self.iterations)
        _wanted(self.batch >= 1, "optimiser.batch", "at least 1", self.batch)
        _wanted(self.lr > 0, "optimiser.lr", "more than 0", self.lr)
        _wanted(
            length is None or length >= self.iterations, "optimiser.schedule_length", "at least `iterations`", length
        )
        _wanted(self.weight_decay >= 0, "optimiser.weight_decay", "0 or more", self.weight_decay)

    def factor(self, iteration: int) -> float:
        """Learning rate of a step, as a share of the first one."""
        progress = iteration / (self.schedule_length or self.iterations)
        if self.schedule == "poly":
            return float((1 - progress) ** 0.9)
        return 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Supervised:
    """Source-only and oracle: cross entropy on labelled frames."""

    optimiser: Optimiser = field(default_factory=Optimiser)


@dataclass(frozen=True)
class VAT:
    """Phase 1, video adversarial training (Eq. 6-9)."""

    optimiser: Optimiser = field(default_factory=Optimiser)
    tube: Literal["tube", "frame", "none"] = "tube"
    """Dice over time and space (Eq. 6), over single frames (ablation, Table 3 row 3), or none."""
    tube_weight: float = 1.0
    """Weight of the tube matching loss; 1 in Eq. 9."""
    discriminator: Literal["sequence", "image", "none"] = "sequence"
    """Sequence discriminator (Eq. 8), image discriminator (Eq. 1, Table 3 rows 2 and 4), or none."""
    discriminator_width: int = 64
    """Channels of the discriminator's first layer; 64 is the published width."""
    gan: Literal["vanilla", "least_squares"] = "vanilla"
    """Flavour of the adversarial loss. Each has weights of its own: use lambda_adv of about 0.01 with least_squares."""
    lambda_adv: float = 0.001
    """Weight of the adversarial loss, lambda_V of Eq. 9."""
    discriminator_lr: float = 1e-4
    """Adam, betas (0.9, 0.99), poly schedule of the same length."""


@dataclass(frozen=True)
class Pseudo:
    """Pseudo labels (Algorithm 1, Eq. 10 and 11)."""

    policy: Literal["clip_adaptive", "instance_adaptive", "class_balanced"] = "clip_adaptive"
    """Unit that shares its thresholds: one clip (Eq. 11), one frame (Eq. 4), or the whole set (CBST)."""
    aggregate: bool = True
    """Average each prediction with those of its neighbours i-1 and i+1, warped by optical flow (Eq. 10)."""
    theta_init: float = 0.9
    """theta_0 of Algorithm 1."""
    alpha: float = 0.2
    """Proportion of a class that is labelled where theta is 1; the class-balanced policy labels exactly this much."""
    beta: float = 0.9
    """Momentum of the thresholds."""
    gamma: float = 8.0
    """Exponent that gives unsure classes fewer labels."""
    rule: Literal["paper", "iast"] = "paper"
    """Order statistic: element number of Eq. 11 and strict >, or IAST's percentile and >=. Without effect on the
    class-balanced policy, as beta, gamma and theta_init: it has CBST's own."""

    def __post_init__(self) -> None:
        _wanted(0 < self.theta_init < 1, "pseudo.theta_init", "between 0 and 1", self.theta_init)
        _wanted(0 <= self.alpha <= 1, "pseudo.alpha", "0 to 1", self.alpha)
        _wanted(0 <= self.beta <= 1, "pseudo.beta", "0 to 1", self.beta)
        _wanted(self.gamma >= 0, "pseudo.gamma", "0 or more", self.gamma)


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
        _wanted(self.alpha > 0, "occlusion.alpha", "more than 0", self.alpha)
        _wanted(0 < self.threshold < 1, "occlusion.threshold", "between 0 and 1", self.threshold)


@dataclass(frozen=True)
class VST:
    """Phase 2, video self-training (Eq. 12)."""

    optimiser: Optimiser = field(
        default_factory=lambda: Optimiser(iterations=10_000, batch=4, name="adam", lr=3e-6, schedule="cosine")
    )
    refine: Literal["strict", "lenient", "fill_in", "none"] = "strict"
    """Temporal consensus of pseudo labels: Eq. 13, Eq. 13 only where both frames are labelled, Eq. 14, or none."""
    lambda_reg: float = 1.0
    """Weight of the regulariser, lambda_reg of Eq. 12."""
    entropy_weight: float = 3.0
    """Entropy of the unlabelled pixels inside the regulariser (IAST)."""
    kld_weight: float = 0.1
    """Divergence from uniform of the labelled pixels inside the regulariser (IAST)."""
    source_weight: float = 0.0
    """Cross entropy on the source; 0 in Eq. 12."""
    augment: Augment = field(default_factory=lambda: Augment(flip=0.5, brightness=0.2, contrast=0.2, jitter=0.3))


@dataclass(frozen=True)
class FlowTraining:
    """A flow network of our own, trained on data whose flow is known (phase "flow")."""

    variant: Literal["flownet2-c", "flownet2-s", "flownet2-sd"] = "flownet2-c"
    """Which of the family."""
    width: int = 16
    """Channels of the first layer; 64 is published, 16 has 2.4 million weights."""
    # The loss is a mean over pixels: FlowNet's decay of 4e-4, made for sums, would outweigh it and end at zero flow.
    optimiser: Optimiser = field(
        default_factory=lambda: Optimiser(
            iterations=200_000, batch=4, name="adam", lr=4e-4, schedule="cosine", weight_decay=0.0
        )
    )

    def __post_init__(self) -> None:
        _wanted(self.width >= 4 and self.width % 4 == 0, "flow_training.width", "a multiple of 4", self.width)


@dataclass(frozen=True)
class Config:
    """One run: data, network, and the phases in the order in which they are done."""

    recipe: str = "custom"
    """Name of the run's folder under runs/."""
    phases: tuple[Phase, ...] = ("source_only", "vat", "pseudo", "vst", "oracle")
    """What to do, in this order; a phase starts from what the earlier ones left in the run folder."""
    out: Path | None = None
    """Run folder; runs/RECIPE-N with the next free N where not given."""
    resume: bool = False
    """Continue the run in `out`, or the newest run of this recipe."""
    seed: int = 0
    """Every random choice follows from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    flow: Flow = field(default_factory=Flow)
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    augment: Augment = field(default_factory=lambda: Augment(flip=0.5))
    """Augmentation of labelled tubes and of VAT's target tubes."""
    supervised: Supervised = field(default_factory=Supervised)
    vat: VAT = field(default_factory=VAT)
    occlusion: Occlusion = field(default_factory=Occlusion)
    pseudo: Pseudo = field(default_factory=Pseudo)
    vst: VST = field(default_factory=VST)
    flow_training: FlowTraining = field(default_factory=FlowTraining)

    def __post_init__(self) -> None:
        _wanted(self.seed >= 0, "seed", "0 or more", self.seed)
        _wanted(self.checkpoint_every >= 1, "checkpoint_every", "at least 1", self.checkpoint_every)


# Settings that say where and how a run is done, not what it computes.
_BESIDE_THE_POINT = ("recipe", "out", "resume", "device", "checkpoint_every", "phases")
_BESIDE_THE_POINT_OF_DATA = ("source_root", "target_root", "workers")


def to_dict(config: Any) -> dict[str, Any]:
    """The settings as plain JSON and YAML types."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def digest(config: Config) -> str:
    """Hash of the settings that decide the numbers; two runs with one digest compute the same."""
    relevant = {k: v for k, v in to_dict(config).items() if k not in _BESIDE_THE_POINT}
    relevant["data"] = {k: v for k, v in relevant["data"].items() if k not in _BESIDE_THE_POINT_OF_DATA}
    relevant["flow"]["cache"] = config.flow.cache is not None  # its flow is rounded, wherever it lies
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def load_yaml(path: Path, base: Config) -> Config:
    """`base` with the settings of a YAML file on top.

    Raises UsageError naming the file and the key for an unknown key (with the nearest name) or a value of another type.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: wanted a YAML file of settings, found: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: wanted a mapping of settings, found {type(tree).__name__}")
    return from_dict(tree, base, str(path))


def from_dict(tree: dict[str, Any], base: Any, where: str) -> Any:
    """The dataclass `base` with the settings of a plain tree on top; errors as `load_yaml`."""
    hints = get_type_hints(type(base))
    changes = {}
    for key, value in tree.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f", perhaps you meant {near[0]}" if near else ""
            raise UsageError(f"{where}: unknown setting {key!r}{hint}; known are {', '.join(hints)}")
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UsageError(f"{where}: setting {key} wants a mapping, found {value!r}")
            changes[key] = from_dict(value, current, f"{where}: {key}")
        else:
            changes[key] = _typed(value, hints[key], f"{where}: setting {key}")
    return dataclasses.replace(base, **changes)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, refused where it is of another."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in options:
            return value
        near = difflib.get_close_matches(str(value), [str(o) for o in options], n=1)
        raise UsageError(
            f"{where} wants one of {', '.join(map(str, options))}, found {value!r}"
            + (f"; perhaps you meant {near[0]}" if near else "")
        )
    if origin is tuple and isinstance(value, list | tuple):
        inner = options[:1] * len(value) if options[-1] is Ellipsis else options
        if len(inner) == len(value):
            return tuple(_typed(v, t, where) for v, t in zip(value, inner, strict=True))
    elif origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _typed(value, next(o for o in options if o is not type(None)), where)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    raise UsageError(f"{where} wants {getattr(hint, '__name__', hint)}, found {value!r}")
