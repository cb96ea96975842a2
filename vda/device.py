"""Where the computation runs."""

from __future__ import annotations

import os

import torch

from vda.errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device "auto", "cpu" or "cuda". Raises UsageError for CUDA where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        built = "this torch build has no CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise UsageError(f"device: wanted cuda, but {built}; leave the option out to run on the CPU")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # by number: to another thread "cuda" is the first one


def use_deterministic_algorithms() -> None:
    """From here on what has a deterministic form takes it; torch warns of the rest, by name."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may add up in another order
    torch.backends.cudnn.benchmark = False  # else the fastest convolution of the day is taken
    torch.use_deterministic_algorithms(True, warn_only=True)
