"""Clocks. pytest-benchmark takes the rounds; what differs between a CPU and a GPU is here."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch

Call = Callable[[], object]


class CudaStamp:
    """A moment on the GPU: CUDA events behind the interface of a timer, `end - start` is seconds.

    pytest-benchmark calls its timer before and after a round and subtracts. Nothing waits in between, so the round is
    queued while the flush before it still runs, and the host's launch latency stays out of the time.
    """

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: CudaStamp) -> float:
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event)) / 1e3


def cold_l2(device: torch.device) -> Callable[[], None]:
    """A call that overwrites more memory than the L2 cache holds; it also keeps the GPU busy for some 0.2 ms."""
    size = max(512 << 20, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
    buffer = torch.empty(size, dtype=torch.uint8, device=device)

    def flush() -> None:  # pytest-benchmark would take a result for arguments
        buffer.zero_()

    return flush


def once(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What call() returns, and its wall-clock seconds, everything finished."""
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start


def seconds(call: Call, device: torch.device, repeats: int) -> float:
    """Median duration of call() after one call that is not counted."""
    call()
    if device.type == "cuda":
        stamps = [CudaStamp()]
        for _ in range(repeats):
            call()
            stamps.append(CudaStamp())
        return median(b - a for a, b in pairwise(stamps))
    return median(once(call, device)[1] for _ in range(repeats))
