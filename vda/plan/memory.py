"""The most memory that a part of a program has used."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def what(device: torch.device) -> str:
    """What `peak` measures."""
    return "GPU memory" if device.type == "cuda" else "memory"


def reset(device: torch.device) -> None:
    """Begins a new part. On a CPU without Linux's /proc, peaks are those since the start of the program."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        try:
            _CLEAR.write_text("5")  # sets the peak back to what is used now
        except OSError:  # not allowed in some containers
            return


def peak(device: torch.device) -> int:
    """Bytes: the most that tensors had of the GPU, or that the process had resident, since `reset`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
