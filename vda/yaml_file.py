"""YAML files that people write: plain values only, and small enough to be read by one of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vda.errors import UsageError

MOST_BYTES = 1 << 20
MOST_DEPTH = 20


def read_yaml(path: Path, wanted: str) -> dict[str, Any]:
    """The mapping in a YAML file. wanted: what it is, in prose.

    Raises UsageError naming the file for one that is missing, no text, larger than 1 MiB, no YAML of plain values or no
    mapping; and for what would be read as something else than it says: aliases (which also can grow a few lines into
    gigabytes), nesting deeper than 20, a key that stands twice in a mapping.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path}: wanted {wanted}, found {path.stat().st_size} bytes, of at most {MOST_BYTES}")
        text = path.read_text(encoding="utf-8")
        _check_events(text, path)
        _check_keys(yaml.compose(text, Loader=yaml.SafeLoader), path)
        tree = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"{path}: wanted {wanted}, found no readable file ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: no UTF-8, or a date such as 2001-99-99
        raise UsageError(f"{path}: wanted {wanted}, found no YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: wanted {wanted}, found {type(tree).__name__} instead of a mapping")
    return tree


def _check_events(text: str, path: Path) -> None:
    """Before any tree is built, since building one recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(f"{path}, line {line}: wanted every value written out, found the alias *{event.anchor}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise UsageError(f"{path}, line {line}: wanted at most {MOST_DEPTH} levels, found more")


def _check_keys(node: Any, path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise UsageError(f"{path}, line {key.start_mark.line + 1}: wanted the key {key.value!r} once")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            _check_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, path)


class Section:
    """A mapping of the file; `where` names it. known: its keys, others are refused; None where any may stand."""

    def __init__(self, tree: Any, where: str, known: Sequence[str] | None) -> None:
        if not isinstance(tree, dict):
            raise UsageError(f"{where} wants a mapping, found {shown(tree)}")
        self.tree, self.where = tree, where
        for key in tree:
            if known is not None and key not in known:
                raise UsageError(f"{where}: unknown key {shown(key)}{hint(key, known)}; known are {', '.join(known)}")

    def wrong(self, key: str, wanted: str) -> UsageError:
        found = shown(self.tree[key]) if key in self.tree else "none"
        return UsageError(f"{self.where}: {key} wants {wanted}, found {found}")

    def text(self, key: str, default: str) -> str:
        value = self.tree.get(key, default)
        if not isinstance(value, str) or not value or "\0" in value:
            raise self.wrong(key, "text")
        return value

    def choice(self, key: str, options: Sequence[str]) -> str:
        value = self.tree.get(key, options[0])
        if value not in options:
            raise UsageError(f"{self.wrong(key, 'one of ' + ', '.join(options))}{hint(value, options)}")
        return str(value)

    def number(self, key: str, default: float) -> float:
        value = self.tree.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
            raise self.wrong(key, "a number")
        return float(value)

    def count(self, key: str, default: int) -> int:
        value = self.tree.get(key, default)
        if not whole(value, 1_000_000) or value < 1:
            raise self.wrong(key, "a whole number of at least 1")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.tree.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def section(self, key: str, known: Sequence[str] | None) -> Section:
        return Section(self.tree.get(key, {}), f"{self.where}: {key}", known)

    def sections(self, key: str, known: Sequence[str]) -> list[Section]:
        """The mappings in a list, or the one that stands there alone."""
        value = self.tree[key]
        parts = value if isinstance(value, list) else [value]
        if not parts:
            raise self.wrong(key, "at least one mapping")
        names = [f"{self.where}: {key}" + (f"[{k}]" if len(parts) > 1 else "") for k in range(len(parts))]
        return [Section(part, name, known) for part, name in zip(parts, names, strict=True)]


def shown(value: Any) -> str:
    """A value of the file, short enough for a sentence."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python does not print whole numbers of thousands of digits
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def hint(name: Any, known: Iterable[str]) -> str:
    """The nearest known name, as the end of a sentence."""
    near = difflib.get_close_matches(shown(name).strip("'\""), [*known], n=1)
    return f", perhaps you meant {near[0]}" if near else ""


def whole(value: Any, most: int) -> bool:
    """Whether a value is a whole number of 0 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
