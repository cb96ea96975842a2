"""From a command line to a run: settings, run folder, device, and one sentence with status 2 for bad input."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import tyro
import yaml

from vda import config as settings
from vda.checkpoint import atomic_write
from vda.config import Config
from vda.errors import UsageError
from vda.recipes import RECIPES


class Stopped(Exception):
    """The user stopped a run after its state was saved; the message says how to go on."""


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs `command(argv)`; the exit status: 0, 2 for bad input or unusable files, 130 when stopped."""
    try:
        command(sys.argv[1:] if argv is None else argv)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr)
        return 130
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 130
    return 0


def choose_device(name: str) -> torch.device:
    """The device "auto", "cpu" or "cuda". Raises UsageError for CUDA where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        built = "this torch build has no CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise UsageError(f"device: wanted cuda, but {built}; leave the option out to run on the CPU")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def parse(argv: Sequence[str], description: str) -> Config:
    """Recipe or YAML file, and settings, from a command line."""
    if argv and Path(argv[0]).suffix in (".yaml", ".yml"):
        base = settings.load_yaml(Path(argv[0]), Config())
        return tyro.cli(Config, default=base, args=argv[1:], description=description)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["embedded", *argv]
    return tyro.extras.overridable_config_cli(dict(RECIPES), args=list(argv), description=description)


def choose_folder(config: Config) -> Path:
    """The run folder: one that is free, or the one to resume after a check that its settings are these.

    Nothing is written. Raises UsageError for a folder that holds something else, or nothing to resume.
    """
    if not config.resume:
        folder = config.out or next(f for f in run_folders(config.recipe) if not f.exists())
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"{folder}: wanted a new or empty folder; pass --resume to continue a run, or another --out"
            )
        return folder
    existing = list(itertools.takewhile(Path.exists, run_folders(config.recipe)))
    folder = config.out or (existing[-1] if existing else Path("runs") / f"{config.recipe}-1")
    if not (folder / "config.yaml").exists():
        raise UsageError(f"{folder}: wanted a run to resume, found no config.yaml there")
    stored = settings.load_yaml(folder / "config.yaml", Config())
    if settings.digest(stored) != settings.digest(config):
        raise UsageError(f"{folder}: this run was started with other settings; {how_to_resume(folder)}")
    return folder


def create_folder(config: Config, folder: Path) -> None:
    """Makes the folder of a new run, with its settings."""
    if not (folder / "config.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(settings.to_dict(replace(config, out=None, resume=False)), sort_keys=False)
        atomic_write(folder / "config.yaml", text.encode())


def how_to_resume(folder: Path) -> str:
    return f"continue with `python train.py {folder}/config.yaml --resume --out {folder}`"


def run_folders(recipe: str) -> Iterator[Path]:
    return (Path("runs") / f"{recipe}-{n}" for n in itertools.count(1))
