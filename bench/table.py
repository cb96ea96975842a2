"""Results as a record, as JSON, and as the one Markdown table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import machine

HEAD = ("op", "shape", "row", "time", "rate", "of ceiling", "× torch")
BESIDE_HEAD = ("op", "shape", "row", "time per frame", "frames/s", "beside", "its time per frame", "share", "growth")
NOT_MEASURED = "not measured"
AGREES = "agrees"  # the time of a row that was only checked
SPREAD = 0.1  # an interquartile range above this part of the median is shown


@dataclass
class Row:
    """One line of the table. Times are seconds."""

    op: str
    shape: str
    kind: str  # of element, float32 unless there are several
    row: str  # "ours", "torch", ...
    gflop: float
    mbyte: float
    gemm: str  # see work.Work
    median: float | None = None  # None: not timed
    best: float | None = None
    spread: float | None = None  # interquartile range over median
    rounds: int = 0
    bound: str = ""  # the ceiling that applies: a gemm or copy
    fraction: float | None = None  # of that ceiling
    times_torch: float | None = None
    note: str = ""  # why there is no time, or what its result lacks
    frames: int = 0  # of a call, where the row is compared with what it runs beside; then it has no ceiling
    beside: str = ""  # what that is
    beside_frame: float | None = None  # its median time per frame
    share: float | None = None  # of that time, frame by frame: the median over the rounds
    growth: int | None = None  # bytes that the peak of twice the work lies above its own

    @property
    def case(self) -> tuple[str, str, str]:
        return self.op, self.shape, self.kind


@dataclass
class Results:
    """A whole run."""

    machine: dict[str, Any]
    ceilings: dict[str, float] = field(default_factory=dict)  # FLOP/s and bytes/s
    rows: list[Row] = field(default_factory=list)

    def finish(self) -> None:
        """Fill in what needs all rows: fractions of the best ceilings, ratios to the composition."""
        by_case = {row.case: row.median for row in self.rows if row.row == "torch" and row.median is not None}
        for row in self.rows:
            if row.median is None or row.frames:
                continue
            if self.ceilings:
                least = {"copy": row.mbyte * 1e6 / self.ceilings["copy"]}  # seconds, if the ceiling were reached
                if row.gemm in self.ceilings:
                    least[row.gemm] = row.gflop * 1e9 / self.ceilings[row.gemm]
                row.bound = max(least, key=least.__getitem__)
                row.fraction = least[row.bound] / row.median
            if (composition := by_case.get(row.case)) is not None:
                row.times_torch = composition / row.median

    def to_json(self) -> dict[str, Any]:
        """What `--json` writes."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Results:
        """The reverse; takes bench/gpu.py's file too."""
        data = data.get("bench", data)
        return Results(data["machine"], data["ceilings"], [Row(**row) for row in data["rows"]])


def markdown(results: Results) -> str:
    """The machine, its ceilings, the table, a second one of the rows that are compared with what they run beside, and
    a list of what was not measured and why."""
    lines = [machine.line(results.machine)]
    if results.ceilings:
        lines.append(f"Ceilings: {ceilings(results.ceilings)}.")
    alone, beside = ([row for row in results.rows if bool(row.frames) == both] for both in (False, True))
    for head, cells in ((HEAD, [_cells(row) for row in alone]), (BESIDE_HEAD, [_beside_cells(row) for row in beside])):
        lines += ["", *_table(head, cells)] if cells else []
    reasons: dict[str, list[str]] = {}
    for row in results.rows:
        if row.median is None and row.note not in ("", AGREES):
            reasons.setdefault(row.note, []).append(f"{row.op} {row.row}")
    lines += ["", *(f"- {', '.join(dict.fromkeys(names))}: {reason}." for reason, names in reasons.items())]
    return "\n".join(lines).rstrip() + "\n"


def ceilings(best: dict[str, float]) -> str:
    """E.g. "sgemm 410 GFLOP/s, copy 21 GB/s (bytes read plus bytes written)"."""
    gemms = [f"{name} {_rate(rate, 'FLOP')}" for name, rate in best.items() if name != "copy"]
    return ", ".join([*gemms, f"copy {_rate(best['copy'], 'B')} (bytes read plus bytes written)"])


def _start(row: Row) -> tuple[str, str, str]:
    return row.op, f"{row.shape} {row.kind}".rstrip(), f"**{row.row}**" if row.row == "ours" else row.row


def _cells(row: Row) -> tuple[str, ...]:
    start = _start(row)
    if row.median is None:
        return *start, row.note if row.note == AGREES else NOT_MEASURED, "", "", ""
    time = duration(row.median) + _noise(row)
    memory = row.bound in ("", "copy")
    rate = _rate((row.mbyte * 1e6 if memory else row.gflop * 1e9) / row.median, "B" if memory else "FLOP")
    fraction = "" if row.fraction is None else f"{_percent(row.fraction)} {row.bound}"
    ratio = "" if row.times_torch is None else _three(row.times_torch)
    return *start, time, rate, fraction, ratio


def _beside_cells(row: Row) -> tuple[str, ...]:
    start = _start(row)
    if row.median is None or row.beside_frame is None or row.share is None:
        return *start, row.note if row.note == AGREES else NOT_MEASURED, "", row.beside, "", "", ""
    frame = row.median / row.frames
    time, growth = duration(frame) + _noise(row), "" if row.growth is None else f"{max(0, row.growth) / 1e6:.1f} MB"
    return *start, time, _three(1 / frame), row.beside, duration(row.beside_frame), _percent(row.share), growth


def _noise(row: Row) -> str:
    return f" (±{50 * row.spread:.0f} %)" if row.spread is not None and row.spread > SPREAD else ""


def _table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
    rule = ["-" * w if i < 3 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return [_line(line, widths) for line in (head, rule, *cells)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "| " + " | ".join(padded) + " |"


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{_three(seconds / scale)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _rate(per_second: float, what: str) -> str:
    scale, prefix = (1e12, "T") if per_second >= 1e12 else (1e9, "G")
    return f"{_three(per_second / scale)} {prefix}{what}/s"


def _three(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.1 else f"{100 * part:.2g} %"


# ---- files ----


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Indented, with a final newline."""
    write(path, json.dumps(data, indent=1) + "\n")


def rewrite(path: Path, device: str, table: str) -> None:
    """Put the table between the lines `<!-- bench: DEVICE -->` and `<!-- end -->` of a Markdown file.

    Raises:
        ValueError: the file has no such pair of lines.
    """
    text = path.read_text() if path.exists() else ""
    begin = f"<!-- bench: {device} -->\n"
    pattern = re.compile(re.escape(begin) + r".*?(?=^<!-- end -->$)", re.S | re.M)
    if not pattern.search(text):
        raise ValueError(f"{path}: wanted the lines {begin.strip()} and <!-- end -->, found none")
    write(path, pattern.sub(lambda _: f"{begin}\n{table}\n", text, count=1))
