"""YAML files that mean harm, or that are none: one sentence with the file's name, in no time and no memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from vda.config import Config, load_yaml
from vda.errors import UsageError
from vda.yaml_file import read_yaml

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"line 2: wanted every value written out, found the alias \*a"),
        ("[" * 2000, r"line 1: wanted at most 20 levels, found more"),
        ("a: " + "{a: " * 30 + "1" + "}" * 30, r"wanted at most 20 levels"),
        ("a: 1\nb: 2\na: 3", r"line 3: wanted the key 'a' once"),
        ("x: {b: 2, b: 3}", r"wanted the key 'b' once"),
        ("!!python/object/apply:os.system [ls]", "found no YAML"),
        ("a: 2001-99-99", "found no YAML"),
        ("a: [", "found no YAML"),
        ("- a", "found list instead of a mapping"),
        ("", "found NoneType instead of a mapping"),
        ("a: " + "9" * 5000, "found no YAML"),
        ("? [1, 2]\n: x", "found no YAML"),
        ("a: \x00", "found no YAML"),
        ("a: '" + "x" * (1 << 20) + "'", r"found 1048581 bytes, of at most 1048576"),
    ],
)
def test_hostile_yaml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    for read in (lambda: read_yaml(path, "settings"), lambda: load_yaml(path, Config())):
        with pytest.raises(UsageError, match=message) as caught:
            read()
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 700


def test_yaml_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    for path in (tmp_path / "x.yaml", tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="wanted settings, found no"):
            read_yaml(path, "settings")
