"""What bench/gpu.py runs under compute-sanitizer.

selfcheck.py ops                                    every op on the GPU against its reference, fast and readable kernels
selfcheck.py canary.so sound|memcheck|racecheck     one kernel of canary.cu: right, out of bounds, without its barrier
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]


def ops() -> None:
    """Prints how often each kernel was called; an op that did not reach the GPU is an error."""
    import torch
    from shim import selfcheck

    from vda.ops import _lib

    if reason := _lib.why_off("cuda"):
        raise SystemExit(f"nothing to check: {reason}")
    calls: Counter[str] = Counter()
    call = _lib.call

    def counted(function: str, first: torch.Tensor, **members: Any) -> None:
        assert first.is_cuda, f"{function} was called on {first.device}"
        calls[function] += 1
        call(function, first, **members)

    _lib.call = counted
    selfcheck.check_ops(None)
    torch.cuda.synchronize()
    print("kernels called:", ", ".join(f"{name} {count}" for name, count in sorted(calls.items())))


def canary(library: str, which: str) -> None:
    """Exit status 1 unless the kernel ran to its end and, for "sound", did what it should."""
    code = getattr(ctypes.CDLL(library), f"canary_{which}")()
    print(f"canary {which}: {'done' if code == 0 else f'error {code}'}")
    raise SystemExit(code != 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["ops"]:
        ops()
    else:
        canary(*sys.argv[1:])
