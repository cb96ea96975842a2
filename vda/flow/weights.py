"""Weights of the flow networks: foreign checkpoints in, safetensors with a hash out, nothing executed.

`python -m vda weights import FILE` recognises the variant by the names and shapes of the tensors, checks every one, and
writes a safetensors file whose metadata name the variant and the SHA-256 of the weights; `load_estimator` reads it. The
small files of RAFT are also read as they were published.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vda.checkpoint import atomic_write
from vda.errors import UsageError
from vda.flow import raft
from vda.flow.flownet2 import VARIANTS, Estimator, build_estimator

FORMAT = "vda-flow-1"
PREFIXES = ("module.", "model.")  # of networks that were wrapped when they were saved
KNOWN = (*VARIANTS, *raft.VARIANTS)


def family(variant: str) -> str:
    """The provider that a variant belongs to, flownet2 or raft."""
    return "raft" if variant in raft.VARIANTS else "flownet2"


@cache
def shapes(variant: str, width: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a variant's tensors; width: of the FlowNet2 family, 64 as published."""
    if variant in raft.VARIANTS:
        return raft.VARIANTS[variant]
    with torch.device("meta"):
        return shapes_of(build_estimator(variant, width).state_dict())


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in state.items()}


def width_of(found: Mapping[str, tuple[int, ...]]) -> int:
    """Channels of the first layer of a network of the FlowNet2 family; 64 for what is none."""
    firsts = [found[name] for name in ("conv1.0.weight", "flownetc.conv1.0.weight") if name in found]
    return firsts[0][0] if firsts and firsts[0] and firsts[0][0] in range(4, 1025, 4) else 64


def recognise(found: Mapping[str, tuple[int, ...]], where: str) -> str:
    """The variant whose tensors these are; UsageError, naming the nearest one and what differs, if none is."""
    width = width_of(found)
    for variant in KNOWN:
        if shapes(variant, width) == found:
            return variant
    nearest = min(KNOWN, key=lambda variant: _difference(variant, width, found)[0])
    raise UsageError(f"{where}: wanted the weights of {', '.join(KNOWN)}; {_difference(nearest, width, found)[1]}")


def _difference(variant: str, width: int, found: Mapping[str, tuple[int, ...]]) -> tuple[int, str]:
    """How many tensors differ, and one of them in words."""
    wanted = shapes(variant, width)
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    differing = [name for name in wanted.keys() & found.keys() if wanted[name] != found[name]]
    if len(missing) == len(wanted):
        return len(wanted) + len(extra), "found none of their tensors: this is another network"
    words = []
    if differing:
        name = min(differing)
        words.append(f"{name} is {list(found[name])} instead of {list(wanted[name])}")
    words += [f"{len(missing)} tensors are missing, such as {min(missing)}"] if missing else []
    words += [f"{len(extra)} are too many, such as {min(extra)}"] if extra else []
    return len(missing) + len(extra) + len(differing), f"nearest is {variant}, but {'; '.join(words)}"


def import_weights(path: Path, out: Path | None = None) -> tuple[str, Path, str]:
    """Checks a foreign checkpoint and writes it as safetensors; its variant, the new file, and the weights' SHA-256.

    path: a torch file, zip or legacy, holding a state dict or a dict with one under "state_dict".
    Raises UsageError, in one sentence, for a file that is no checkpoint, is cut short, or holds other weights.
    """
    variant, state = read_checkpoint(path)
    return variant, *save_weights(out or path.with_name(f"{variant}.safetensors"), variant, state, str(path))


def read_checkpoint(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Variant and tensors of a foreign checkpoint, the latter under our names; raises as `import_weights`."""
    state = raft.torchvision_names(_read_torch(path), str(path))
    return recognise(shapes_of(state), str(path)), state


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """UsageError for weights that are NaN or infinite."""
    for name, x in state.items():
        bad = x.numel() - int(x.isfinite().sum())
        if bad:
            raise UsageError(f"{where}: wanted finite weights, {name} has {bad} values that are NaN or infinite")


def save_weights(out: Path, variant: str, state: Mapping[str, Tensor], where: str) -> tuple[Path, str]:
    """Writes weights of a known variant; the file and their SHA-256. UsageError for weights that are not finite."""
    check_finite(state, where)
    tensors = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in state.items()}
    sha256 = digest(tensors)
    metadata = {"format": FORMAT, "variant": variant, "sha256": sha256}
    atomic_write(out, safetensors.torch.save(tensors, metadata))
    return out, sha256


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name]
        result.update(f"{name} {x.dtype} {list(x.shape)}\n".encode())
        result.update(x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b"")
    return result.hexdigest()


def load_estimator(path: Path) -> tuple[Estimator, str, str]:
    """A flow network ready for inference, its variant, and the SHA-256 of its weights; raises as the two below."""
    variant, state, sha256 = read_weights(path)
    return build(variant, state), variant, sha256


def build(variant: str, state: Mapping[str, Tensor]) -> Estimator:
    """The network with these weights, ready for inference. UsageError where it needs what is not installed."""
    state = {name: x.float() if x.is_floating_point() else x for name, x in state.items()}
    if variant in raft.VARIANTS:
        network: Estimator = raft.build(variant, state)
    else:
        with torch.device("meta"):
            network = build_estimator(variant, width_of(shapes_of(state)))
        network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def read_weights(path: Path) -> tuple[str, dict[str, Tensor], str]:
    """Variant, tensors and their SHA-256, of an imported file or of RAFT's published ones.

    Raises UsageError for a missing or damaged file, and for a foreign one with the command that imports it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: wanted a file of flow weights, cannot read it ({error.strerror})") from None
    metadata = _metadata(data)
    if metadata.get("format") != FORMAT:
        return _published_raft(path)
    try:
        state = safetensors.torch.load(data)
    except Exception as error:
        raise UsageError(f"{path}: wanted flow weights, the file is damaged ({_line(error)})") from None
    variant = recognise(shapes_of(state), str(path))
    if digest(state) != metadata["sha256"] or variant != metadata["variant"]:
        raise UsageError(f"{path}: the file is damaged, its weights do not have the recorded hash")
    return variant, state, metadata["sha256"]


def _published_raft(path: Path) -> tuple[str, dict[str, Tensor], str]:
    """`read_weights` of a file that was not imported."""
    variant, state = read_checkpoint(path)
    if variant not in raft.VARIANTS:
        command = f"python -m vda weights import {path}"
        raise UsageError(f"{path}: wanted imported flow weights, found another file; run `{command}`")
    check_finite(state, str(path))
    return variant, state, digest(state)


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file; empty for any other file."""
    try:
        length = int.from_bytes(data[:8], "little")
        metadata: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        metadata = {}
    return metadata


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{path}: wanted a checkpoint, cannot read it ({error.strerror or _line(error)})") from None
    except Exception as error:  # whatever a foreign or damaged file makes the parsers raise
        raise UsageError(
            f"{path}: wanted a torch checkpoint of tensors, cannot read it; a download that was cut short looks "
            f"like this ({_line(error)})"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise UsageError(f"{path}: wanted a state dict, or a dict with one under 'state_dict', found something else")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): x for name, x in state.items()}
    return state


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
