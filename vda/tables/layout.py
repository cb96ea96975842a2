"""From the scores of finished runs to the cells of a table: pure functions, no files.

Scores are those of `vda.metrics.Scorer.scores` with what `evaluate.py` adds ("dataset", "seed", "rule"). The
headline is the score of the last checkpoint, never one that was chosen with the target's labels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from statistics import fmean, stdev
from typing import Any, Literal

from vda.tables.table import Table

Scores = Mapping[str, Any]
# Label of a row -> one scores mapping per seed. Beside its scores a run may hold "rules": rule -> scores of the
# checkpoint that the rule picks.
Result = Mapping[str, Sequence[Scores]]

LABEL_FREE_RULES = ("last", "entropy", "agreement")
RULES = (*LABEL_FREE_RULES, "oracle")
CEILING = "oracle"  # the recipe trained on the target's own labels: never the best of a column

_SAME_CLASS = {"signsymbol": "sign", "trafficsign": "sign", "trafficlight": "light"}
_MEANS = (("miou", "mIoU"), ("vpq", "VPQ^s"))
_PER_CLASS = {"iou", "vpq_per_class"}
_SCORES = {"miou", "vpq", *_PER_CLASS}


@dataclass(frozen=True)
class Number:
    """In percent. std: sample standard deviation over the seeds, None for a single number."""

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Beside:
    """What stands beside a number: what was scored, with which seeds, and which checkpoint."""

    dataset: str
    classes: tuple[str, ...]
    size: tuple[int, int] | None
    frames: int | None
    seeds: tuple[str, ...]
    rule: str

    @property
    def scored(self) -> str:
        """All but the seeds, in words."""
        size = " × ".join(map(str, self.size)) if self.size else "?"
        frames = "?" if self.frames is None else self.frames
        classes = f"{len(self.classes)} classes ({', '.join(self.classes)})"
        return (
            f"{self.dataset}, {classes}, {size} pixels (H × W), {frames} labelled frames, checkpoint rule: {self.rule}"
        )


@dataclass(frozen=True)
class Column:
    """paper: the numbers below are the paper's own, whatever line they stand in."""

    name: str
    paper: bool = False


@dataclass(frozen=True)
class Line:
    """text: cells before the numbers. values: one per column, None where there is none: not run, or not printed.
    ceiling: cannot be the best. beside: None where nothing was run."""

    text: tuple[str, ...]
    values: tuple[Number | None, ...]
    source: Literal["ours", "paper", "literature only"] = "ours"
    ceiling: bool = False
    beside: Beside | None = None


@dataclass(frozen=True)
class Grid:
    """A table ready to be written. name: fit for a file. heads: over `Line.text`. notes: below the table."""

    name: str
    caption: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    decimals: int
    notes: tuple[str, ...]


# --- the three layouts


def lay_out(table: Table, results: Result) -> Grid:
    """Our means over seeds in the paper's rows and columns, the paper's mIoU and VPQ^s beside them.

    Columns per class are ours. Where our classes are those of the paper's scenario, by name, they stand in the
    paper's order and each row is followed by the paper's. Rows without a run are kept, without numbers.

    Raises ValueError for the label of no row, runs that differ in classes (all) or in data set, size, frames or
    checkpoint rule (one row), a seed given twice, a score outside 0..1, and Table 7, which `lay_out_proportions`
    makes; TypeError for scores that are no numbers.
    """
    _refuse_proportions(table)
    runs = {label: [headline(run, label) for run in seeds] for label, seeds in _by_row(table, results).items()}
    classes = _common_classes(runs)
    order = paper_order(table.classes, classes or table.classes)
    places = range(len(classes)) if order is None else order
    names = [(classes or table.classes)[i] for i in places] if table.per_class else []
    lines: list[Line] = []
    for row in table.rows:
        printed = _numbers((order and names and getattr(row, table.per_class)) or [None] * len(names))
        means = _numbers([row.miou, row.vpq])
        ceiling = row.recipe == CEILING
        if row.recipe:
            *per_class, miou, vpq = _ours(row.label, runs[row.label], table.per_class, places)
            values = (*per_class, miou, means[0], vpq, means[1])
            lines.append(Line(row.text, values, "ours", ceiling, _beside(row.label, runs[row.label])))
            if any(printed):
                lines.append(Line(row.text, (*printed, None, None, None, None), "paper", ceiling))
        else:
            lines.append(Line(row.text, (*printed, None, means[0], None, means[1]), "literature only"))
    return Grid(
        f"table-{table.number}",
        f"{table.title} (Table {table.number} of the paper)",
        table.heads,
        (*map(Column, names), *(Column(name, paper) for _, name in _MEANS for paper in (False, True))),
        tuple(lines),
        table.decimals,
        (_HOW, *_provenance(lines), _about_paper(table, order is not None), *table.remarks),
    )


