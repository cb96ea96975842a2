"""`python -m bench`: run the benchmarks, or show the results of an earlier run, as one Markdown table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from . import table

EXAMPLES = """\
examples:
  python -m bench                                  all rows; about six minutes on two cores
  python -m bench -k correlation                   one operator (or shape, or row: pytest's -k)
  python -m bench --check                          no timing: check that all rows compute the same
  python -m bench --markdown docs/benchmarks.md    renew the table there
  python -m bench --show results.json --markdown docs/benchmarks.md

Everything else is passed on to pytest: `python -m bench --benchmark-save=before`, later
`--benchmark-compare`; `pytest bench` takes the options above, except --show, too.
"""


def main(arguments: list[str]) -> int:
    """Exit status: 0, or what pytest says (1: a row failed)."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-k", metavar="EXPRESSION", help="only the rows whose name matches, as in pytest")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--threads", type=int, help="CPU threads for every row")
    parser.add_argument("--full", action="store_true", help="the paper's full shapes on a CPU too")
    parser.add_argument("--check", action="store_true", help="small shapes, no timing: check that all rows agree")
    parser.add_argument("--list", action="store_true", help="list the rows, measure nothing")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show a JSON file of --json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table between FILE's marker lines too")
    given, others = parser.parse_known_args(arguments)
    if given.show is not None:
        return _show(given.show, given.markdown)
    passed = [str(Path(__file__).parent), "--benchmark-quiet", "--show-capture=no"]
    passed += ["--benchmark-disable"] if given.check or given.list else ["--benchmark-only"]
    for name in ("device", "threads", "json", "markdown"):
        if (value := getattr(given, name)) is not None:
            passed.append(f"--{name}={value}")
    passed += [f"--{name}" for name in ("full", "check", "list") if getattr(given, name)]
    passed += ["-k", given.k] if given.k else []
    return int(pytest.main(passed + others))


def _show(file: Path, target: Path | None) -> int:
    try:
        results = table.Results.from_json(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"--show: wanted a file of --json or bench/gpu.py, {file} is none ({error})", file=sys.stderr)
        return 2
    text = table.markdown(results)
    print(text, end="")
    if target is not None:
        table.rewrite(target, results.machine["device"], text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
