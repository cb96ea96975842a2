"""From a command line to a run: settings, run folder, device, and one sentence with status 2 for bad input."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import tyro
import yaml

from vda import config as settings
from vda import distributed
from vda.checkpoint import atomic_write
from vda.config import Config
from vda.errors import UsageError
from vda.files import told
from vda.recipes import COMPARED, DEFAULT_SCENARIO, RECIPES, SCENARIOS, check_name, recipe

SCENARIO_HELP = f"Scenarios for --data: {', '.join(COMPARED)}; {DEFAULT_SCENARIO} where not given."
_HELP = ("-h", "--help")
STOPPED = "stopped"  # empty, in the folder of a run that a signal has stopped: for scripts that start it again


class Stopped(Exception):
    """The user stopped a run after its state was saved; the message says how to go on."""


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs `command(argv)`; the exit status: 0, 2 for bad input or unusable files, 130 when stopped."""
    try:
        command(sys.argv[1:] if argv is None else argv)
    except (UsageError, OSError) as error:
        text = told(error) if isinstance(error, OSError) else error
        print(f"error: {text}" + (f" (process {distributed.rank()})" if distributed.rank() else ""), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr)
        return 130
    except Stopped as stop:
        if distributed.is_first():
            print(stop, file=sys.stderr)
        distributed.leave()
        return 130
    except RuntimeError as error:
        if not distributed.lost_another(error):
            raise
        print(
            f"error: another process has ended, its own message says why (process {distributed.rank()})",
            file=sys.stderr,
        )
        return 2
    distributed.leave()  # else gloo may abort the process at its end
    return 0


def parse(argv: Sequence[str], description: str) -> Config:
    """Recipe, scenario or YAML file, and settings, from a command line (see train.py).

    Raises UsageError, with the nearest name, for a recipe or a scenario that there is not.
    """
    if argv and Path(argv[0]).suffix in (".yaml", ".yml"):
        base = settings.load_yaml(Path(argv[0]), Config())
        return tyro.cli(Config, default=base, args=argv[1:], description=description)
    if argv[:1] == ["recipe"]:
        return _parse_recipe(argv[1:])
    if not argv or (argv[0].startswith("-") and argv[0] not in _HELP):
        argv = [DEFAULT_SCENARIO, *argv]
    if argv[0] in RECIPES and argv[0] not in SCENARIOS:
        raise UsageError(f"{argv[0]} is a recipe: python train.py recipe {argv[0]} [--data SCENARIO]")
    if not argv[0].startswith("-"):
        check_name(argv[0], SCENARIOS, "scenario")
    paths = {name: (scenario.help, recipe(scenario.recipe, name)) for name, scenario in SCENARIOS.items()}
    return tyro.extras.overridable_config_cli(paths, args=list(argv), description=description)


def _parse_recipe(argv: Sequence[str]) -> Config:
    scenario, rest = scenario_of(argv)
    if not rest or rest[0] in _HELP:
        usage = f"python train.py recipe NAME [--data SCENARIO] [--SETTING VALUE ...]\n\n{SCENARIO_HELP}"
        names = {name: (row.help, recipe(name, scenario)) for name, row in RECIPES.items()}
        return tyro.extras.overridable_config_cli(names, args=rest, prog="train.py recipe", description=usage)
    name = rest[0]
    check_name(name, RECIPES, "recipe")
    config = recipe(name, scenario)
    trains = f"Trains {', '.join(config.methods)} on {scenario}. {SCENARIOS[scenario].help}"
    description = "\n\n".join([RECIPES[name].help, trains, SCENARIO_HELP])
    return tyro.cli(Config, default=config, args=rest[1:], prog=f"train.py recipe {name}", description=description)


def scenario_of(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The scenario that `--data NAME` names, the default without it, and the other arguments."""
    arguments = [part for word in argv for part in (word.split("=", 1) if word.startswith("--data=") else [word])]
    if "--data" not in arguments:
        return DEFAULT_SCENARIO, arguments
    place = arguments.index("--data")
    name = "".join(arguments[place + 1 : place + 2])
    check_name(name, COMPARED, "--data")
    return name, arguments[:place] + arguments[place + 2 :]


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
    folder = _newest(config)
    if not (folder / "config.yaml").exists():
        raise UsageError(f"{folder}: wanted a run to resume, found no config.yaml there")
    stored = settings.load_yaml(folder / "config.yaml", Config())
    if settings.digest(stored) != settings.digest(config):
        raise UsageError(f"{folder}: this run was started with other settings; {how_to_resume(folder)}")
    return folder


def can_resume(config: Config) -> bool:
    """Whether there is a run to go on with, where nobody can be asked."""
    return (_newest(config) / "config.yaml").exists()


def _newest(config: Config) -> Path:
    existing = list(itertools.takewhile(Path.exists, run_folders(config.recipe)))
    return config.out or (existing[-1] if existing else Path("runs") / f"{config.recipe}-1")


def create_folder(config: Config, folder: Path) -> None:
    """Makes the folder of a new run, with its settings.

    Raises UsageError where another run has begun there since the folder was chosen."""
    begun = (folder / "config.yaml").exists()
    if begun and not config.resume:
        raise UsageError(f"{folder}: wanted a free folder, another run has just begun there; start this one again")
    if not begun:
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(settings.to_dict(replace(config, out=None, resume=False)), sort_keys=False)
        atomic_write(folder / "config.yaml", text.encode())


def how_to_resume(folder: Path) -> str:
    count = distributed.size()
    command = f"torchrun --nproc-per-node {count}" if count > 1 else "python"  # of several machines each has its own
    return f"continue with `{command} train.py {folder}/config.yaml --resume --out {folder}`"


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Inside, what ends a run without being its fault says how to go on: the user, a full disk, a killed process."""
    try:
        yield
    except (KeyboardInterrupt, Stopped) as stop:
        if distributed.is_first():
            with suppress(OSError):
                (folder / STOPPED).touch()
        raise Stopped(f"{stop or 'stopped'}; {how_to_resume(folder)}") from None
    except (OSError, EOFError, RuntimeError) as error:
        # torch tells of a loader process wherever the main thread is just then, where it does not hear it itself
        if isinstance(error, ConnectionError | EOFError) or "DataLoader worker" in str(error):
            reason = "data.workers: a loader process was killed, most often for want of memory; fewer of them want less"
        elif isinstance(error, OSError):
            reason = told(error)
        else:
            raise
        raise UsageError(f"{reason}; {how_to_resume(folder)}") from error


def run_folders(recipe: str) -> Iterator[Path]:
    return (Path("runs") / f"{recipe}-{n}" for n in itertools.count(1))
