"""Mixed precision of the training: where 16 bits are enough, and the scaling that float16 gradients need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

PrecisionName = Literal["fp32", "bf16", "fp16"]

_DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """What a training step does differently in mixed precision; in float32 nothing.

    Weights, gradients, losses and the optimisers' states stay float32. float16 gradients would underflow, so the loss
    is scaled up and a step whose gradients overflow is left out (`torch.amp.GradScaler`); bfloat16 has float32's range.
    """

    def __init__(self, name: PrecisionName = "fp32", device: torch.device | None = None) -> None:
        self.dtype, self.device = _DTYPES[name], device or torch.device("cpu")
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Back-propagates the loss, scaled where need be."""
        self._scaler.scale(loss).backward()

    def step(self, optimisers: Iterable[torch.optim.Optimizer]) -> None:
        """One step of each optimiser, by its unscaled gradients."""
        for optimiser in optimisers:
            self._scaler.step(optimiser)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; empty but in fp16."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._scaler.load_state_dict(state)
