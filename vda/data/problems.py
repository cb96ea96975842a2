"""What is wrong with a data set: the first problem as an error, or all of them as a list.

Opening a data set for training stops at the first problem. `vda data check` opens it inside `collected()`, where the
checks that go through many files note what they find and go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from vda.errors import UsageError

Kind = Literal["layout", "name", "pair", "image", "label", "size", "values", "classes", "changed"]

REMEDIES: dict[Kind, str] = {
    "layout": "compare the folder with what docs/data.md says of this data set, or correct the description",
    "name": "rename the file or move it away; in a description, narrow the pattern",
    "pair": "bring the missing file, or take its partner away; a description may say `sparse: true`",
    "image": "bring the file again from where it came; it is missing, damaged, or no picture of 8 bits a channel",
    "label": "bring the file again, or write it as a PNG of the wanted kind; a description says it in `encoding: by`",
    "size": "make frame and label of one size, labels by the nearest pixel",
    "values": "name the values in the description, `encoding: values` or `ignore`; or repair the label",
    "classes": "give source and target one class list",
    "changed": "bring the file again, since what the disk holds is not what was written",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: a sentence that names the file, and the key of its remedy."""

    kind: Kind
    message: str


_found: ContextVar[list[Problem] | None] = ContextVar("problems", default=None)


@contextmanager
def collected() -> Iterator[list[Problem]]:
    """Inside, problems are appended to this list instead of ending what is being done."""
    problems: list[Problem] = []
    token = _found.set(problems)
    try:
        yield problems
    finally:
        _found.reset(token)


@contextmanager
def problem(kind: Kind) -> Iterator[None]:
    """A UsageError raised inside is a problem of this kind: it passes through, or is noted inside `collected()`."""
    try:
        yield
    except UsageError as error:
        found = _found.get()
        if found is None:
            raise
        found.append(Problem(kind, str(error)))
