"""Nothing that is read can run code: no such call anywhere in the sources, and hostile files at every door.

What hostile files can do beside that is in test_hostile_files.py (images), test_yaml_file.py, test_data_extract.py
(archives), test_video_files.py, test_description.py and test_checkpoint.py.
"""

from __future__ import annotations

import ast
import os
import pickle
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoints import small_checkpoint
from clips import dataset, scrolling_clip
from PIL import Image

from vda.__main__ import main
from vda.config import Config, load_yaml
from vda.data import open_dataset
from vda.data.flow_files import read_flow
from vda.errors import UsageError
from vda.flow.cache import CachedFlow, pair_path, precompute
from vda.flow.providers import ExactFlow
from vda.flow.weights import import_weights, load_estimator
from vda.models.resnet import read_weights
from vda.predictions import FolderPredictor
from vda.pseudo import read_labels
from vda.run import open_checkpoint

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "vda").rglob("*.py"), *(ROOT / "bench").rglob("*.py"), *ROOT.glob("*.py")]

# --- the sources

# modules that load code, reach the network or the shell
MODULES = {
    *("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "runpy"),
    *("socket", "urllib", "http", "ftplib", "requests", "httpx", "huggingface_hub", "gdown", "webbrowser"),
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# attribute -> objects of which it is forbidden; None: of any
CALLS: dict[str, set[str] | None] = {
    "system": {"os"},
    "popen": {"os"},
    "mktemp": {"tempfile"},
    "extractall": None,
    "extract": None,
    "unsafe_load": None,
    "full_load": None,
    "load_all": {"yaml"},
    "add_safe_globals": None,
    "load_state_dict_from_url": None,
    "fromfile": {"np", "numpy"},
}
# (object, attribute) -> the argument that makes the call safe
SAFE = {
    ("torch", "load"): ("weights_only", True),
    ("np", "load"): ("allow_pickle", False),
}


def findings(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything in Python source that could run what it reads."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            taken = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            if taken != ["UnpicklingError"]:  # an error's type
                yield from ((node.lineno, name) for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        given = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
        if given.get("shell", False) is not False:
            yield node.lineno, "shell"
        if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
            yield node.lineno, node.func.id
        if isinstance(node.func, ast.Attribute):
            of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            name = node.func.attr
            if name in CALLS and (CALLS[name] is None or of in (CALLS[name] or ())):
                yield node.lineno, name
            if (of, name) in SAFE:
                argument, value = SAFE[of, name]
                if given.get(argument, ...) is not value:
                    yield node.lineno, f"{of}.{name} without {argument}={value}"
            if (of, name) == ("yaml", "load"):
                yield node.lineno, "yaml.load"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_that_could_run_what_it_reads(path: Path) -> None:
    assert not [*findings(path.read_text())]


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from pickle import loads", "import urllib.request", "from joblib import load"),
        *("eval(text)", "exec(text)", "os.system('x')", "subprocess.run('x', shell=True)", "__import__(name)"),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)"),
        *("np.load(path)", "np.load(path, allow_pickle=True)", "yaml.load(text, Loader=x)", "yaml.unsafe_load(text)"),
        *("archive.extractall(folder)", "archive.extract(member)", "tempfile.mktemp()"),
    ],
)
def test_such_calls_are_found(line: str) -> None:
    assert [*findings(line)]


# --- hostile files


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.trace}'",)