def lay_out_rules(table: Table, results: Result) -> Grid:
    """mIoU and VPQ^s of the checkpoint that each rule picks; those picked with target labels come last, apart.

    Errors as `lay_out`, and ValueError for a rule unknown to `RULES` or not given for every seed of a row.
    """
    _refuse_proportions(table)
    runs = {label: [_rules(run, label) for run in seeds] for label, seeds in _by_row(table, results).items()}
    _common_classes({label: [scores for run in seeds for scores in run.values()] for label, seeds in runs.items()})
    order = [(rule, *mean) for rules in (LABEL_FREE_RULES, ("oracle",)) for mean in _MEANS for rule in rules]
    lines: list[Line] = []
    for row in table.rows:
        if not row.recipe:
            continue
        seeds = runs[row.label]
        values = [_over_seeds(run[rule][key] for run in seeds if rule in run) for rule, key, _ in order]
        beside = _beside_rules(row.label, seeds)
        lines.append(Line(row.text, tuple(values), ceiling=row.recipe == CEILING, beside=beside))
    return Grid(
        f"table-{table.number}-rules",
        f"Checkpoint rules: {table.title} (Table {table.number} of the paper)",
        table.heads,
        tuple(Column(f"{name}, {rule}") for rule, _, name in order),
        tuple(lines),
        table.decimals,
        (_HOW, *_provenance(lines), _ABOUT_RULES),
    )


def lay_out_proportions(table: Table, results: Mapping[tuple[str, float, int], float | None], about: Scores) -> Grid:
    """Table 7: P-mIoU of the pseudo labels of each policy at each proportion, the paper's beside it.

    results: (policy, proportion, seed) -> P-mIoU as a fraction. about: what was scored, with the keys that
    scores have ("dataset", "classes", "size", "frames", "rule"). Raises ValueError for another table and for a
    policy or a proportion that it has not.
    """
    if not table.proportions:
        raise ValueError(f"table: wanted one with proportions (7), got Table {table.number}")
    policies = [row.recipe for row in table.rows]
    for (policy, proportion, seed), value in results.items():
        if policy not in policies or proportion not in table.proportions:
            wanted = f"{', '.join(policies)} at {', '.join(map(str, table.proportions))}"
            raise ValueError(f"results: wanted {wanted}, got {policy!r} at {proportion}")
        _check_fraction(value, f"results[{policy!r}, {proportion}, {seed}]")
    lines: list[Line] = []
    for row in table.rows:
        values: list[Number | None] = []
        for proportion, printed in zip(table.proportions, row.p_miou, strict=True):
            ours = [results[key] for key in sorted(results) if key[:2] == (row.recipe, proportion)]
            values += [_over_seeds(ours), Number(printed)]
        seeds = sorted({seed for policy, _, seed in results if policy == row.recipe})
        runs: list[Scores] = [{**about, "seed": seed} for seed in seeds]
        lines.append(Line(row.text, tuple(values), beside=_beside(row.label, runs)))
    comparable = not results or paper_order(table.classes, about.get("classes", ())) is not None
    return Grid(
        f"table-{table.number}",
        f"{table.title} (Table {table.number} of the paper)",
        table.heads,
        tuple(Column(str(proportion), paper) for proportion in table.proportions for paper in (False, True)),
        tuple(lines),
        table.decimals,
        (_HOW, *_provenance(lines), _about_paper(table, comparable), *table.remarks),
    )


