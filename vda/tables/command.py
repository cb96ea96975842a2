"""`python train.py table N`: every row of a table, each part trained once, and the table beside the paper's numbers."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vda import distributed
from vda.checkpoint import atomic_write
from vda.choice import scored
from vda.cli import SCENARIO_HELP, Stopped, scenario_of
from vda.config import Config
from vda.options import Data, Flow, Network, Occlusion, Pseudo, wanted
from vda.precision import PrecisionName
from vda.proportion import at_proportion
from vda.recipes import RECIPES, SCENARIOS, recipe
from vda.run import Run
from vda.tables.layout import Grid, lay_out, lay_out_proportions, lay_out_rules
from vda.tables.paper import TABLES
from vda.tables.render import FORMATS, markdown
from vda.tables.table import Table

TrainMethod = Callable[[Run, str], None]


# Settings that every row's `Config` takes over.
AS_IN_CONFIG = (
    *("device", "precision", "frames_at_once", "sync_batch_norm", "compile", "batch_factor", "deterministic"),
    *("checkpoint_every", "snapshots", "panel_every", "tensorboard", "data", "flow", "occlusion"),
)


@dataclass(frozen=True)
class TableCommand:
    """All rows of a table of the paper, for several seeds: trained, scored and laid out as the paper does.

    What rows share is trained once: a method's folder is named after the hash of all settings that decide its numbers.
    The same command continues where it was stopped.
    """

    table: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="N")]
    """Number of the table. 1 and 2 are two views of one set of runs, and so are 8 and 9, 10 and 11."""
    seeds: tuple[int, ...] = (0,)
    """Every row is trained once with each."""
    rows: tuple[str, ...] = ()
    """Recipes of the rows to train; all where not given."""
    out: Path | None = None
    """Folder for the trained methods and the tables; runs/tables-SCENARIO where not given, so that tables share."""
    budget: float = 1.0
    """Factor of the steps of every training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    precision: PrecisionName = "fp32"
    """Mixed precision of the training; this and the next five as in `python train.py --help`."""
    frames_at_once: int = 0
    """Frames that go through the network at one time; 0: all of a step."""
    sync_batch_norm: bool = False
    """Batch statistics over all processes."""
    compile: bool = False
    """Compile the network."""
    batch_factor: int = 1
    """Times as many tubes a step in every training, for several processes to share."""
    deterministic: bool = False
    """Bit-equal repetitions on one machine and GPU."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    snapshots: int = 4
    """Checkpoints of a training that stay for the choice without labels."""
    panel_every: int = 500
    """Steps between the pictures of a training; 0 draws none."""
    tensorboard: bool = False
    """Write the log and the pictures for TensorBoard too."""
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    flow: Flow = field(default_factory=Flow)
    occlusion: Annotated[Occlusion, tyro.conf.arg(help="")] = field(default_factory=Occlusion)

    def __post_init__(self) -> None:
        # without a number in the defaults, tyro asks for one
        wanted(self.table in (*TABLES, tyro.MISSING), "table", f"one of {', '.join(TABLES)}", self.table)
        wanted(
            bool(self.seeds) and len(set(self.seeds)) == len(self.seeds),
            "seeds",
            "at least one, all different",
            self.seeds,
        )
        wanted(self.budget > 0, "budget", "more than 0", self.budget)
        for name in self.rows:
            wanted(name in self.recipes(), "rows", f"some of {', '.join(self.recipes())}", name)

    def recipes(self) -> list[str]:
        """The recipes of the table's rows, those that stand in the literature alone left out."""
        if TABLES[self.table].proportions:
            return ["vat"]
        return [row.recipe for row in TABLES[self.table].rows if row.recipe]

    def config(self, name: str, scenario: str, seed: int) -> Config:
        """The settings of one row."""
        config = recipe(name, scenario)
        network = self.network
        if RECIPES[name].pspnet:
            network = replace(network, name=config.network.name)
        methods = {method: scaled(settings, self.budget) for method, settings in config.methods.items()}
        shared = {name: getattr(self, name) for name in AS_IN_CONFIG}
        return replace(config, methods=methods, network=network, seed=seed, **shared)


