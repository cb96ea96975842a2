"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vda import __version__

ROOT = Path(__file__).resolve().parent.parent
_FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX", "asimd": "NEON", "sve": "SVE"}


def describe(device: torch.device) -> dict[str, Any]:
    """Processor or GPU, versions, threads, commit and date."""
    return {
        "device": device.type,
        "cpu": cpu(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpu": gpu(device) if device.type == "cuda" and torch.cuda.is_available() else None,
        "vda": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def line(machine: dict[str, Any]) -> str:
    """The description in one line, to stand above a table."""
    software = f"torch {machine['torch']}, Python {machine['python']}, vda {machine['vda']} at {machine['commit']}"
    when = f"{software}; {machine['date']}"
    if machine["device"] == "cuda":
        gpu = machine["gpu"]
        if gpu is None:
            return f"No GPU measured; {when}."
        return (
            f"{gpu['name']} ({gpu['arch']}, {gpu['multiprocessors']} multiprocessors, {gpu['memory_gb']} GB), "
            f"driver {gpu['driver']}, CUDA {gpu['cuda']}, {when}."
        )
    load = "" if machine["load"] is None else f", load {machine['load']} before the run"
    return f"{machine['cpu']}, {threads(machine['threads'])}{load}; {when}."


def threads(count: int) -> str:
    """In words."""
    return f"{count} thread" + "s" * (count != 1)


def cpu() -> str:
    """Model name and what tells more than some virtual machines' names do: family, instruction sets, cores."""
    cores = f"{os.cpu_count()} logical cores"
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.processor() or platform.machine()}, {cores}"
    found = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.M))
    name = found.get("model name", platform.machine())
    flags = set((found.get("flags") or found.get("Features") or "").split())
    details = [f"family {found['cpu family']} model {found['model']}"] if "cpu family" in found else []
    details += [label for flag, label in _FEATURES.items() if flag in flags]
    virtual = ["virtual machine"] if "hypervisor" in flags else []
    return f"{name} ({', '.join(details + virtual)}), {cores}" if details else f"{name}, {cores}"


def gpu(device: torch.device) -> dict[str, Any]:
    """Name, architecture, size, and the versions of driver and CUDA."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "arch": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9),
        "driver": driver() or "unknown",
        "cuda": torch.version.cuda,
    }


def driver() -> str:
    """Version of the NVIDIA driver, "" where nvidia-smi does not say."""
    return _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).partition("\n")[0]


def commit() -> str:
    """Short hash of the checkout, with "+" when tracked files differ from it; "unknown" outside one."""
    short = _output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return (short + "+" * bool(changed)) or "unknown"


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
