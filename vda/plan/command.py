"""`python -m vda plan`: the table of what a run will take."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vda.cli import SCENARIO_HELP, parse
from vda.config import Config
from vda.device import choose_device
from vda.errors import UsageError
from vda.plan import memory
from vda.plan.measure import FRAMES, STEPS, WARM, Estimate, Fit, estimates
from vda.recipes import RECIPES, SCENARIOS

HELP = f"""usage: python -m vda plan [RECIPE|SCENARIO|FILE.yaml] [--data SCENARIO] [--SETTING VALUE ...]

Estimates the time, memory and disk space of a run before it starts: each of its rounds is trained for {WARM + STEPS}
steps, and labels and scores {FRAMES} frames of each data set, in a temporary folder that is removed. Takes what
`python train.py` and `python train.py recipe` take; RECIPE --help lists the settings.

Recipes: {", ".join(RECIPES)}.
{SCENARIO_HELP}"""


def plan_main(arguments: list[str]) -> None:
    """Run `python -m vda plan`."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(HELP)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the temporary folder is removed
    config = read_config(arguments)
    fit = training_loop()
    with tempfile.TemporaryDirectory(prefix="vda-plan-") as folder:
        with contextlib.redirect_stdout(sys.stderr):  # what the rounds say of themselves is no part of the table
            rows = [*estimates(config, Path(folder), fit)]
        print(table(rows, config))


def read_config(arguments: Sequence[str]) -> Config:
    """The settings of a run, from the arguments of train.py; a recipe may stand without the word in front of it."""
    first = arguments[0] if arguments else ""
    plain = not first or first.startswith("-") or first in SCENARIOS or Path(first).suffix in (".yaml", ".yml")
    if first == "table":
        raise UsageError("vda plan: wanted a recipe, a scenario or a file, found table; plan the recipes of its rows")
    return parse(arguments if plain or first == "recipe" else ["recipe", *arguments], HELP)


def training_loop() -> Fit:
    """`fit` of train.py, which lies beside the package. Raises UsageError where it does not."""
    path = Path(__file__).parents[2] / "train.py"
    spec = importlib.util.spec_from_file_location("train", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"{path}: wanted the training loop beside the package, found none; plan in a checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fit: Fit = module.fit
    return fit


def table(rows: Sequence[Estimate], config: Config) -> str:
    """The rows as text, their sums (of memory the largest), and what was measured and what multiplied."""
    device = choose_device(config.device)
    header = ["", "steps", "s/step", "before", "steps take", "checkpoints", "in all", memory.what(device), "disk"]
    lines = [header]
    for row in rows:
        steps = [f"{row.steps:,}", f"{row.step:.3f}"] if row.steps else ["", ""]
        parts = (row.before, row.steps * row.step, row.saving, row.seconds)
        lines.append([row.name, *steps, *map(duration, parts), size(row.memory), size(row.disk)])
    sums = [sum(part) for part in zip(*((r.before, r.steps * r.step, r.saving, r.seconds) for r in rows), strict=True)]
    most, disk = max(row.memory for row in rows), sum(row.disk for row in rows)
    lines.append(["the run", f"{sum(row.steps for row in rows):,}", "", *map(duration, sums), size(most), size(disk)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| "
        + " | ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    rule = "| " + " | ".join("-" * w if k == 0 else "-" * (w - 1) + ":" for k, w in enumerate(widths)) + " |"
    return "\n".join([text[0], rule, *text[1:], "", *_notes(config, device.type)])


def _notes(config: Config, device: str) -> list[str]:
    notes = [
        f"Measured on the {device}: {WARM + STEPS} steps a round, the median of the last {STEPS - 1}, with loading; a",
        f"checkpoint of each; {FRAMES} frames of every data set, labelled and scored. Multiplied: by the number of",
        "steps, checkpoints and frames. Before the steps lie pseudo labels and the choice of frames, and all of a",
        "scoring. Not in it: opening the data, and the report at the end.",
    ]
    if device == "cuda":
        notes.append("GPU memory is that of tensors; the CUDA context and the allocator's reserve come on top.")
    else:
        notes.append(
            "Memory is the largest resident size of the process, without what a data set keeps of its other frames."
        )
    if config.data.workers:
        notes.append(
            f"The {config.data.workers} loader processes are not in the memory, and work ahead of the first steps."
        )
    return notes


def duration(seconds: float) -> str:
    """Seconds as text of two units: 4.2 s, 3 min 20 s, 5 h 07 min, 2 d 03 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {s:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02d} h"


def size(count: float) -> str:
    """Bytes as text with three digits: 512 B, 1.23 MB, 4.5 GB."""
    if not count:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
