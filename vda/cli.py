"""What the command lines share: one sentence and status 2 for bad input, and the choice of the device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch

from vda.errors import UsageError


class Stopped(Exception):
    """The user stopped a run after its state was saved; the message says how to go on."""


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs `command(argv)`; the exit status: 0, 2 for bad input, 130 when stopped."""
    try:
        command(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 130
    return 0


def choose_device(name: str) -> torch.device:
    """The device "auto", "cpu" or "cuda". Raises UsageError for CUDA where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        built = "this torch build has no CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise UsageError(f"device: wanted cuda, but {built}; leave the option out to run on the CPU")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
