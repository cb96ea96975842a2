"""Where the computation runs."""

from __future__ import annotations

import torch

from vda.errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device "auto", "cpu" or "cuda". Raises UsageError for CUDA where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        built = "this torch build has no CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise UsageError(f"device: wanted cuda, but {built}; leave the option out to run on the CPU")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
