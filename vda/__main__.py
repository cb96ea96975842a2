"""`python -m vda <command>`, or `vda <command>`; the commands are the keys of COMMANDS."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from . import distributed, doctor, export
from .cli import run_command
from .data import command as data
from .errors import UsageError
from .flow import command as flow
from .flow import score_command
from .plan import command as plan
from .predict import command as predict

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "data": data.data_main,  # is a data set right, and the needed files of an archive
    "doctor": doctor.main,  # which backend each op uses, and why a kernel is off
    "flow": flow.flow_main,  # optical flow of a data set, ahead of training, or of two images
    "flow-score": score_command.score_main,  # how good a provider's flow is on a data set
    "plan": plan.plan_main,  # memory, time and disk of a run, from a few of its steps
    "predict": predict.predict_main,  # the classes of every frame of a video, a folder or an image
    "export": export.export_main,  # a network as one file for torch.export or ONNX
    "weights": flow.weights_main,  # import the weights of a flow network
}


def main(arguments: list[str]) -> int:
    """Run one command; the exit status as `vda.cli.run_command`."""
    return run_command(dispatch, arguments)


def dispatch(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: python -m vda {{{','.join(COMMANDS)}}} ...; each has a --help of its own")
        return
    if not arguments or arguments[0] not in COMMANDS:
        found = repr(arguments[0]) if arguments else "nothing"
        raise UsageError(f"python -m vda: wanted a command ({', '.join(COMMANDS)}), got {found}")
    if arguments[0] != "flow":
        distributed.check_alone(f"vda {arguments[0]}")
    COMMANDS[arguments[0]](list(arguments[1:]))


def console() -> int:
    """The command `vda` that installing the package makes."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(console())
