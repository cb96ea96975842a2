"""Learning curves as small inline SVG, from the log of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np

WIDTH, HEIGHT = 300, 120
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 6, 8, 18  # margins, pixels
_BINS = 120
_NOT_LOSSES = ("phase", "iteration", "lr", "data_seconds", "seconds")

Curve = list[tuple[int, float]]  # (iteration, value), iterations rising


def curves(log: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Phase -> loss -> curve, from entries {"phase", "iteration", <loss>: value, ...}.

    Where a resumed run logged an iteration again, its last value counts. Values that are no finite number are
    left out of the curve.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for entry in log:
        phase = found.setdefault(str(entry["phase"]), {})
        for name, value in entry.items():
            if name not in _NOT_LOSSES and isinstance(value, int | float) and math.isfinite(value):
                phase.setdefault(name, {})[int(entry["iteration"])] = float(value)
    return {phase: {name: sorted(values.items()) for name, values in losses.items()} for phase, losses in found.items()}


def curve_svg(name: str, curve: Curve) -> str:
    """One curve with its range: a line through the means of up to 120 bins, a band from their least to
    greatest."""
    steps = np.array([step for step, _ in curve], np.float64)
    values = np.array([value for _, value in curve], np.float64)
    groups = [group for group in np.array_split(np.arange(len(curve)), min(_BINS, len(curve))) if group.size]
    at, mean, low, high = (
        np.array([reduce(data[group]) for group in groups])
        for reduce, data in ((np.mean, steps), (np.mean, values), (np.min, values), (np.max, values))
    )
    bottom, top = _range(values)
    x = _LEFT + (at - steps[0]) / max(steps[-1] - steps[0], 1) * (WIDTH - _LEFT - _RIGHT)

    def y(value: Any) -> Any:
        share = (np.clip(value, bottom, top) - bottom) / (top - bottom)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    line = _points(x, y(mean))
    band = f"{_points(x, y(high))} {_points(x[::-1], y(low)[::-1])}"
    ticks = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        f'<text x="{_LEFT - 5}" y="{y(value) + 3:.1f}" text-anchor="end">{value:.3g}</text>'
        for value in (bottom, top)
    )
    return (
        f'<figure class="curve"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{ticks}'
        f'<polygon class="band" points="{band}"/><polyline class="line" points="{line}"/>'
        f'<text x="{_LEFT}" y="{HEIGHT - 4}">{steps[0]:.0f}</text>'
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{steps[-1]:.0f}</text></svg>'
        f"<figcaption>{escape(name)} <b>{np.mean(values[-max(1, len(values) // 10) :]):.4g}</b></figcaption></figure>"
    )


def _range(values: np.ndarray) -> tuple[float, float]:
    """Limits of the vertical axis: the data's, but a few wild first steps may not flatten all the rest."""
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
