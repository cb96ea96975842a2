"""How much memory something takes at most: exactly, by what torch and Python say they allocate and free.

The system's own count of a process moves by tens of megabytes with what the C library keeps for later.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def peak(call: Callable[[], object]) -> int:
    """Bytes that torch's tensors on the CPU take at most while call() runs, plus those that Python's objects, NumPy's
    arrays among them, take at most; the two need not come at one moment."""
    python = 0

    def traced() -> None:
        nonlocal python
        tracemalloc.start()
        try:
            call()
            python = tracemalloc.get_traced_memory()[1]  # before the profile is read, which takes more than the call
        finally:
            tracemalloc.stop()

    return tensor_peak(traced) + python


def tensor_peak(call: Callable[[], object]) -> int:
    """Bytes that torch's tensors on the CPU take at most while call() runs, beyond those that there were before; that
    one of these is freed meanwhile makes no difference."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    events = sorted((e for e in events if e["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(itertools.accumulate((event["args"]["Bytes"] for event in events), initial=0))


def growth(once: Callable[[], object], twice: Callable[[], object]) -> int:
    """Bytes that the peak of twice() lies above that of once()."""
    peak(once)  # what is made the first time and stays, the profiler's own too
    return peak(twice) - peak(once)
