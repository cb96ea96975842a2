"""Patterns of file names: `*` stands for any text in a name, `**` for any folders.

The text that the wildcards stand for is what tells files apart, and what a frame and its label have in common:
`sim/*/rgb/*.jpg` and `sim/*/mask/*_label.png` pair `sim/a/rgb/07.jpg` with `sim/a/mask/07_label.png`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vda.errors import UsageError

MOST_WILDCARDS = 8
_WILDCARD = re.compile(r"(?:(?<=/)|^)\*\*/|\*\*|\*")
Wildcards = tuple[str, ...]  # what each wildcard of a pattern stands for


@dataclass(frozen=True)
class Pattern:
    """`text` below some folder; `/` separates folders. Hidden files are not meant by a wildcard."""

    text: str

    def __post_init__(self) -> None:
        found = len(_WILDCARD.findall(self.text))
        if not self.text or "\0" in self.text or "\\" in self.text or found > MOST_WILDCARDS:
            raise UsageError(
                f"pattern {self.text[:80]!r}: wanted names and folders separated by /, with at most {MOST_WILDCARDS} "
                f"wildcards * or **"
            )

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        parts, end = [], 0
        for match in _WILDCARD.finditer(self.text):
            parts.append(re.escape(self.text[end : match.start()]))
            visible = r"(?!\.)" if match.start() == 0 or self.text[match.start() - 1] == "/" else ""
            anything = {"*": "([^/]*)", "**": "(.*)", "**/": "(?:(.*)/)?"}[match[0]]
            parts.append(visible + anything)
            end = match.end()
        return re.compile("".join([*parts, re.escape(self.text[end:])]), re.S)

    @property
    def wildcards(self) -> int:
        return self._regex.groups

    def match(self, name: str) -> tuple[re.Match[str], Wildcards] | None:
        """The match of a whole name, and what the wildcards stand for."""
        match = self._regex.fullmatch(name)
        return None if match is None else (match, tuple(text or "" for text in match.groups()))

    def among(self, names: Iterable[str]) -> dict[Wildcards, str]:
        """The names that fit, by what the wildcards stand for, in alphabetical order."""
        found = ((match[1], name) for name in sorted(names) if (match := self.match(name)) is not None)
        return dict(found)

    def files(self, folder: Path) -> dict[Wildcards, str]:
        """The files below `folder` that fit, as `among`."""
        literal = "*".join(glob.escape(part) for part in self.text.split("*"))
        names = glob.glob(literal, root_dir=folder, recursive=True)
        return self.among(name for name in names if (folder / name).is_file())
