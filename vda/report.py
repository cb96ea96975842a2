"""The outcome of a run: a table for the terminal, and one HTML page that needs no network and no other
file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vda.checkpoint import atomic_write
from vda.curves import curve_svg, curves
from vda.data.clip import Image
from vda.methods import METHODS
from vda.page_style import STYLE
from vda.pictures import colour_label, data_uri, flow_image, overlay

__all__ = ["Panel", "colour_label", "flow_image", "overlay", "score_table", "write_report"]

Scores = Mapping[str, Any]  # of one stage, as `vda.metrics.Scorer.scores` gives them

MAX_BYTES = 20_000_000
_IMAGE_WIDTHS = (960, 640, 480, 320, 240)
# Provenance that stands beside the numbers, in this order, where the scores carry it.
_PROVENANCE = ("dataset", "checkpoint", "rule", "seed")


@dataclass(frozen=True)
class Panel:
    """Pictures of one frame, side by side. images: caption -> [H, W, 3] uint8 RGB."""

    title: str
    images: dict[str, Image]


# --- tables


@dataclass(frozen=True)
class _Table:
    """Rows of fractions under column names; None where there is no value."""

    columns: list[str]
    rows: dict[str, list[float | None]]
    means: int  # how many of the last columns are means over the others


def _stage(name: str) -> str:
    return METHODS[name].title if name in METHODS else name


def _is_ceiling(name: str) -> bool:
    return name in METHODS and METHODS[name].ceiling


def _union(scores: Mapping[str, Scores]) -> list[str]:
    return list(dict.fromkeys(name for stage in scores.values() for name in stage["classes"]))


def _row(classes: Sequence[str], stage: Scores, per_class: str, means: Sequence[float | None]) -> list[float | None]:
    by_name = dict(zip(stage["classes"], stage[per_class], strict=True))
    return [_known(value) for value in [*(by_name.get(name) for name in classes), *means]]


def _iou_table(scores: Mapping[str, Scores]) -> _Table:
    classes = _union(scores)
    rows = {k: _row(classes, s, "iou", [s["miou"], s["vpq"]]) for k, s in scores.items()}
    return _Table([*classes, "mIoU", "VPQˢ"], rows, 2)


def _vpq_table(scores: Mapping[str, Scores]) -> _Table:
    classes = _union(scores)
    lengths = [f"k = {k + 1}" for k in range(max((len(s["vpq_k"]) for s in scores.values()), default=0))]
    rows = {
        name: _row(classes, s, "vpq_per_class", [*s["vpq_k"], *[None] * (len(lengths) - len(s["vpq_k"])), s["vpq"]])
        for name, s in scores.items()
    }
    return _Table([*classes, *lengths, "VPQˢ"], rows, len(lengths) + 1)


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def score_table(scores: Mapping[str, Scores]) -> str:
    """Markdown table of the stages: per-class IoU, mIoU and VPQ^s in percent; "-" where there is no score."""
    table = _iou_table(scores)
    head = ["", *(name.replace("|", r"\|") for name in table.columns)]
    head[-1] = "VPQ^s"  # not every terminal has the raised letter
    lines = [head]
    lines += [[_stage(name), *map(_percent, row)] for name, row in table.rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    cells = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _table_html(table: _Table, swatches: Mapping[str, str]) -> str:
    """Best of each column in bold, the ceiling apart; below each value its difference to the first row."""
    head = "".join(
        f'<th class="{"mean" if i >= len(table.columns) - table.means else ""}">'
        f"{swatches.get(name, '')}{escape(name)}</th>"
        for i, name in enumerate(table.columns)
    )
    rivals = [row for name, row in table.rows.items() if not _is_ceiling(name)]
    best = [max((value for value in column if value is not None), default=None) for column in zip(*rivals, strict=True)]
    first = next(iter(table.rows.values()), [])
    body = []
    for number, (name, row) in enumerate(table.rows.items()):
        cells = []
        for i, value in enumerate(row):
            bold = not _is_ceiling(name) and len(rivals) > 1 and value is not None and value == best[i]
            text = f"<b>{_percent(value)}</b>" if bold else _percent(value)
            mean = ' class="mean"' if i >= len(row) - table.means else ""
            cells.append(f"<td{mean}>{text}{_difference(value, first[i]) if number else ''}</td>")
        kind = ' class="ceiling"' if _is_ceiling(name) else ""
        body.append(f'<tr{kind}><th scope="row">{escape(_stage(name))}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _difference(value: float | None, reference: float | None) -> str:
    if value is None or reference is None:
        return ""
    points = round(100 * value, 1) - round(100 * reference, 1)  # of the printed numbers, so that the page adds up
    kind = "up" if points > 0.05 else "down" if points < -0.05 else "same"
    return f'<small class="{kind}">{"±0.0" if kind == "same" else f"{points:+.1f}"}</small>'


def _pseudo_html(pseudo: Mapping[str, Any], classes: Sequence[str], swatches: Mapping[str, str]) -> str:
    rows: dict[str, list[float | None]] = {}
    for key, name, overall in (
        ("coverage", "coverage", "total_coverage"),
        ("iou", "IoU where covered", "miou"),
        ("theta", "threshold θ", ""),
    ):
        if key in pseudo:
            rows[name] = [_known(value) for value in [*pseudo[key], pseudo.get(overall)]]
    table = _Table([*classes, "all"], rows, 1)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{_percent(value)}</td>" for value in row)}</tr>'
        for name, row in table.rows.items()
    )
    head = "".join(f"<th>{swatches.get(name, '')}{escape(name)}</th>" for name in table.columns)
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


# --- parts of the page


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _headline(scores: Mapping[str, Scores]) -> str:
    first: Scores = next(iter(scores.values()), {})
    cards = []
    for number, (name, stage) in enumerate(scores.items()):
        values = "".join(
            f"<div><span>{label}</span><strong>{_percent(stage[key])}</strong>"
            f"{_difference(stage[key], first[key]) if number else ''}</div>"
            for key, label in (("miou", "mIoU"), ("vpq", "VPQˢ"))
        )
        kind = " ceiling" if _is_ceiling(name) else ""
        cards.append(f'<article class="card{kind}"><h3>{escape(_stage(name))}</h3>{values}</article>')
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _provenance(scores: Mapping[str, Scores]) -> str:
    """What the numbers were measured on: one line where all stages agree, else one per stage."""
    lines: dict[str, list[str]] = {}
    for name, stage in scores.items():
        size = " × ".join(map(str, stage["size"] or ("?", "?")))
        parts = [
            f"{_count(stage['frames'], 'labelled frame')} in {_count(stage['clips'], 'clip')} of {size} pixels (H × W)",
            f"label {stage['ignore']} ignored",
            *(f"{key} {stage[key]}" for key in _PROVENANCE if key in stage),
        ]
        lines.setdefault(", ".join(parts), []).append(_stage(name))
    if len(lines) == 1:
        return _note(f"Percent. {next(iter(lines))}.")
    return _note("Percent.") + "".join(_note(f"{', '.join(names)}: {line}.") for line, names in lines.items())


def _swatches(classes: Sequence[str], palette: NDArray[np.uint8]) -> dict[str, str]:
    return {
        name: f'<i class="swatch" style="background:rgb({r},{g},{b})"></i>'
        for name, (r, g, b) in zip(classes, np.asarray(palette)[: len(classes)].tolist(), strict=True)
    }


def _legend(swatches: Mapping[str, str]) -> str:
    entries = [f"<li>{swatch}{escape(name)}</li>" for name, swatch in swatches.items()]
    entries.append('<li><i class="swatch" style="background:#000"></i>none (255)</li>')
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _panel_html(panel: Panel, max_width: int) -> str:
    # The box that a click ticks shows the picture full size: no script needed.
    figures = "".join(
        f'<figure><label><input type="checkbox"><img alt="{escape(_stage(name))}" loading="lazy" '
        f'src="{data_uri(image, max_width)}"></label><figcaption>{escape(_stage(name))}</figcaption></figure>'
        for name, image in panel.images.items()
    )
    return f'<div class="panel"><h3>{escape(panel.title)}</h3><div class="pictures">{figures}</div></div>'


def _curves_html(log: Iterable[Mapping[str, Any]]) -> str:
    parts = []
    for phase, losses in curves(log).items():
        drawn = "".join(curve_svg(name, curve) for name, curve in losses.items() if curve)
        parts.append(f'<h3>{escape(_stage(phase))}</h3><div class="curves">{drawn}</div>')
    return "".join(parts)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        found += _flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return found


def _settings_html(settings: Mapping[str, Any]) -> str:
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in _flat(settings))
    return f"<details><summary>{len(_flat(settings))} settings</summary><dl>{rows}</dl></details>"


# --- the page


def write_report(
    path: str | Path,
    *,
    title: str,
    settings: Mapping[str, Any],
    scores: Mapping[str, Scores],
    classes: Sequence[str],
    palette: NDArray[np.uint8],
    panels: Sequence[Panel] = (),
    log: Sequence[Mapping[str, Any]] | None = None,
    pseudo: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page of a run to `path`, atomically; the file stays below 20 MB.

    settings: shown as they are, nested mappings flattened. scores: stage -> its scores, fractions; the first
    stage is the one that the others are compared with, "oracle" is shown as a ceiling. palette: [K, 3] RGB of
    `classes`. log: entries {"phase", "iteration", <loss>: value}. pseudo: any of "coverage", "iou", "theta"
    (per class) and "total_coverage", "miou". Where the pictures are too large they are scaled down, and then
    left out from the end, which the page says.
    """
    swatches = _swatches(classes, palette)
    legend = _legend(swatches)
    before: list[str] = []
    after: list[str] = []
    if scores:
        before.append(_headline(scores))
        before.append(_section("IoU", _table_html(_iou_table(scores), swatches), _provenance(scores)))
        note = "Video panoptic quality with each class as one instance, over windows of k successive labelled frames."
        before.append(_section("VPQˢ", _table_html(_vpq_table(scores), swatches), _note(note)))
    if pseudo:
        note = (
            "Percent of each true class's pixels that have a pseudo label, and how good those are. Measured with the "
            "target's labels, for this page alone: training does not see them."
        )
        before.append(_section("Pseudo labels", _pseudo_html(pseudo, classes, swatches), _note(note)))
    if log:
        after.append(_section("Learning curves", _curves_html(log), _note(_CURVES_NOTE)))
    after.append(_section("Settings", _settings_html(settings)))
    room = MAX_BYTES - len(_page(title, [*before, *after]).encode()) - len(legend) - 1000
    page = _page(title, [*before, *_panels_within(panels, legend, room), *after])
    atomic_write(path, page.encode())


_CURVES_NOTE = (
    "Line: mean over a bin of steps; band: least to greatest; number: mean of the last tenth. The axis leaves out the "
    "highest 0.5 % of the values."
)


def _panels_within(panels: Sequence[Panel], legend: str, room: int) -> list[str]:
    """The panels at the largest picture width that fits; as many as fit where none does."""
    if not panels:
        return []
    for width in _IMAGE_WIDTHS:
        parts = [_panel_html(panel, width) for panel in panels]
        sizes = np.cumsum([len(part.encode()) for part in parts])
        if sizes[-1] <= room:
            return [_section("Frames", legend, *parts)]
    kept = int(np.searchsorted(sizes, room, side="right"))
    return [
        _section(
            "Frames", legend, *parts[:kept], _note(f"{len(parts) - kept} more frames left out to keep the file small.")
        )
    ]


def _page(title: str, parts: Iterable[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><header><h1>{escape(title)}</h1></header>\n{chr(10).join(parts)}\n</main></body></html>\n"
    )
