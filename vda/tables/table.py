"""A table of the paper: its rows in order, the published numbers, and the recipe that reproduces each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One row as printed; numbers in percent, () or None where the paper prints none.

    label: the paper's name of the row without its citation, unique within the table. recipe: the name of the
    recipe that reproduces the row (in Table 7 the policy of the pseudo labels); "" for a row that only stands
    in the literature. tag: the column after the label where there is one (AT, ST, A+S, - by the kind of
    adaptation; in Table 5 the second phase). iou, vpq_per_class: one number per class of the table. ticks: one
    per column of ticks. p_miou: one number per proportion of Table 7.
    """

    label: str
    recipe: str
    tag: str | None = None
    iou: tuple[float, ...] = ()
    miou: float | None = None
    vpq_per_class: tuple[float, ...] = ()
    vpq: float | None = None
    ticks: tuple[bool, ...] = ()
    p_miou: tuple[float, ...] = ()

    @property
    def text(self) -> tuple[str, ...]:
        """The cells before the numbers: label, tag where there is one, ticks."""
        return (self.label, *(() if self.tag is None else (self.tag,)), *("✓" if tick else "" for tick in self.ticks))


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    scenario: what the paper's numbers were measured on. classes: of the scenario, in the paper's order, also
    where the table has no column per class. per_class: which number has a column per class, by its key in the
    scores; "" where none has. heads: over the cells of `Row.text`. proportions: of pseudo labels, Table 7
    alone. remarks: what a reader of the paper's numbers has to know.
    """

    number: str
    title: str
    scenario: str
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    heads: tuple[str, ...] = ("Method", "Arch.")
    per_class: Literal["iou", "vpq_per_class", ""] = ""
    proportions: tuple[float, ...] = ()
    decimals: int = 2
    remarks: tuple[str, ...] = ()
