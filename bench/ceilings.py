"""What the machine can do at most, measured between the rows: a large matrix product and a large copy.

On a machine that others use too, a slow moment would flatter every row measured against it, so the best of all samples
of the run counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from . import timing

COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # of the source; reads and writes count
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}


@dataclass
class Ceilings:
    """Best rates so far: "sgemm" and (GPU) "hgemm" in FLOP/s, "copy" in bytes/s."""

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
        types = {"sgemm": torch.float32} | ({"hgemm": torch.float16} if self.device.type == "cuda" else {})
        for name, dtype in types.items():
            a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            self._probes[name] = 2.0 * n**3, lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # type: ignore[misc]
        source = torch.rand(COPY_BYTES[self.device.type] // 4, device=self.device)
        target = torch.empty_like(source)
        self._probes["copy"] = 2.0 * source.nbytes, lambda: target.copy_(source)