def scaled(settings: Any, budget: float = 1.0, *, steps: int | None = None) -> Any:
    """Settings of a method with `budget` times as many steps for every training, or with just `steps`."""
    changes = {}
    for name in settings.__dataclass_fields__:
        optimiser = getattr(settings, name)
        if hasattr(optimiser, "iterations"):
            count = max(1, round(budget * optimiser.iterations)) if steps is None else steps
            changes[name] = replace(optimiser, iterations=count)
    return replace(settings, **changes)


def parse(argv: Sequence[str]) -> tuple[TableCommand, str]:
    """The command and the name of its scenario, from what stands behind `python train.py table`."""
    scenario, rest = scenario_of(argv)
    base = SCENARIOS[scenario].base
    default = TableCommand(tyro.MISSING, data=base.data, network=base.network, flow=base.flow, occlusion=base.occlusion)
    tables = "\n".join(f"    {table.number:<3} {table.title} ({table.scenario})" for table in TABLES.values())
    description = "\n\n".join([inspect.getdoc(TableCommand) or "", tables, SCENARIO_HELP])
    return tyro.cli(TableCommand, default=default, args=rest, prog="train.py table", description=description), scenario


def main(argv: Sequence[str], train_method: TrainMethod) -> None:
    """Run `python train.py table`."""
    command, scenario = parse(argv)
    distributed.start(command.device)
    table = TABLES[command.table]
    folder = command.out or Path("runs") / f"tables-{scenario}"
    names = command.rows or tuple(command.recipes())
    rows = [(seed, name) for seed in command.seeds for name in names]
    # opens and checks every row before any is trained
    runs = {(seed, name): Run(command.config(name, scenario, seed), folder, shared=True) for seed, name in rows}
    print(f"table {table.number} on {scenario}: {len(runs)} runs in {folder}")
    labelling = command.config("ours", scenario, command.seeds[0]).methods["vst"].pseudo
    grids: list[Grid] = []
    try:
        for grids in _trained(table, runs, train_method, labelling):
            for grid, (suffix, write) in itertools.product(grids, FORMATS.items()):
                distributed.by_first(atomic_write, folder / f"{grid.name}.{suffix}", write(grid).encode())
    except (KeyboardInterrupt, Stopped) as stop:
        raise Stopped(f"{stop or 'stopped'}; the same command goes on from here") from None
    print("\n\n".join(markdown(grid) for grid in grids))
    print(f"{folder}: {', '.join(f'{grid.name}.{suffix}' for grid in grids for suffix in FORMATS)}")


def _trained(
    table: Table, runs: dict[tuple[int, str], Run], train_method: TrainMethod, labelling: Pseudo
) -> Iterator[list[Grid]]:
    """The table so far, after every row that is done."""
    results: dict[str, list[Any]] = {}
    proportions: dict[tuple[str, float, int], float | None] = {}
    for (seed, name), run in runs.items():
        for method in run.config.training:
            train_method(run, method)
        if not table.proportions:
            for row in table.rows:
                if row.recipe == name:
                    results.setdefault(row.label, []).append(scored(run, run.config.training[-1]))
            yield [lay_out(table, results), lay_out_rules(table, results)]
            continue
        for row, proportion in itertools.product(table.rows, table.proportions):
            grade = graded(run, row.recipe, proportion, labelling)
            proportions[row.recipe, proportion, seed] = grade["p_miou"]
            yield [lay_out_proportions(table, proportions, grade)]


def graded(run: Run, policy: str, proportion: float, labelling: Pseudo) -> dict[str, Any]:
    """P-mIoU of a policy's labels, made by the run's last method, at a proportion.

    labelling: the settings of the paper's own labels on this scenario, of which the others have all but the policy and
    the aggregation. Momentum and gamma are off: on a few clips the thresholds would stay near theta_0 whatever alpha.
    """
    last = run.config.training[-1]
    aggregate = labelling.aggregate and policy == labelling.policy
    settings = replace(labelling, policy=policy, aggregate=aggregate, beta=0.0, gamma=0.0)  # type: ignore[arg-type]
    folder = run.folder_of(last) / "proportions" / f"{policy}-{proportion}"
    return at_proportion(run, run.result(last), settings, proportion, folder)
