"""docs/reliability.md: every fault that it lists has a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| `(tests/\w+\.py)::(\w+)` \|$", PAGE, re.M)


def test_every_fault_of_the_page_has_a_test() -> None:
    assert len({fault for fault, *_ in ROWS}) == len(ROWS) >= 30
    for fault, outcome, file, name in ROWS:
        assert (ROOT / file).is_file(), file
        tests = [node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
        assert name in tests, f"{fault}: {file}::{name}"
        assert outcome


def test_no_row_is_written_in_another_way() -> None:
    section = PAGE.split("## Faults")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    heads = [line for line in rows if line in ("| fault | what one gets | test |", "| --- | --- | --- |")]
    assert len(rows) - len(heads) == len(ROWS)
