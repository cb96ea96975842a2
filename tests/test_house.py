"""The README tells the truth, and files stay small enough to read."""

import re
import shlex
from pathlib import Path

import pytest

from vda.cli import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_readme_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def commands() -> list[str]:
    lines = re.findall(r"^ {4}python train\.py (.+)$", README, re.M)
    return [
        line
        for line in (re.split(r"\s{2,}", line)[0] for line in lines)
        if "--help" not in line and ".yaml" not in line
    ]


@pytest.mark.parametrize("line", commands())
def test_readme_commands_parse(line: str) -> None:
    assert parse(shlex.split(line), "").recipe == line.split()[0]


def test_readme_names_files_that_exist() -> None:
    named = re.findall(r"`((?:vda|csrc|docs|tests|bench)/[\w/.*]+)`", README)
    assert len(named) > 10
    for path in named:
        assert list(ROOT.glob(path)), path


def test_files_stay_readable() -> None:
    files = [p for d in ("csrc", "vda", "tests", "bench") for p in (ROOT / d).rglob("*.*")]
    sources = [p for p in files if p.suffix in (".py", ".h", ".cuh", ".cpp", ".cu")] + list(ROOT.glob("*.py"))
    long = {str(p.relative_to(ROOT)): n for p in sources if (n := len(p.read_text().splitlines())) > 420}
    assert not long, f"more than 420 lines: {long}"
