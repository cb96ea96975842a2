"""What the machine can do at most, measured between the rows: a large matrix product and a large copy.

On a machine that others use too, a slow moment would flatter every row measured against it, so the best of all samples
of the run counts.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import timing

COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # of the source; reads and writes count
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}
GEMMS = {  # element type, and whether a GPU may round it to TF32
    "sgemm": (torch.float32, False),
    "tf32 gemm": (torch.float32, True),
    "hgemm": (torch.float16, False),
}


@dataclass
class Ceilings:
    """Best rates so far: GEMMS (on a CPU only "sgemm") in FLOP/s, "copy" in bytes/s."""

    device: torch.device
    best: dict[str, float] = field(default_factory=dict)
    _probes: dict[str, tuple[float, Callable[[], object]]] = field(default_factory=dict)

    def sample(self, repeats: int = 1) -> None:
        """Measure all of them once more."""
        if not self._probes:
            self._make()
        for name, (amount, call) in self._probes.items():
            rate = amount / timing.seconds(call, self.device, repeats)
            self.best[name] = max(rate, self.best.get(name, 0.0))

    def _make(self) -> None:
        n = GEMM_SIZE[self.device.type]
        for name, (dtype, tf32) in GEMMS.items():
            if name == "sgemm" or self.device.type == "cuda":
                a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
                self._probes[name] = 2.0 * n**3, functools.partial(_product, a, b, torch.empty_like(a), tf32)
        source = torch.rand(COPY_BYTES[self.device.type] // 4, device=self.device)
        target = torch.empty_like(source)
        self._probes["copy"] = 2.0 * source.nbytes, lambda: target.copy_(source)


@contextlib.contextmanager
def matmul(*, tf32: bool) -> Iterator[None]:
    """Whether matrix products of float32 may round to TF32."""
    settings = torch.backends.cuda.matmul
    before, settings.fp32_precision = settings.fp32_precision, "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _product(a: Tensor, b: Tensor, out: Tensor, tf32: bool) -> None:
    with matmul(tf32=tf32):
        torch.mm(a, b, out=out)
