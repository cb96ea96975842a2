"""The page: its sections, and what stands beside the numbers."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vda.checkpoint import atomic_write
from vda.provenance import provenance
from vda.report.curves import curve_svg, curves
from vda.report.matrix import matrices_html
from vda.report.strips import Group, groups_html, viewer_html
from vda.report.tables import (
    Scores,
    difference,
    interval_html,
    iou_table,
    is_ceiling,
    overall_table,
    percent,
    pseudo_table,
    rules_table,
    stage_title,
    table_html,
    vpq_table,
)

MAX_BYTES = 20_000_000

_IOU_NOTE = "Below a value, its difference to the first row in points; bold, the best, the ceiling apart."
_VPQ_NOTE = "Video panoptic quality with each class as one instance, over windows of k successive labelled frames."
_CONFUSION_NOTE = (
    "Each row is a true class, in percent of its pixels: on the diagonal those that were recognised, off it what they "
    "were taken for. Pixels without a label are not counted."
)
_PSEUDO_NOTE = (
    "Percent of each true class's pixels that have a pseudo label, and how good those are. Measured with the target's "
    "labels, for this page alone: training does not see them."
)
_CURVES_NOTE = (
    "Line: mean over a bin of steps; band: least to greatest; number: mean of the last tenth. The axis leaves out the "
    "highest 0.5 % of the values."
)
_RULES_NOTE = (
    "mIoU of the checkpoint that each rule would have chosen. last, entropy and agreement see no target label; oracle "
    "chooses with them, and is a bound, not a result."
)


def write_report(
    path: str | Path,
    *,
    title: str,
    settings: Mapping[str, Any],
    scores: Mapping[str, Scores],
    classes: Sequence[str],
    palette: NDArray[np.uint8],
    clips: Sequence[Group] = (),
    log: Sequence[Mapping[str, Any]] | None = None,
    pseudo: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page of a run or of a comparison to `path`, atomically; the file stays below 20 MB.

    settings: shown as they are, nested mappings flattened. scores: stage -> its scores, fractions, as
    `vda.metrics.Scorer.scores` gives them; "confusion", "interval", "tc", "mvc" and "rules" are shown where there are
    any. The first stage is the one that the others are compared with, "oracle" is shown as a ceiling. palette: [K, 3]
    RGB of `classes`. clips: strips to play, in the order given; where they are too large their pictures get narrower,
    then fewer, which the page says. log: entries {"phase", "iteration", <loss>: value}. pseudo: any of "coverage",
    "iou", "theta" (per class) and "total_coverage", "miou".
    """
    swatches = _swatches(classes, palette)
    before = [*_score_sections(scores, swatches)]
    if pseudo:
        table = table_html(pseudo_table(pseudo, classes), swatches, compared=False)
        before.append(_section("Pseudo labels", table, _note(_PSEUDO_NOTE)))
    after = []
    if log:
        after.append(_section("Learning curves", _curves_html(log), _note(_CURVES_NOTE)))
    after.append(_section("Settings", _settings_html(settings)))
    clips = [group for group in clips if group.strips]
    if clips:  # the rest of the page first: what it leaves of the 20 MB is for pictures
        head = viewer_html(clips) + _legend(swatches)
        rest = _page(title, _headline(scores), [*before, _section("Clips", head), *after])
        parts, left_out = groups_html(clips, palette, MAX_BYTES - len(rest.encode()) - 2000)
        shown = "".join(f"<h3>{escape(name)}</h3>{part}" for name, part in parts)
        before.append(_section("Clips", head, _note(left_out) if left_out else "", shown))
    atomic_write(path, _page(title, _headline(scores), [*before, *after]).encode())


def _score_sections(scores: Mapping[str, Scores], swatches: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    if not scores:
        return
    rules = rules_table(scores)
    chosen = ["<h3>Checkpoint rules</h3>", table_html(rules, {}, compared=False), _note(_RULES_NOTE)] if rules else []
    yield _section("Scores", table_html(overall_table(scores), {}), *map(_note, provenance(scores)), *chosen)
    yield _section("IoU", table_html(iou_table(scores), swatches), _note(_IOU_NOTE))
    yield _section("VPQˢ", table_html(vpq_table(scores), swatches), _note(_VPQ_NOTE))
    if matrices := matrices_html(scores, swatches):
        yield _section("Confusion", matrices, _note(_CONFUSION_NOTE))


# --- parts of the page


def _section(title: str, *parts: str) -> tuple[str, str]:
    return title, "".join(parts)


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _headline(scores: Mapping[str, Scores]) -> str:
    first: Scores = next(iter(scores.values()), {})
    cards = []
    for number, (name, stage) in enumerate(scores.items()):
        values = "".join(
            f"<div><span>{label}</span><strong>{percent(stage[key])}</strong>"
            f"{difference(stage[key], first[key]) if number else ''}"
            f"{interval_html((stage.get('interval') or {}).get(key))}</div>"
            for key, label in (("miou", "mIoU"), ("vpq", "VPQˢ"))
        )
        kind = " ceiling" if is_ceiling(name) else ""
        cards.append(f'<article class="card{kind}"><h3>{escape(stage_title(name))}</h3>{values}</article>')
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _swatches(classes: Sequence[str], palette: NDArray[np.uint8]) -> dict[str, str]:
    return {
        name: f'<i class="swatch" style="background:rgb({r},{g},{b})"></i>'
        for name, (r, g, b) in zip(classes, np.asarray(palette)[: len(classes)].tolist(), strict=True)
    }


def _legend(swatches: Mapping[str, str]) -> str:
    entries = [f"<li>{swatch}{escape(name)}</li>" for name, swatch in swatches.items()]
    entries.append('<li><i class="swatch empty"></i>none (255): the frame itself</li>')
    return f'<ul class="legend" aria-label="palette">{"".join(entries)}</ul>'


def _curves_html(log: Iterable[Mapping[str, Any]]) -> str:
    parts = []
    for phase, losses in curves(log).items():
        drawn = "".join(curve_svg(name, curve) for name, curve in losses.items() if curve)
        parts.append(f'<h3>{escape(stage_title(phase))}</h3><div class="curves">{drawn}</div>')
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


# --- the whole


def _page(title: str, headline: str, sections: Sequence[tuple[str, str]]) -> str:
    style, script = ((files(__package__) / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # Nothing is loaded, and no script runs but ours, even if a name should slip through unescaped.
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{own}'"
    links = "".join(f'<a href="#part-{i}">{escape(name)}</a>' for i, (name, _) in enumerate(sections))
    parts = "\n".join(
        f'<section id="part-{i}"><h2>{escape(name)}</h2>{content}</section>'
        for i, (name, content) in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f'<body><main><header><h1>{escape(title)}</h1><nav aria-label="sections">{links}</nav></header>\n'
        f"{headline}\n{parts}\n</main><script>{script}</script></body></html>\n"
    )
