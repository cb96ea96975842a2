"""`pytest bench`: every op against its plain-torch reference, the same call that the tests check.

Shapes are a quarter of the paper's 1024 x 2048 per side so that two CPU cores finish in a minute; `--full` takes the
paper's. With a GPU everything runs there and every timing waits for it. CPU figures mean something as ratios only.
Bytes are those that an op cannot avoid: every input read once, every output written once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the paper's 1024 x 2048 instead of 256 x 512")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """bench_<op>.py is a test file here, and only here: plain `pytest` never times anything."""
    if file_path.match("bench_*.py"):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@dataclass(frozen=True)
class Case:
    """Where and how large, and the timer."""

    device: str
    H: int
    W: int
    benchmark: Any

    def time(self, call: Callable[[], Any], *, nbytes: int, flop: int = 0) -> None:
        """Time call(); nbytes and flop are what one call has to move and compute."""

        def finished() -> None:
            call()
            if self.device == "cuda":
                torch.cuda.synchronize()

        self.benchmark.extra_info.update(mbyte=nbytes / 1e6, gflop=flop / 1e9)
        self.benchmark.pedantic(finished, rounds=10, warmup_rounds=2)


@pytest.fixture
def case(request: pytest.FixtureRequest, benchmark: Any) -> Case:
    torch.manual_seed(0)
    H, W = (1024, 2048) if request.config.getoption("--full") else (256, 512)
    return Case("cuda" if torch.cuda.is_available() else "cpu", H, W, benchmark)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Bytes, bandwidth and the ratio to the reference, which pytest-benchmark's own table does not show."""
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    median = {bench.name: bench.stats.median for bench in session.benchmarks if bench.stats.data}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    terminalreporter.section(f"bytes and ratios ({device})")
    for bench in session.benchmarks:
        if bench.name not in median:
            continue
        seconds, info = median[bench.name], bench.extra_info
        reference = median.get(re.sub(r"\[[a-z_]+", "[reference", bench.name))
        ratio = f"{reference / seconds:>6.1f} x" if reference else ""
        terminalreporter.write_line(
            f"{Path(bench.fullname).name:<66} {info.get('mbyte', 0):>8.1f} MB {info.get('gflop', 0):>7.2f} GFLOP "
            f"{1e3 * seconds:>9.3f} ms {info.get('mbyte', 0) / 1e3 / seconds:>7.2f} GB/s {ratio}"
        )