def headline(run: Scores, label: str = "") -> Scores:
    """The scores that count: those of the last checkpoint, with what stands beside them in `run`.

    Raises ValueError where they are missing, where "rules" has others for it, and for scores of a checkpoint
    that was picked with target labels.
    """
    where = f"results[{label!r}]"
    last = run.get("rules", {}).get("last")
    if last is None:
        if run.get("rule") == "oracle":
            raise ValueError(f"{where}: wanted the scores of a checkpoint picked without target labels, got 'oracle'")
        return _checked({"rule": "last", **run}, where)
    if any(run[key] != last[key] for key in _SCORES & run.keys() & last.keys()):
        raise ValueError(f"{where}: wanted the scores of the rule 'last' beside its rules, got others")
    return _checked({**run, **last, "rule": "last"}, where)


def paper_order(paper: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Place in `ours` of each class of `paper`; None unless the two name the same classes.

    Names are compared without case, spaces and signs; Sign, SignSymbol and traffic sign are one class, light and
    traffic light another.
    """
    wanted, found = ([_canonical(name) for name in names] for names in (paper, ours))
    return [found.index(name) for name in wanted] if sorted(wanted) == sorted(found) else None


def _canonical(name: str) -> str:
    bare = re.sub(r"[\W_]", "", name.lower())
    return _SAME_CLASS.get(bare, bare)


# --- checks at the door


def _refuse_proportions(table: Table) -> None:
    if table.proportions:
        raise ValueError(f"table: Table {table.number} has proportions; lay_out_proportions makes it")


def _by_row(table: Table, results: Result) -> dict[str, Sequence[Scores]]:
    labels = [row.label for row in table.rows if row.recipe]
    for label, seeds in results.items():
        if label not in labels:
            raise ValueError(f"results: wanted rows of Table {table.number} ({', '.join(labels)}), got {label!r}")
        if isinstance(seeds, Mapping):
            raise TypeError(f"results[{label!r}]: wanted a list of scores, one per seed, got one mapping")
    return {label: results.get(label, ()) for label in labels}


def _checked(scores: Scores, where: str) -> Scores:
    for key in ("classes", "miou", "vpq"):
        if key not in scores:
            raise ValueError(f"{where}: wanted scores with {key!r}, got {', '.join(sorted(scores))}")
    for key in ("miou", "vpq"):
        _check_fraction(scores[key], f"{where}[{key!r}]")
    for key in _PER_CLASS & scores.keys():
        if len(scores[key]) != len(scores["classes"]):
            raise ValueError(f"{where}[{key!r}]: wanted {len(scores['classes'])} classes, got {len(scores[key])}")
        for value in scores[key]:
            _check_fraction(value, f"{where}[{key!r}]")
    return scores


def _check_fraction(value: object, where: str) -> None:
    if value is None:
        return
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{where}: wanted a number or None, got {value!r}")
    if float(value) < 0 or float(value) > 1:  # nan passes: no score
        raise ValueError(f"{where}: wanted a fraction in 0..1, got {value}")


def _rules(run: Scores, label: str) -> dict[str, Scores]:
    """Rule -> scores; the run's own are those of the rule "last"."""
    picked = run.get("rules", {})
    unknown = sorted(picked.keys() - set(RULES))
    if unknown:
        raise ValueError(f"results[{label!r}]['rules']: wanted {', '.join(RULES)}, got {unknown[0]!r}")
    # A rule's own scores or none: what it lacks must not be filled in from the last checkpoint's.
    about = {key: value for key, value in run.items() if key not in _SCORES}
    others = {
        rule: _checked({**about, **scores}, f"results[{label!r}]['rules'][{rule!r}]") for rule, scores in picked.items()
    }
    return {**others, "last": headline(run, label)}


def _common_classes(runs: Mapping[str, Iterable[Scores]]) -> tuple[str, ...]:
    found = {tuple(run["classes"]): label for label, seeds in runs.items() for run in seeds}
    if len(found) > 1:
        (one, first), (two, second), *_ = found.items()
        raise ValueError(f"results: wanted the same classes in every run, got {one} ({first}) and {two} ({second})")
    return next(iter(found), ())


# --- parts


def _over_seeds(values: Iterable[float | None]) -> Number | None:
    """Mean and sample standard deviation over the seeds that have a score, in percent."""
    known = [100 * float(value) for value in values if value is not None and math.isfinite(value)]
    return Number(fmean(known), stdev(known) if len(known) > 1 else None) if known else None


def _numbers(printed: Iterable[float | None]) -> list[Number | None]:
    return [None if value is None else Number(value) for value in printed]


def _ours(label: str, seeds: Sequence[Scores], per_class: str, places: Sequence[int]) -> list[Number | None]:
    """Per class, where the table has such columns, then mIoU and VPQ^s."""
    if per_class and any(per_class not in run for run in seeds):
        raise ValueError(f"results[{label!r}]: wanted scores with {per_class!r}, got {', '.join(sorted(seeds[0]))}")
    classes = [_over_seeds(run[per_class][i] for run in seeds) for i in places] if per_class else []
    return [*classes, *(_over_seeds(run[key] for run in seeds) for key, _ in _MEANS)]


def _beside(label: str, seeds: Sequence[Scores]) -> Beside | None:
    """What the seeds of a row share. Raises ValueError where they do not, or a seed is there twice."""
    if not seeds:
        return None
    known = [run["seed"] for run in seeds if "seed" in run]
    if len(set(known)) < len(known):
        raise ValueError(f"results[{label!r}]: wanted each seed once, got {', '.join(map(str, known))}")
    found = {
        Beside(
            str(run.get("dataset", "?")),
            tuple(run.get("classes", ())),
            tuple(run["size"]) if run.get("size") else None,
            run.get("frames"),
            tuple(str(run.get("seed", "?")) for run in seeds),
            str(run.get("rule", "last")),
        )
        for run in seeds
    }
    if len(found) > 1:
        raise ValueError(
            f"results[{label!r}]: wanted one data set, size and checkpoint rule for all seeds, got {found}"
        )
    return found.pop()


def _beside_rules(label: str, seeds: Sequence[Mapping[str, Scores]]) -> Beside | None:
    """As `_beside`, over the scores of every rule; they may differ in the checkpoint alone."""
    if any(run.keys() != seeds[0].keys() for run in seeds):
        raise ValueError(f"results[{label!r}]: wanted the same checkpoint rules for each seed")
    by_rule = [_beside(label, [run[rule] for run in seeds]) for rule in (seeds[0] if seeds else ())]
    shared = {replace(beside, rule="by column") for beside in by_rule if beside}
    if len(shared) > 1:
        raise ValueError(f"results[{label!r}]['rules']: wanted one data set and size for all rules, got {shared}")
    return shared.pop() if shared else None


_HOW = "In percent; mean ± sample standard deviation over the seeds, the bare number for one; a dash: not run."
_ABOUT_RULES = (
    "last, entropy and agreement pick a checkpoint without target labels; oracle picks the best by target labels: a "
    "bound from above, never the headline."
)


def _provenance(lines: Sequence[Line]) -> list[str]:
    """What was scored, and the seeds: each once where all runs agree, else with the rows it belongs to."""
    scored: dict[str, list[str]] = {}
    seeds: dict[str, list[str]] = {}
    for line in lines:
        if line.beside:
            scored.setdefault(line.beside.scored, []).append(line.text[0])
            seeds.setdefault(", ".join(line.beside.seeds), []).append(line.text[0])
    if not scored:
        return ["Our runs: none yet."]
    if len(scored) == 1:
        notes = [f"Our runs: {next(iter(scored))}."]
    else:
        notes = [f"Our runs of {', '.join(labels)}: {text}." for text, labels in scored.items()]
    each = [text if len(seeds) == 1 else f"{text} ({', '.join(labels)})" for text, labels in seeds.items()]
    return [*notes, f"Seeds: {'; '.join(each)}."]


def _about_paper(table: Table, comparable: bool) -> str:
    other = "" if comparable else " Its classes are not those of our runs: the means are not comparable."
    return f"Paper: {table.scenario}, {len(table.classes)} classes.{other}"
