"""Scores side by side as Markdown: the means with their intervals, each class, and what they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vda.metrics.bootstrap import LEVEL
from vda.provenance import provenance
from vda.report import score_table
from vda.report.tables import percent as _percent

Scores = Mapping[str, Any]  # of one run, as `vda.scoring.score_predictions` gives them

NOTE = (
    f"Percent; brackets: {100 * LEVEL:.0f} % interval by bootstrap over clips; -: no such score. mIoU, pixel accuracy "
    "and VPQ^s count a pixel without a prediction as an error; covered: share of labelled pixels that have one, and "
    "the mIoU of those. TC compares a prediction with the next one, brought back by optical flow; TC all: occluded "
    "pixels too. mVC: of the pixels whose label stands still for 8 or 16 successive labelled frames, the share that is "
    "right in all of them."
)


def markdown(scores: Mapping[str, Scores]) -> str:
    """Tables of the runs: means, IoU and VPQ^s of each class; and beside them what every run was scored on and with."""
    scores = {name.replace("|", r"\|"): run for name, run in scores.items()}  # a bar would end the cell
    means = [["", *_MEANS], *([name, *(cell(run) for cell in _MEANS.values())] for name, run in scores.items())]
    beside = "\n".join(f"- {line}" for line in provenance(scores))
    return "\n\n".join([_table(means), score_table(scores), _vpq_table(scores), NOTE, beside]) + "\n"


def _vpq_table(scores: Mapping[str, Scores]) -> str:
    classes = list(dict.fromkeys(name for run in scores.values() for name in run["classes"]))
    rows = [["VPQ^s", *(of.replace("|", r"\|") for of in classes)]]
    for name, run in scores.items():
        found = dict(zip(run["classes"], run["vpq_per_class"], strict=True))
        rows.append([name, *(_percent(found.get(of)) for of in classes)])
    return _table(rows)


def _with_interval(run: Scores, key: str) -> str:
    bounds = (run.get("interval") or {}).get(key)
    return _percent(run[key]) + (f" [{_percent(bounds[0])}, {_percent(bounds[1])}]" if bounds else "")


def _covered(run: Scores) -> str:
    whole = run["coverage"] in (None, 1.0)
    return _percent(run["coverage"]) + ("" if whole else f" (mIoU {_percent(run['miou_covered'])})")


_MEANS = {
    "mIoU": lambda run: _with_interval(run, "miou"),
    "pixel accuracy": lambda run: _percent(run["pixel_accuracy"]),
    "covered": _covered,
    "VPQ^s": lambda run: _with_interval(run, "vpq"),
    "k = 1, 2, 3, 4": lambda run: ", ".join(map(_percent, run["vpq_k"])),
    "TC": lambda run: _percent(run["tc"]),
    "TC all": lambda run: _percent(run["tc_unmasked"]),
    "mVC8": lambda run: _percent(run["mvc"]["8"]),
    "mVC16": lambda run: _percent(run["mvc"]["16"]),
}


def _table(lines: Sequence[Sequence[str]]) -> str:
    rows = [[*line] for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    cells = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
