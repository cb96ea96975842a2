"""The README and the other pages tell the truth, and files stay small enough to read."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from vda.cli import parse, scenario_of
from vda.config import Config, from_dict
from vda.methods import METHODS
from vda.policies import POLICIES
from vda.recipes import RECIPES, SCENARIOS
from vda.tables import TABLES
from vda.tables.command import parse as parse_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
METHODS_PAGE = (ROOT / "docs/methods.md").read_text()
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def test_readme_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def commands() -> list[list[str]]:
    """Arguments of every `python train.py` of the pages; "..." stands for what a command before it has."""
    found: dict[tuple[str, ...], None] = {}
    for text in PAGES.values():
        for line in re.findall(r"^ {4}python train\.py (.+)$", text.replace("\\\n", " "), re.M):
            words = [word for word in shlex.split(line, comments=True) if word != "..."]
            if "--help" not in words and not words[0].endswith(".yaml"):
                found[tuple("0" if word == "N" else word for word in words)] = None
    return [list(words) for words in found]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_of_the_pages_parse(words: list[str]) -> None:
    if words[0] == "table":
        command, scenario = parse_table(words[1:])
        assert (command.table, scenario) == (words[1], scenario_of(words)[0])
    elif words[0] == "recipe":
        assert parse(words, "").methods.keys() == RECIPES[words[1]].methods(SCENARIOS[scenario_of(words)[0]]).keys()
    else:
        assert parse(words, "").recipe == words[0]


def test_pages_have_commands_of_every_kind() -> None:
    assert {"recipe", "table", "camvid", "embedded", "flow"} <= {words[0] for words in commands()}


@pytest.mark.parametrize("page", PAGES)
def test_settings_of_the_pages_are_known(page: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGES[page], re.S)
    assert blocks or page not in ("README.md", "methods.md")
    for block in blocks:
        assert from_dict(yaml.safe_load(block), Config(), page).methods


def test_readme_names_files_that_exist() -> None:
    named = re.findall(r"`((?:vda|csrc|docs|tests|bench)/[\w/.*]+)`", README + METHODS_PAGE)
    assert len(named) > 10
    for path in named:
        assert list(ROOT.glob(path)), path


def test_methods_page_has_every_method_policy_and_recipe() -> None:
    titles = {name for title in re.findall(r"^### (.+)$", METHODS_PAGE, re.M) for name in title.split(", ")}
    assert titles == set(METHODS)
    rows = re.findall(r"^\| `([\w-]+)` \| [^|]+ \| ([^|]+) \|", METHODS_PAGE, re.M)
    assert set(POLICIES) | set(RECIPES) <= {name for name, _ in rows}
    printed = {name: where for name, where in rows if name in RECIPES}
    for name, where in printed.items():
        tables = {n for n, table in TABLES.items() if any(row.recipe == name for row in table.rows)}
        assert _tables(where) == tables, name


def _tables(where: str) -> set[str]:
    """The numbers of the tables in a cell such as "1, 2, 8 to 11: Ours; the last row of 4, 5 and 6"."""
    plain = re.sub(r"\(\d\)", "", where)  # "3: (2)" is row (2) of Table 3
    spans = [range(int(a), int(b) + 1) for a, b in re.findall(r"(\d+) to (\d+)", plain)]
    return {*re.findall(r"\d+", plain), *(str(n) for span in spans for n in span)}


def test_files_stay_readable() -> None:
    files = [p for d in ("csrc", "vda", "tests", "bench") for p in (ROOT / d).rglob("*.*")]
    sources = [p for p in files if p.suffix in (".py", ".h", ".cuh", ".cpp", ".cu")] + list(ROOT.glob("*.py"))
    long = {str(p.relative_to(ROOT)): n for p in sources if (n := len(p.read_text().splitlines())) > 420}
    assert not long, f"more than 420 lines: {long}"
