"""One run: every setting of it, typed, from the command line or YAML.

Both end in these dataclasses, so there is one list of settings: those that parts share lie in `vda/options.py`, those
of a method beside the method. A recipe (`vda/recipes.py`) is a difference from the defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from vda.checkpoint import sha256_of
from vda.data.description import description_of
from vda.data.transforms import Augment
from vda.errors import UsageError
from vda.methods import METHODS
from vda.options import Data, Flow, Network, Occlusion, Report, wanted
from vda.precision import PrecisionName
from vda.yaml_file import read_yaml


@dataclass(frozen=True)
class Config:
    """One run: data, network, and the methods in the order in which they are trained."""

    recipe: str = "custom"
    """Name of the run's folder under runs/."""
    methods: Annotated[dict[str, Any], tyro.conf.arg(name="")] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    """Which of the methods to train, in this order; all where not given. The run folder has what they start from."""
    out: Path | None = None
    """Run folder; runs/RECIPE-N with the next free N where not given."""
    resume: bool = False
    """Continue the run in `out`, or the newest run of this recipe."""
    seed: int = 0
    """Every random choice follows from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    precision: PrecisionName = "fp32"
    """Mixed precision of the training: bf16, or fp16 with scaled gradients, for GPUs. Everything else stays fp32."""
    frames_at_once: int = 0
    """Frames that go through the network at one time; 0: all of a step. Gradients are those of the whole step, memory
    is that of so many frames, for one more forward pass: long tubes and large batches on a small GPU."""
    sync_batch_norm: bool = False
    """Batch statistics over all processes of the run; without effect where batch norm is frozen (eval)."""
    compile: bool = False
    """Compile the segmentation network with torch.compile: the first steps take minutes, the others less."""
    batch_factor: int = 1
    """Times as many tubes a step in every training, for several processes to share. Steps stay as many."""
    deterministic: bool = False
    """Bit-equal repetitions on one machine and GPU, for some speed; docs/reliability.md lists what is left out."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    snapshots: int = 4
    """Checkpoints of a training, evenly spaced and the last among them, that stay for the choice without labels."""
    panel_every: int = 500
    """Steps between the pictures of a training (frames, labels, predictions) in its folder; the last step has one too.
    0 draws none."""
    tensorboard: bool = False
    """Write the log and the pictures for TensorBoard too (pip install -e ".[tensorboard]")."""
    flow: Flow = field(default_factory=Flow)
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    augment: Augment = field(default_factory=lambda: Augment(flip=0.5))
    """Augmentation of labelled source, and of the target where a method has none of its own."""
    occlusion: Occlusion = field(default_factory=Occlusion)
    report: Report = field(default_factory=Report)

    def __post_init__(self) -> None:
        wanted(self.seed >= 0, "seed", "0 or more", self.seed)
        wanted(self.checkpoint_every >= 1, "checkpoint_every", "at least 1", self.checkpoint_every)
        wanted(self.panel_every >= 0, "panel_every", "0 or more", self.panel_every)
        wanted(self.batch_factor >= 1, "batch_factor", "at least 1", self.batch_factor)
        wanted(self.frames_at_once >= 0, "frames_at_once", "0 or more", self.frames_at_once)
        alone = not (self.compile and self.frames_at_once)
        wanted(alone, "compile", "frames_at_once of 0 beside it", self.frames_at_once)
        wanted(self.snapshots >= 1, "snapshots", "at least 1", self.snapshots)
        for name in self.methods:
            known_method(name, "methods")
        for name in self.only:
            wanted(name in self.methods, "only", f"some of {', '.join(self.methods)}", name)

    @property
    def training(self) -> tuple[str, ...]:
        """The methods to train, in order."""
        return self.only or tuple(self.methods)


def known_method(name: str, where: str) -> None:
    """Raises UsageError, with the nearest name, for a method that there is not."""
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f", perhaps you meant {near[0]}" if near else ""
        raise UsageError(f"{where}: unknown method {name!r}{hint}; known are {', '.join(METHODS)}")


# Settings that say where and how a run is done, not what it computes.
_BESIDE_THE_POINT = (
    *("recipe", "out", "resume", "device", "compile", "deterministic", "only"),
    *("checkpoint_every", "snapshots", "panel_every", "tensorboard", "report"),
)
_BESIDE_THE_POINT_OF_DATA = ("source_root", "target_root", "workers")


def to_dict(config: Any) -> dict[str, Any]:
    """The settings as plain JSON and YAML types."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, Path):
        return str(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def digest(config: Config) -> str:
    """Hash of the settings that decide the numbers; two runs with one digest compute the same."""
    relevant = {k: v for k, v in to_dict(config).items() if k not in _BESIDE_THE_POINT}
    relevant["data"] = {k: v for k, v in relevant["data"].items() if k not in _BESIDE_THE_POINT_OF_DATA}
    names = (config.data.source, config.data.target, config.data.oracle or "", config.data.validation)
    if described := [_content(found[0]) for name in names if (found := description_of(name))]:
        relevant["descriptions"] = described
    relevant["flow"]["cache"] = config.flow.cache is not None  # its flow is rounded, wherever it lies
    for part, weights in (("network", config.network.weights), ("flow", config.flow.weights)):
        relevant[part]["weights"] = weights and _content(weights)
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def _content(path: Path) -> str:
    """Hash of a file's content, once for each version of it; the path where there is no file."""
    try:
        return _hash_of(path, path.stat().st_mtime_ns)
    except OSError:
        return str(path)


@lru_cache
def _hash_of(path: Path, modified: int) -> str:
    return sha256_of(path)


def method_digest(config: Config, name: str) -> str:
    """Hash of the settings that decide the numbers of one method: its own, those of what it starts from, the run's."""
    chain: dict[str, Any] = {}
    while name:
        chain[name] = config.methods[name]
        name = config.methods[name].start
    return digest(dataclasses.replace(config, methods=dict(reversed(chain.items())), only=()))


def load_yaml(path: Path, base: Config) -> Config:
    """`base` with the settings of a YAML file on top.

    Raises UsageError naming the file and the key for an unknown key (with the nearest name) or a value of another type.
    """
    return from_dict(read_yaml(path, "a YAML file of settings"), base, str(path))


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
        if key == "methods":
            changes[key] = _methods(value, current, f"{where}: {key}")
        elif dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UsageError(f"{where}: setting {key} wants a mapping, found {value!r}")
            changes[key] = from_dict(value, current, f"{where}: {key}")
        else:
            changes[key] = _typed(value, hints[key], f"{where}: setting {key}")
    return dataclasses.replace(base, **changes)


def _methods(tree: Any, base: dict[str, Any], where: str) -> dict[str, Any]:
    """Settings of the methods that the tree names, in its order; those that the base has too begin there."""
    if not isinstance(tree, dict):
        raise UsageError(f"{where} wants a mapping of methods, found {tree!r}")
    methods = {}
    for name, settings in tree.items():
        known_method(name, where)
        if not isinstance(settings, dict | None):
            raise UsageError(f"{where}: {name} wants a mapping, found {settings!r}")
        start = base.get(name) or METHODS[name].settings_type()
        methods[name] = from_dict(settings or {}, start, f"{where}: {name}")
    return methods


_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # YAML 1.1 reads 1e-3, without a point, as a word


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, refused where it is of another."""
    if hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
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
