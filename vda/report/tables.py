"""Tables of scores, for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from vda.methods import METHODS

Scores = Mapping[str, Any]  # of one stage, as `vda.metrics.Scorer.scores` gives them
Value = float | None  # a fraction; None or NaN where there is no score

_CLIP_LENGTHS = "mVC{}"  # video consistency over so many frames


@dataclass(frozen=True)
class Table:
    """Rows of fractions under column names."""

    columns: list[str]
    rows: dict[str, list[Value]]
    means: int  # how many of the last columns are means over the others
    intervals: dict[str, dict[str, Sequence[Value]]] = field(default_factory=dict)  # row -> column -> (low, high)


def stage_title(name: str) -> str:
    """How a stage is called on the page: a method by its title, all else by its name."""
    return METHODS[name].title if name in METHODS else name


def is_ceiling(name: str) -> bool:
    """Whether a stage has learnt from target labels, and so is no rival of the others."""
    return name in METHODS and METHODS[name].ceiling


def known(value: Value) -> Value:
    return value if value is not None and math.isfinite(value) else None


def percent(value: Value) -> str:
    value = known(value)
    return "-" if value is None else f"{100 * value:.1f}"


# --- which scores stand where


def overall_table(scores: Mapping[str, Scores]) -> Table:
    """Every score of the whole set that some stage has, with its confidence interval."""
    lengths = sorted({int(k) for stage in scores.values() for k in stage.get("mvc") or {}})
    read: dict[str, Callable[[Scores], Value]] = {
        "mIoU": lambda s: s["miou"],
        "pixel accuracy": lambda s: s.get("pixel_accuracy"),
        "covered": lambda s: s.get("coverage"),
        "VPQˢ": lambda s: s["vpq"],
        "TC": lambda s: s.get("tc"),
        "TC, occluded too": lambda s: s.get("tc_unmasked"),
    }
    for k in lengths:
        read[_CLIP_LENGTHS.format(k)] = lambda s, k=k: (s.get("mvc") or {}).get(str(k))  # type: ignore[misc]
    found = {column: {name: known(value(stage)) for name, stage in scores.items()} for column, value in read.items()}
    dull: dict[str, set[Value]] = {"mIoU": set(), "VPQˢ": set(), "covered": {None, 1.0}}  # not worth a column
    columns = [column for column in found if not {*found[column].values()} <= dull.get(column, {None})]
    rows = {name: [found[column][name] for column in columns] for name in scores}
    return Table(columns, rows, 0, _intervals(scores))


def _intervals(scores: Mapping[str, Scores]) -> dict[str, dict[str, Sequence[Value]]]:
    keys = {"mIoU": "miou", "VPQˢ": "vpq"}
    return {
        name: {column: found for column, key in keys.items() if (found := (stage.get("interval") or {}).get(key))}
        for name, stage in scores.items()
    }


def iou_table(scores: Mapping[str, Scores]) -> Table:
    """IoU of each class, and mIoU and VPQ^s."""
    classes = _union(scores)
    rows = {name: _row(classes, stage, "iou", [stage["miou"], stage["vpq"]]) for name, stage in scores.items()}
    return Table([*classes, "mIoU", "VPQˢ"], rows, 2, _intervals(scores))


def vpq_table(scores: Mapping[str, Scores]) -> Table:
    """VPQ^s of each class, of each window length, and of all."""
    classes = _union(scores)
    lengths = [f"k = {k + 1}" for k in range(max((len(stage["vpq_k"]) for stage in scores.values()), default=0))]
    rows = {}
    for name, stage in scores.items():
        missing = [None] * (len(lengths) - len(stage["vpq_k"]))
        rows[name] = _row(classes, stage, "vpq_per_class", [*stage["vpq_k"], *missing, stage["vpq"]])
    return Table([*classes, *lengths, "VPQˢ"], rows, len(lengths) + 1)


def rules_table(scores: Mapping[str, Scores]) -> Table | None:
    """mIoU of the checkpoint that each rule would have chosen; None where no stage knows of more than one."""
    rules = list(dict.fromkeys(rule for stage in scores.values() for rule in stage.get("rules") or {}))
    if len(rules) < 2:
        return None
    rows = {}
    for name, stage in scores.items():
        chosen = stage.get("rules") or {}
        rows[name] = [known(chosen[rule]["miou"]) if rule in chosen else None for rule in rules]
    return Table(rules, rows, 0)


def _union(scores: Mapping[str, Scores]) -> list[str]:
    return list(dict.fromkeys(name for stage in scores.values() for name in stage["classes"]))


def _row(classes: Sequence[str], stage: Scores, per_class: str, means: Sequence[Value]) -> list[Value]:
    by_name = dict(zip(stage["classes"], stage[per_class], strict=True))
    return [known(value) for value in [*(by_name.get(name) for name in classes), *means]]


# --- the terminal


def score_table(scores: Mapping[str, Scores]) -> str:
    """Markdown table of the stages: per-class IoU, mIoU and VPQ^s in percent; "-" where there is no score."""
    table = iou_table(scores)
    head = ["", *(name.replace("|", r"\|") for name in table.columns)]
    head[-1] = "VPQ^s"  # not every terminal has the raised letter
    lines = [head]
    lines += [[stage_title(name), *map(percent, row)] for name, row in table.rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    cells = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# --- the page


def table_html(table: Table, swatches: Mapping[str, str], *, compared: bool = True) -> str:
    """One row per stage.

    compared: the best of each column in bold, the ceiling apart; below each value its difference to the first row.
    """
    best = _best([row for name, row in table.rows.items() if not is_ceiling(name)]) if compared else []
    first = next(iter(table.rows.values()), [])
    body = []
    for number, (name, row) in enumerate(table.rows.items()):
        cells = []
        for i, value in enumerate(row):
            bold = compared and not is_ceiling(name) and value is not None and value == best[i]
            text = f"<b>{percent(value)}</b>" if bold else percent(value)
            text += difference(value, first[i]) if number and compared else ""
            text += interval_html(table.intervals.get(name, {}).get(table.columns[i]))
            cells.append(f"<td{_mean(table, i)}>{text}</td>")
        kind = ' class="ceiling"' if is_ceiling(name) else ""
        body.append(f'<tr{kind}><th scope="row">{escape(stage_title(name))}</th>{"".join(cells)}</tr>')
    head = "".join(
        f'<th scope="col"{_mean(table, i)}>{swatches.get(name, "")}{escape(name)}</th>'
        for i, name in enumerate(table.columns)
    )
    few = ' class="few"' if len(table.columns) < 8 else ""
    return (
        f'<div class="wide" tabindex="0"><table{few}><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _best(rivals: Sequence[Sequence[Value]]) -> list[Value]:
    """The greatest of each column; None where there is nothing to choose."""
    columns = [[value for value in column if value is not None] for column in zip(*rivals, strict=True)]
    return [max(column) if len(rivals) > 1 and len({*column}) > 1 else None for column in columns]


def _mean(table: Table, column: int) -> str:
    return ' class="mean"' if column >= len(table.columns) - table.means else ""


def difference(value: Value, reference: Value) -> str:
    """The difference in points as HTML; nothing where one of them is missing."""
    value, reference = known(value), known(reference)
    if value is None or reference is None:
        return ""
    points = round(100 * value, 1) - round(100 * reference, 1)  # of the printed numbers, so that the page adds up
    kind = "up" if points > 0.05 else "down" if points < -0.05 else "same"
    return f'<small class="{kind}">{"±0.0" if kind == "same" else f"{points:+.1f}"}</small>'


def interval_html(interval: Sequence[Value] | None) -> str:
    """A confidence interval as HTML; nothing where there is none."""
    if not interval or None in map(known, interval):
        return ""
    low, high = map(percent, interval)
    return f'<small class="interval">{low} to {high}</small>'


def pseudo_table(pseudo: Mapping[str, Any], classes: Sequence[str]) -> Table:
    """Coverage, accuracy and thresholds of pseudo labels per class."""
    rows: dict[str, list[Value]] = {}
    for key, name, overall in (
        ("coverage", "coverage", "total_coverage"),
        ("iou", "IoU where covered", "miou"),
        ("theta", "threshold θ", ""),
    ):
        if key in pseudo:
            rows[name] = [known(value) for value in [*pseudo[key], pseudo.get(overall)]]
    return Table([*classes, "all"], rows, 1)
