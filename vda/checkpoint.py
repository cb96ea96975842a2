"""Checkpoints that survive a kill at any moment: written aside, verified by hash, never pickled.

A checkpoint is a folder `step-000123` with one `<module>.safetensors` per module, `state.pt` (plain types and
tensors, read with `weights_only=True`) and `manifest.json`, which holds the size and SHA-256 of each file and
the metadata. The folder is made under a temporary name and renamed when complete, so under its own name it is
whole or damaged by the disk; the hashes tell which.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vda.errors import UsageError
from vda.files import naming

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.pt"
_STEP = re.compile(r"step-(\d{6,})(\.old)?")
_FILE = re.compile(r"[A-Za-z0-9_]+\.(safetensors|pt)")
# What `torch.load(weights_only=True)` gives back as it was. Exact types: a NumPy scalar is a float to
# isinstance.
_LEAVES = (type(None), bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, all tensors on the CPU.

    meta: as given to `save_checkpoint`. modules: name -> state dict. digest: SHA-256 over the weights of all
    modules; two checkpoints with equal weights have equal digests, whatever their state and metadata.
    """

    path: Path
    step: int
    meta: dict[str, Any]
    modules: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    digest: str


# --- atomic files


def atomic_write(path: str | Path, content: bytes | Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Writes a file so that `path` holds either its old content or all of the new one, even after a power
    cut.

    content: the bytes, or a function that writes them to the open file. The folder must exist. durable: False for many
    small files that are checked before they are used: it leaves out the power cut, which costs milliseconds a file.
    OSError (disk full, no permission), which names `path`, and whatever `content` raises pass through; the old file is
    untouched then.
    """
    path = Path(path)
    with naming(path), _temporary_name(path) as temporary:
        # Mode 0o666 leaves the permissions to the umask; tempfile's own 0o600 would hide the file from the
        # group.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    if durable:
        _fsync_folder(path.parent)


@contextmanager
def _temporary_name(path: Path) -> Iterator[Path]:
    """An unused hidden name beside `path`; what is left there at the end is removed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- saving


def save_checkpoint(
    folder: str | Path,
    *,
    step: int,
    modules: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> Path:
    """Writes `folder/step-<step>` and returns its path; a checkpoint of the same step is replaced.

    modules: written whole (parameters and buffers), one file each; names of letters, digits and underscores.
    state: nested dicts, lists and tuples of tensors and plain Python values, such as optimiser and generator
    states. meta: JSON-able. By convention it names the "classes"; `load_weights` uses them in its messages.

    Raises TypeError for a state that would need pickle to come back, naming the entry, before anything is
    written.
    """
    if step < 0:
        raise ValueError(f"step: wanted 0 or more, got {step}")
    files = {STATE: _state_bytes(dict(state))}
    for name, module in modules.items():
        file = f"{name}.safetensors"
        if not _FILE.fullmatch(file):
            raise ValueError(f"modules: wanted names of letters, digits and underscores, got {name!r}")
        files[file] = _module_bytes(name, module)
    manifest = _manifest_bytes(step, files, dict(meta))

    folder = Path(folder)
    path = folder / step_name(step)
    folder.mkdir(parents=True, exist_ok=True)
    with naming(path), _temporary_name(path) as temporary:
        temporary.mkdir()
        for file, content in files.items():
            atomic_write(temporary / file, content)
        atomic_write(temporary / MANIFEST, manifest)
        _replace_folder(temporary, path)
        _fsync_folder(folder)
    return path


def step_name(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:06d}"


def _replace_folder(new: Path, path: Path) -> None:
    if not path.exists():
        os.rename(new, path)
        return
    # The old one stays under a name that `latest` knows, since a kill may come between the two renames.
    old = path.with_name(f"{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _state_bytes(state: dict[str, Any]) -> bytes:
    _check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _check_plain(value: Any, where: str) -> None:
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"key {key!r} of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif kind not in (Tensor, nn.Parameter, *_LEAVES):
        raise TypeError(f"{where}: wanted a tensor or a plain Python value, got {kind.__module__}.{kind.__name__}")


def _module_bytes(name: str, module: nn.Module) -> bytes:
    tensors = {}
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(f"modules[{name!r}]: wanted tensors only, {key} is {type(value).__name__}")
        # A copy of its own each: safetensors refuses tensors that share memory (tied weights).
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
    return safetensors.torch.save(tensors)


def _manifest_bytes(step: int, files: Mapping[str, bytes], meta: dict[str, Any]) -> bytes:
    entries = {name: {"size": len(data), "sha256": _sha256(data)} for name, data in sorted(files.items())}
    # Through JSON and back, so that the hash is over what a reader will see (tuples, integer keys).
    content = json.loads(json.dumps({"format": FORMAT, "step": step, "files": entries, "meta": meta}))
    # The manifest vouches for the files; its own hash, over the canonical text, vouches for the metadata.
    return (json.dumps(content | {"sha256": _content_hash(content)}, indent=1) + "\n").encode()


def _content_hash(content: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(content, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- loading


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads one checkpoint folder, every hash verified; UsageError, naming the file, if anything is wrong."""
    path = Path(path)
    manifest = _read_manifest(path)
    modules: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    weights = hashlib.sha256()
    for name, entry in manifest["files"].items():
        data = _read_verified(path / name, entry)
        try:
            if name == STATE:
                state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            else:
                modules[name.removesuffix(".safetensors")] = safetensors.torch.load(data)
        except Exception as error:  # whatever a foreign file makes the parsers raise
            raise UsageError(f"{path / name}: wanted a checkpoint file, cannot read it ({_line(error)})") from error
        if name != STATE:
            weights.update(f"{name} {entry['sha256']}\n".encode())
    return Checkpoint(path, manifest["step"], manifest["meta"], modules, state, weights.hexdigest())


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, its own hash and structure checked."""
    file = path / MANIFEST
    try:
        text = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: wanted a checkpoint folder with {MANIFEST}, found none ({error.strerror})") from None
    try:
        content = json.loads(text)
        claimed = content.pop("sha256")
        intact = claimed == _content_hash(content)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UsageError(f"{file}: wanted a checkpoint manifest, the file is damaged or something else") from None
    if not intact:
        raise UsageError(f"{file}: the file is damaged, its content does not have the recorded hash")
    if content.get("format") != FORMAT:
        raise UsageError(f"{file}: wanted checkpoint format {FORMAT}, found {content.get('format')!r}")
    if (named := _STEP.fullmatch(path.name)) and int(named[1]) != content["step"]:
        raise UsageError(f"{path}: wanted the checkpoint of step {int(named[1])}, found that of {content['step']}")
    names = content["files"]
    if STATE not in names or not all(_FILE.fullmatch(name) for name in names):
        raise UsageError(f"{file}: wanted plain file names and {STATE}, found {', '.join(names) or 'nothing'}")
    return content


def _read_verified(file: Path, entry: Mapping[str, Any]) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: wanted a file of the checkpoint, cannot read it ({error.strerror})") from None
    if len(data) != entry["size"]:
        raise UsageError(f"{file}: the file is damaged, wanted {entry['size']} bytes, found {len(data)}")
    if _sha256(data) != entry["sha256"]:
        raise UsageError(f"{file}: the file is damaged, its content does not have the recorded hash")
    return data


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _steps(folder: Path) -> list[Path]:
    """Step folders, newest first, one that was being replaced behind its successor; temporary ones do not match."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and _STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: (-_step_of(path), path.name))


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-").removesuffix(".old"))


def latest(folder: str | Path) -> Path | None:
    """The newest valid checkpoint in `folder` or None; damaged ones are warned about and passed over."""
    return next(filter(is_valid, _steps(Path(folder))), None)


def is_valid(path: Path) -> bool:
    """Whether every file of a checkpoint has its recorded hash; a warning says what is wrong where not."""
    try:
        for name, entry in _read_manifest(path)["files"].items():
            _read_verified(path / name, entry)
    except UsageError as error:
        warnings.warn(f"checkpoint passed over: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


def prune(folder: str | Path, keep: int, spare: Collection[int] = ()) -> None:
    """Removes all but the `keep` newest checkpoints and those of the steps `spare`, and what an interrupted save left.

    Only checkpoints whose files are all there in full size count as kept, so that damaged ones never crowd
    out a good one; the newer damaged ones stay in place.
    """
    if keep < 1:
        raise ValueError(f"keep: wanted 1 or more, got {keep}")
    folder = Path(folder)
    complete = 0
    for path in _steps(folder):
        if path.suffix == ".old" and _looks_complete(path.with_suffix("")):
            shutil.rmtree(path, ignore_errors=True)
        elif _step_of(path) in spare:
            continue
        elif complete >= keep:
            # Hidden first: a removal that is cut short must not leave half a checkpoint under its own name.
            with _temporary_name(path) as aside:
                os.rename(path, aside)
        else:
            complete += _looks_complete(path)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _looks_complete(path: Path) -> bool:
    try:
        entries = _read_manifest(path)["files"]
        return all((path / name).stat().st_size == entry["size"] for name, entry in entries.items())
    except (UsageError, OSError):
        return False


# --- weights into a network


def load_weights(network: nn.Module, checkpoint: Checkpoint | str | Path, module: str = "network") -> None:
    """Copies one module's weights into `network`, every tensor matched by name and shape.

    checkpoint: a loaded one, or the path of one. Raises UsageError, and leaves the network as it was, where
    the file is damaged, the classes differ in number or the tensors do not fit.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    if module not in checkpoint.modules:
        found = ", ".join(checkpoint.modules) or "none"
        raise UsageError(f"checkpoint {checkpoint.path}: wanted the module {module}, found {found}")
    stored, wanted = checkpoint.modules[module], network.state_dict()
    _check_fit(checkpoint, stored, wanted)
    network.load_state_dict(stored, strict=True)


def _check_fit(checkpoint: Checkpoint, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    name = f"checkpoint {checkpoint.path}"
    differing = [key for key in wanted if key in stored and stored[key].shape != wanted[key].shape]
    classes = len(checkpoint.meta.get("classes") or ())
    for key in differing:
        ours, theirs = wanted[key].shape, stored[key].shape
        # A classifier differs in its first dimension alone, and that is the number of classes.
        if classes and len(ours) == len(theirs) and ours[1:] == theirs[1:] and theirs[0] == classes:
            raise UsageError(f"{name} has {classes} classes, the network wants {ours[0]}")
    problems = [f"{key} is {list(stored[key].shape)} instead of {list(wanted[key].shape)}" for key in differing[:1]]
    for keys, what in (
        (wanted.keys() - stored.keys(), "missing"),
        (stored.keys() - wanted.keys(), "too many"),
    ):
        if keys:
            problems.append(f"{len(keys)} tensors {what}, such as {min(keys)}")
    if problems:
        raise UsageError(f"{name} is of another network: {'; '.join(problems)}")
