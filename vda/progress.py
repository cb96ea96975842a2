"""Progress bars on a terminal, plain lines every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

from vda import distributed

SECONDS_BETWEEN_LINES = 20.0


class _Lines:
    """A stream on which tqdm's redrawing becomes lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        return self.stream.write(line + "\n") if line else 0

    def flush(self) -> None:
        self.stream.flush()


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """`tqdm(iterable, **options)` to stderr; one line every 20 seconds and one at the end where that is a log file.

    Of several processes the first one has it."""
    if not distributed.is_first():
        return tqdm(iterable, disable=True, **options)
    if sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, **options)
    options |= {"mininterval": SECONDS_BETWEEN_LINES, "maxinterval": SECONDS_BETWEEN_LINES, "miniters": 1}
    return tqdm(iterable, file=_Lines(sys.stderr), delay=1e-9, ascii=True, ncols=100, **options)
