"""What a description says of its classes and of the labels that stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from vda.data.class_maps import CLASS_MAPS, COLOURS, Coding, class_table, made_up_colour, maps_of
from vda.data.clip import IGNORE
from vda.data.frame_files import LabelFormat
from vda.data.labels import (
    UNKNOWN,
    IdTable,
    check_colour_label_header,
    check_label_header,
    check_palette_label_header,
    id_table,
    read_colour_label,
    read_label,
)
from vda.errors import UsageError
from vda.yaml_file import Section, hint, shown, whole

ENCODINGS = ("index", "palette", "colour")
MOST_CLASSES = 254
RGB = tuple[int, int, int]


def classes_of(top: Section) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Names, and [K, 3] RGB, that of the file, of Cityscapes or one made up."""
    value = top.tree.get("classes")
    if isinstance(value, str):
        if value not in CLASS_MAPS:
            lists = f"a list of names or one of {', '.join(CLASS_MAPS)}"
            raise UsageError(f"{top.wrong('classes', lists)}{hint(value, CLASS_MAPS)}")
        value = list(CLASS_MAPS[value])
    names = list(value) if isinstance(value, list | dict) else []
    if not 0 < len(names) <= MOST_CLASSES or not all(isinstance(n, str) and n.strip() for n in names):
        raise top.wrong("classes", f"1 to {MOST_CLASSES} names (in quotes where YAML takes them for something else)")
    if len({*names}) < len(names):
        raise top.wrong("classes", "every name once")
    colours: list[RGB] = []
    for k, name in enumerate(names):
        given = value[name] if isinstance(value, dict) else None
        if given is not None and not _is_colour(given):
            raise UsageError(f"{top.where}: classes: {name} wants a colour [R, G, B] of 0 to 255, found {shown(given)}")
        colours.append(tuple(given) if given is not None else COLOURS.get(name, made_up_colour(k)))
    return tuple(names), np.array(colours, np.uint8)


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(whole(part, 255) for part in value)


def encoding_of(section: Section, top: Section, classes: Sequence[str], palette: NDArray[np.uint8]) -> LabelFormat:
    """How label files are read. section: `encoding`; top: the whole description."""
    by = section.choice("by", ENCODINGS)
    others = IGNORE if section.choice("others", ("refuse", "ignore")) == "ignore" else None
    ignored = dict.fromkeys(_listed(section, "ignore", by), IGNORE)
    if by == "colour":
        ids = _values(section, classes, by) or _own_colours(section, top, palette)
        read = partial(read_colour_label, table=ids | _disjoint(section, ids, ignored), other=others)
        return LabelFormat(check_colour_label_header, read, id_table({k: k for k in (*range(len(classes)), IGNORE)}))
    if isinstance(section.tree.get("values"), str):
        table = _named_table(section, top)
        table[[*ignored]] = IGNORE
    else:
        ids = _values(section, classes, by) or {k: k for k in range(len(classes))}
        if "ignore" not in section.tree and IGNORE not in ids:
            ignored = {IGNORE: IGNORE}
        table = id_table(ids | _disjoint(section, ids, ignored))
    if others is not None:
        table[table == UNKNOWN] = others
    if by == "palette":
        return LabelFormat(check_palette_label_header, partial(read_label, palette=True), table)
    return LabelFormat(check_label_header, read_label, table)


def _own_colours(section: Section, top: Section, palette: NDArray[np.uint8]) -> dict[Any, int]:
    """The colours of `classes`, where the file gives them all."""
    given = top.tree["classes"]
    ids = {tuple(colour): k for k, colour in enumerate(palette.tolist())}
    if not isinstance(given, dict) or None in given.values():
        raise section.wrong("values", "the colours of every class, or a colour for every one of `classes`")
    if len(ids) < len(palette):
        raise UsageError(f"{top.where}: classes wants a colour of its own for each, since labels are encoded by colour")
    return ids


def _named_table(section: Section, top: Section) -> IdTable:
    """`values: viper` and the like: the ids of a data set that vda knows, for a class list that it knows."""
    coding: Coding | None = next((c for c in get_args(Coding) if c == section.tree["values"]), None)
    if coding is None:
        raise section.wrong("values", f"a mapping from classes to values, or one of {', '.join(get_args(Coding))}")
    classes, known = top.tree["classes"], maps_of(coding)
    if not isinstance(classes, str) or classes not in known:
        raise UsageError(
            f"{section.where}: values {coding} wants `classes` to be one of {', '.join(known)}, found {shown(classes)}"
        )
    return class_table(classes, coding)


def _values(section: Section, classes: Sequence[str], by: str) -> dict[Any, int] | None:
    """Index or colour -> class, as `values` says; None where it says nothing."""
    if "values" not in section.tree:
        return None
    values = section.section("values", classes)
    ids: dict[Any, int] = {}
    for name in values.tree:
        for key in _listed(values, name, by):
            if key in ids:
                raise UsageError(f"{values.where}: wanted {shown(key)} in one class, found it in two")
            ids[key] = classes.index(name)
    if not ids:
        raise section.wrong("values", "the values of at least one class")
    return ids


def _listed(section: Section, key: str, by: str) -> list[Any]:
    """One value or several: indices, or colours as tuples."""
    value = section.tree.get(key, [])
    if by == "colour":
        many = [value] if _is_colour(value) else value
        if isinstance(many, list) and all(_is_colour(colour) for colour in many):
            return [tuple(colour) for colour in many]
        raise section.wrong(key, "a colour [R, G, B] of 0 to 255, or a list of such")
    many = value if isinstance(value, list) else [value]
    if all(whole(index, 255) for index in many):
        return many
    raise section.wrong(key, "a whole number of 0 to 255, or a list of such")


def _disjoint(section: Section, ids: Mapping[Any, int], ignored: dict[Any, int]) -> dict[Any, int]:
    both = [key for key in ignored if key in ids]
    if both:
        raise UsageError(f"{section.where}: ignore wants values of no class, found {shown(both[0])}")
    return ignored
