"""A laid-out table as text: Markdown, CSV, LaTeX. Pure functions of a `Grid`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable

from vda.tables.layout import Column, Grid, Line, Number

_WIDE = 8  # columns beyond which a LaTeX table takes the width of a two-column page


def markdown(grid: Grid) -> str:
    """GitHub's Markdown: caption, table, notes. Best of each column in bold; a dash where nothing was run."""
    text = _markdown_text
    head = [*map(text, grid.heads), *(text(_head(column)) for column in grid.columns)]
    bold = _best(grid)
    table = [head]
    for i, line in enumerate(grid.lines):
        numbers = [f"**{cell}**" if (i, j) in bold else cell for j, cell in enumerate(_numbers(grid, line, "±", "-"))]
        table.append([*map(text, _text_cells(line)), *numbers])
    widths = [max(3, *(len(cells[j]) for cells in table)) for j in range(len(head))]
    heads = len(grid.heads)
    rule = ["-" * width if j < heads else "-" * (width - 1) + ":" for j, width in enumerate(widths)]
    aligned = [
        [*map(str.ljust, cells[:heads], widths[:heads]), *map(str.rjust, cells[heads:], widths[heads:])]
        for cells in table
    ]
    aligned.insert(1, rule)
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in aligned)
    return "\n\n".join([f"**{text(grid.caption)}**", body, *map(text, grid.notes)]) + "\n"


def to_csv(grid: Grid) -> str:
    """CSV (RFC 4180, lines end in a line feed): one header, one record per line of the table.

    A number of ours takes two fields, mean and "std"; a field without a number is empty. "numbers" tells whose they
    are; what stands beside them (data set, classes, ...) has fields of its own. No bold, no notes.
    """
    numbers = [name for column in grid.columns for name in _csv_names(column)]
    beside = ["data set", "classes", "height", "width", "labelled frames", "seeds", "checkpoint rule"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*grid.heads, "numbers", *numbers, *beside])
    for line in grid.lines:
        cells: list[str] = []
        for column, value in zip(grid.columns, line.values, strict=True):
            mean = "" if value is None else f"{value.mean:.{grid.decimals}f}"
            std = "" if value is None or value.std is None else f"{value.std:.{grid.decimals}f}"
            cells += [mean] if column.paper else [mean, std]
        writer.writerow([*line.text, line.source, *cells, *_csv_beside(line)])
    return out.getvalue()


def latex(grid: Grid) -> str:
    """A LaTeX table with booktabs; its first line names the packages it needs. Best of each column in bold."""
    text = _latex_text
    ticks = any("✓" in cell for line in grid.lines for cell in line.text)
    packages = ["booktabs", "graphicx", *(["amssymb"] if ticks else [])]
    bold = _best(grid)
    rows = [" & ".join([*map(text, grid.heads), *(text(_head(column)) for column in grid.columns)]) + r" \\"]
    rows.append(r"\midrule")
    for i, line in enumerate(grid.lines):
        cells = [text(cell) for cell in _text_cells(line)]
        for j, cell in enumerate(_numbers(grid, line, r"$\pm$", "--")):
            cells.append(rf"\textbf{{{cell}}}" if (i, j) in bold else cell)
        if cells[0][:1] in ("[", "*"):  # after \\ these would be its arguments
            cells[0] = "{}" + cells[0]
        rows.append(" & ".join(cells) + r" \\")
    environment = "table*" if len(grid.heads) + len(grid.columns) > _WIDE else "table"
    return "\n".join(
        [
            rf"% \usepackage{{{','.join(packages)}}}",
            rf"\begin{{{environment}}}",
            r"\centering",
            rf"\caption{{{text(grid.caption)}}}",
            rf"\label{{tab:{grid.name}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",  # shrinks only what is too wide
            rf"\begin{{tabular}}{{{'l' * len(grid.heads)}{'r' * len(grid.columns)}}}",
            r"\toprule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            "",
            r"\smallskip",
            r"\raggedright\footnotesize",
            *(text(note) for note in grid.notes),
            rf"\end{{{environment}}}",
            "",
        ]
    )


# suffix of the file -> writer
FORMATS: dict[str, Callable[[Grid], str]] = {"md": markdown, "csv": to_csv, "tex": latex}


def _head(column: Column) -> str:
    return f"{column.name} (paper)" if column.paper else column.name


def _text_cells(line: Line) -> tuple[str, ...]:
    return line.text if line.source == "ours" else (f"{line.text[0]} ({line.source})", *line.text[1:])


def _numbers(grid: Grid, line: Line, plus_minus: str, dash: str) -> list[str]:
    return [
        _number(value, column.paper or line.source != "ours", grid.decimals, plus_minus, dash)
        for column, value in zip(grid.columns, line.values, strict=True)
    ]


def _number(value: Number | None, from_paper: bool, decimals: int, plus_minus: str, dash: str) -> str:
    if value is None:  # a dash says "not run"; what the paper does not print stays blank
        return "" if from_paper else dash
    spread = "" if value.std is None else f" {plus_minus} {value.std:.{decimals}f}"
    return f"{value.mean:.{decimals}f}{spread}"


def _best(grid: Grid) -> set[tuple[int, int]]:
    """(line, column) of the greatest printed mean: of our numbers and of the paper's apart, without the ceiling.

    Equal printed numbers are all best; a column in which all are equal has no best.
    """
    best: set[tuple[int, int]] = set()
    for j, column in enumerate(grid.columns):
        groups: dict[bool, dict[int, float]] = {False: {}, True: {}}
        for i, line in enumerate(grid.lines):
            value = line.values[j]
            if value is not None and not line.ceiling:
                from_paper = column.paper or line.source != "ours"
                groups[from_paper][i] = float(f"{value.mean:.{grid.decimals}f}")
        for means in groups.values():
            if len(set(means.values())) > 1:
                best |= {(i, j) for i, mean in means.items() if mean == max(means.values())}
    return best


def _csv_names(column: Column) -> list[str]:
    return [_head(column)] if column.paper else [column.name, f"{column.name} std"]


def _csv_beside(line: Line) -> list[str]:
    beside = line.beside
    if beside is None:
        return [""] * 7
    height, width = beside.size or ("", "")
    frames = "" if beside.frames is None else beside.frames
    values = (beside.dataset, ", ".join(beside.classes), height, width, frames, ", ".join(beside.seeds), beside.rule)
    return [str(value) for value in values]


def _markdown_text(text: str) -> str:
    return re.sub(r"[\\`*_\[\]<>|~$&]", r"\\\g<0>", " ".join(text.split()))


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: rf"\{sign}" for sign in "{}$&#_%"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "✓": r"$\checkmark$",
}


def _latex_text(text: str) -> str:
    escaped = "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))
    return escaped.replace(r"VPQ\textasciicircum{}s", "VPQ$^s$")  # as the paper sets it
