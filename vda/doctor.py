"""`python -m vda doctor`: which backend each op uses and, where a kernel is off, why."""

from __future__ import annotations

import platform

import torch

from . import __version__
from .errors import UsageError
from .ops import OPS, _lib


def main(arguments: list[str]) -> None:
    """Print the report."""
    if arguments:
        raise UsageError(f"python -m vda doctor: wanted no further argument, got {arguments[0]!r}")
    print(report())


def report() -> str:
    """Versions, the compiled module, the GPU, and one line per op."""
    rows = [
        ("vda", __version__),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("kernels", _module()),
        ("gpu", _gpu()),
    ]
    lines = [f"{name:<8} {value}" for name, value in rows]
    width = max(map(len, OPS)) + 2
    cpu, cuda = _backend("cpu"), _backend("cuda")
    lines += ["", f"{'op':<{width}}{'cpu':<{len(cpu) + 2}}cuda"]
    lines += [f"{op:<{width}}{cpu}  {cuda}" for op in OPS]
    reasons = {device: _lib.why_off(device) for device in ("cpu", "cuda")} | {"gpu": _why_no_gpu()}
    lines += [""] + [f"{device}: {reason}" for device, reason in reasons.items() if reason]
    return "\n".join(lines).rstrip()


def _backend(device: str) -> str:
    if _lib.why_off(device):
        return "plain torch"
    return "C++ kernel" if device == "cpu" else "CUDA kernel"


def _why_no_gpu() -> str:
    """Why torch has no GPU; the kernels may be there all the same."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return "this torch is built without CUDA: install one with CUDA"
    return "torch finds no GPU: check `nvidia-smi`"


def _module() -> str:
    module, reason = _lib.load()
    if module is None:
        return f"none: {reason}"
    cuda = f"CUDA for {module.architectures}" if module.cuda else "no CUDA"
    stale = "" if module.version == __version__ else f"; built as {module.version}, run `pip install -e .` again"
    return f"{module.__file__} (CPU, {cuda}{stale})"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    names = [
        f"{torch.cuda.get_device_name(i)} (sm_{''.join(map(str, torch.cuda.get_device_capability(i)))})"
        for i in range(torch.cuda.device_count())
    ]
    return ", ".join(names)