class Legacy:
    """As Payload, for pickles that torch's reader asks for a state dict."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.trace)!r}, 'w').close() or {{}}",)


def objects(payload: object) -> np.ndarray:
    array = np.empty(1, object)
    array[0] = payload
    return array


def write_npz(path: Path, payload: object) -> None:
    with path.open("wb") as file:
        np.savez(file, flow=objects(payload))


def write_npy(path: Path, payload: object) -> None:
    with path.open("wb") as file:
        np.save(file, objects(payload), allow_pickle=True)


WRITERS: dict[str, Callable[[Path, Any], object]] = {
    "pickle 0": lambda path, payload: path.write_bytes(pickle.dumps(payload, 0)),
    "pickle 2": lambda path, payload: path.write_bytes(pickle.dumps({"state_dict": payload}, 2)),
    "pickle 5": lambda path, payload: path.write_bytes(pickle.dumps([payload], 5)),
    "torch": lambda path, payload: torch.save({"conv1.weight": payload}, path),
    "torch, old": lambda path, payload: torch.save(payload, path, _use_new_zipfile_serialization=False),
    "npy": write_npy,
    "npz": write_npz,
    "yaml": lambda path, payload: path.write_text(f"!!python/object/apply:os.system ['touch {payload.trace}']"),
    "yaml, deep": lambda path, payload: path.write_text(f"seed: !!python/object/new:os.system [touch {payload.trace}]"),
}


def read_as_label(path: Path) -> None:
    """As a predicted label image, and as a frame of the data set that it belongs to."""
    data = dataset(scrolling_clip("a", 2))
    (path.parent / "a").mkdir()
    for name in data.clips[0].frame_names:
        (path.parent / "a" / f"{name}.png").write_bytes(path.read_bytes())
    FolderPredictor(path.parent, data)


def read_as_frames(path: Path) -> None:
    for end in ("img1.png", "img2.png"):
        (path.parent / f"x_{end}").write_bytes(path.read_bytes())
    (path.parent / "x_flow.flo").write_bytes(path.read_bytes())
    open_dataset("pairs/all", path.parent, None).clips[0].frame(0)


def read_as_cached_flow(path: Path) -> None:
    data = dataset(scrolling_clip("a", 2))
    precompute(ExactFlow(), data, path.parent / "cache")
    pair_path(path.parent / "cache", data.clips[0], 0, 1).write_bytes(path.read_bytes())
    CachedFlow(path.parent / "cache", data, "exact")(data.clips[0], 0, 1)


def read_as_checkpoint(name: str) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        (folder,) = small_checkpoint(path.parent / "run").glob("step-*")
        (folder / name).write_bytes(path.read_bytes())
        open_checkpoint(folder)

    return read


def read_as_flow(suffix: str) -> Callable[[Path], object]:
    return lambda path: read_flow(path.rename(path.with_suffix(suffix)))


def read_as_manifest(path: Path) -> None:
    path.rename(path.with_name("manifest.jsonl"))
    read_labels(path.parent)


def read_as_note(path: Path) -> None:
    path.rename(path.with_name("finished.json"))
    open_checkpoint(path.parent)


def command(*words: str) -> Callable[[Path], object]:
    """A command with the file in the place of FILE, which must be refused."""

    def run(path: Path) -> None:
        line = [word.replace("FILE", str(path)).replace("OUT", str(path.parent / "out")) for word in words]
        if main(line) == 2:
            raise UsageError(f"{path}: refused")

    return run


DOORS: dict[str, Callable[[Path], object]] = {
    "backbone weights": read_weights,
    "backbone weights, safetensors": lambda path: read_weights(path.rename(path.with_suffix(".safetensors"))),
    "flow weights": lambda path: import_weights(path, path.with_suffix(".safetensors")),
    "imported flow weights": load_estimator,
    "command weights": command("weights", "import", "FILE"),
    "state of a checkpoint": read_as_checkpoint("state.pt"),
    "weights of a checkpoint": read_as_checkpoint("network.safetensors"),
    "manifest of a checkpoint": read_as_checkpoint("manifest.json"),
    "manifest of pseudo labels": read_as_manifest,
    "note of a result": read_as_note,
    **{f"flow {suffix}": read_as_flow(suffix) for suffix in (".flo", ".npy", ".npz", ".png")},
    "cached flow": read_as_cached_flow,
    "predicted labels": read_as_label,
    "frames": read_as_frames,
    "settings": lambda path: load_yaml(path, Config()),
    "description of data": lambda path: open_dataset(f"{path.rename(path.with_suffix('.yaml'))}/train", None, None),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("payload", [Payload, Legacy])
def test_no_door_runs_code(door: str, payload: type, tmp_path: Path) -> None:
    """Every hostile file at every door: a sentence, and no trace of the code in it."""
    for number, (kind, write) in enumerate(WRITERS.items()):
        folder, trace = tmp_path / str(number), tmp_path / f"trace{number}"
        folder.mkdir()
        path = folder / "x.pth"
        write(path, payload(trace))
        with pytest.raises(UsageError, match=re.escape(str(folder))) as refusal:
            DOORS[door](path)
        assert "\n" not in str(refusal.value), kind
        assert not trace.exists(), f"{door} ran the code in {kind}"


@pytest.mark.parametrize("payload", [Payload, Legacy])
def test_the_payloads_would_run(payload: type, tmp_path: Path) -> None:
    for number, kind in enumerate(("pickle 0", "pickle 2", "pickle 5")):
        WRITERS[kind](tmp_path / "x", payload(tmp_path / f"trace{number}"))
        pickle.loads((tmp_path / "x").read_bytes())
        assert (tmp_path / f"trace{number}").exists()
    for kind, load in {
        "torch": lambda path: torch.load(path, weights_only=False),
        "npz": lambda path: np.load(path, allow_pickle=True)["flow"],
        "yaml": lambda path: yaml.unsafe_load(path.read_text()),
    }.items():
        WRITERS[kind](tmp_path / "y", payload(tmp_path / kind))
        load(tmp_path / "y")
        assert (tmp_path / kind).exists(), kind


def test_names_from_a_description_stay_in_their_folder(tmp_path: Path) -> None:
    """Patterns may lead out of the root, for reading; what is written by clip and frame stays where it belongs."""
    for folder in ("in/a..b", "out/../out/c"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / folder / f"..{i}.png")
    content = {
        "root": "in",
        "classes": ["road"],
        "splits": {"all": [{"frames": "*/..*.png"}, {"frames": "../out/*/..*.png"}]},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    clips = open_dataset(f"{tmp_path / 'x.yaml'}/all", None, None).clips
    assert len(clips) == 2
    for clip in clips:
        for name in (clip.name, *clip.frame_names):
            written = (tmp_path / "run" / clip.name / f"{name}.png").resolve()
            assert written.is_relative_to(tmp_path / "run" / clip.name)
            assert "/" not in name


# --- dependencies

FLOORS = {  # name -> least version, and why where it is for security
    "torch": "2.10",  # CVE-2025-32434 and CVE-2026-24747: code runs in spite of weights_only=True
    "opencv-python": "4.12",  # CVE-2025-53644: heap write by a crafted JPEG; older ones fill up truncated images
    "numpy": "2.0",
    "pillow": "11.0",
    "safetensors": "0.5",
    "tyro": "1.0",
    "tqdm": "4.66",
    "PyYAML": "6.0",
}


def test_floors_of_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = dict(line.split(">=") for line in project["dependencies"])
    assert found == FLOORS
    everything = [*project["dependencies"], *(x for extra in project["optional-dependencies"].values() for x in extra)]
    assert not [line for line in everything if "headless" in line], "a second OpenCV replaces the first one's files"
    assert project["requires-python"] == ">=3.11"
