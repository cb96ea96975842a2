"""Confusion matrices as heat maps: what the pixels of each class were taken for."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from vda.report.tables import Scores, is_ceiling, stage_title

NONE = "none"  # the column of pixels without a prediction


def matrices_html(scores: Mapping[str, Scores], swatches: Mapping[str, str]) -> str:
    """One matrix per stage that has counts; open is the last one that is no ceiling."""
    found = {name: stage for name, stage in scores.items() if stage.get("confusion") is not None}
    rivals = [name for name in found if not is_ceiling(name)] or list(found)
    return "".join(
        f'<details class="confusion"{" open" if name == rivals[-1] else ""}>'
        f"<summary>{escape(stage_title(name))}</summary>{matrix_html(stage, swatches)}</details>"
        for name, stage in found.items()
    )


def matrix_html(stage: Scores, swatches: Mapping[str, str]) -> str:
    """Rows: true classes; columns: predicted ones. Cells in percent of their row, the counts in their titles.

    stage["confusion"]: [K + 1, K + 1] counts; last row void, neither scored nor shown; last column pixels without a
    prediction, shown where there are any.
    """
    K = len(stage["classes"])
    counts = np.asarray(stage["confusion"], np.int64)
    if counts.shape != (K + 1, K + 1):
        raise ValueError(f"confusion: wanted {[K + 1, K + 1]} counts of {K} classes, got {list(counts.shape)}")
    shown = counts[:K] if counts[:K, K].any() else counts[:K, :K]
    predicted = [*stage["classes"], NONE][: shown.shape[1]]
    totals = shown.sum(axis=1)
    everything = max(1, int(totals.sum()))
    rows = []
    for i, name in enumerate(stage["classes"]):
        cells = "".join(_cell(int(n), int(totals[i]), name, predicted[j], i == j) for j, n in enumerate(shown[i]))
        share = f'<td class="share">{100 * int(totals[i]) / everything:.1f}</td>'
        rows.append(f'<tr><th scope="row">{swatches.get(name, "")}{escape(name)}</th>{cells}{share}</tr>')
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in predicted)
    return (
        '<output class="readout">Point at a cell, or move with the arrow keys, for its counts.</output>'
        '<div class="wide" tabindex="0" role="group" aria-label="confusion matrix"><table class="matrix">'
        f'<thead><tr><td>true \\ predicted</td>{head}<th scope="col"><span>share of pixels</span></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(count: int, total: int, true: str, predicted: str, right: bool) -> str:
    """One cell: its share of the row as text and, in the style, as depth of colour."""
    if not total:
        return f'<td title="{escape(true)}: no pixels"></td>'
    share = count / total
    pixels = f"{count:,} of {total:,} pixels, {100 * share:.2f} %"
    title = f"{true} recognised: {pixels}" if right else f"{true} taken for {predicted}: {pixels}"
    kind = ("right" if right else "wrong") + (" deep" if share > 0.5 else "")
    text = f"{100 * share:.0f}" if share >= 0.005 else ""
    return f'<td class="{kind}" style="--share:{share:.3f}" title="{escape(title)}">{text}</td>'
