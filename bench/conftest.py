"""Options, collection and the table at the end of `pytest bench`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import machine, table, timing
from bench.ceilings import Ceilings
from bench.harness import ONLY_ON, Bench

RESULTS = pytest.StashKey[table.Results]()
CEILINGS = pytest.StashKey[Ceilings]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench", "benchmarks of vda")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    group.addoption("--threads", type=int, help="CPU threads, the same for every row; default torch's own number")
    group.addoption("--full", action="store_true", help="the paper's full shapes on a CPU too")
    group.addoption("--check", action="store_true", help="small shapes, no timing: only check that all rows agree")
    group.addoption("--list", action="store_true", help="list the rows, measure nothing")
    group.addoption("--json", type=Path, metavar="FILE", help="write the results as JSON too")
    group.addoption("--markdown", type=Path, metavar="FILE", help="put the table between FILE's marker lines too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: only on a GPU or with --full")
    config.addinivalue_line("markers", "gpu_only: only on a GPU")
    config.addinivalue_line("markers", "cpu_only: only where the device is the CPU")
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:torch")
    option = config.getoption
    if option("threads"):
        torch.set_num_threads(option("threads"))
    name = option("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not (torch.cuda.is_available() or option("list")):
        raise pytest.UsageError("--device cuda: torch finds no GPU")
    device = torch.device(name)
    config.stash[CEILINGS] = Ceilings(device)
    config.stash[RESULTS] = table.Results(machine.describe(device))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """bench_<op>.py is a test file here, and only here: plain `pytest` never times anything."""
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):  # named files pytest takes itself
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what does not exist on this device; time with CUDA events on a GPU."""
    device = config.stash[CEILINGS].device.type
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        if not item.path.match("bench_*.py"):
            kept.append(item)
            continue
        row = item.callspec.params["row"]  # type: ignore[attr-defined]
        absent = ONLY_ON.get(row, device) != device
        absent = absent or (device != "cpu" and item.get_closest_marker("cpu_only") is not None)
        if device == "cpu":
            large = item.get_closest_marker("large") and not config.getoption("full")
            absent = absent or bool(large) or item.get_closest_marker("gpu_only") is not None
        (left_out if absent else kept).append(item)
        if device == "cuda":
            item.add_marker(pytest.mark.benchmark(timer=timing.CudaStamp))
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def bench(request: pytest.FixtureRequest, benchmark: Any, row: str) -> Iterator[Bench]:
    torch.manual_seed(0)
    config = request.config
    yield Bench(row, benchmark, config, config.stash[CEILINGS], config.stash[RESULTS])
    if path := config.getoption("json"):  # after every row: a run that is cut short keeps what it has
        table.write_json(path, _finished(config).to_json())


def _finished(config: pytest.Config) -> table.Results:
    results = config.stash[RESULTS]
    results.ceilings = dict(config.stash[CEILINGS].best)
    results.finish()
    return results


def pytest_sessionfinish(session: pytest.Session) -> None:
    ceilings = session.config.stash[CEILINGS]
    if ceilings.best:
        ceilings.sample()


def pytest_unconfigure(config: pytest.Config) -> None:
    """The table comes last, after pytest's own lines."""
    if not config.stash[RESULTS].rows:
        return
    results = _finished(config)
    text = table.markdown(results)
    print(f"\n{text}", end="")
    if path := config.getoption("json"):
        table.write_json(path, results.to_json())
    if path := config.getoption("markdown"):
        table.rewrite(path, results.machine["device"], text)
