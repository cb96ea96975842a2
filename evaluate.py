"""Score a trained network: mIoU and VPQ^s on labelled video.

python evaluate.py runs/embedded-1/vst --data embedded/camera-val
python evaluate.py runs/camvid-1/vat runs/camvid-1/vst --data camvid/dusk-val --root /data/camvid
python evaluate.py runs/embedded-fda-1/fda/round-2/beta-* --data embedded/camera-val --ensemble
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vda.cli import run_command
from vda.data import open_dataset
from vda.device import choose_device
from vda.errors import UsageError
from vda.models import Ensemble
from vda.report import score_table
from vda.run import network_of, open_checkpoint
from vda.scoring import Scores, score, write_scores


@dataclass(frozen=True)
class Evaluate:
    """Score checkpoints on labelled video: per-class IoU, mIoU and VPQ^s, side by side."""

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of methods or rounds of a run, of which the last checkpoint is taken, or of checkpoints."""
    data: str
    """Labelled video, as DATASET/SPLIT."""
    root: Path | None = None
    """Folder of the data set; not needed for the embedded world."""
    size: tuple[int, int] | None = None
    """Height and width of the frames; that of the training where not given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    ensemble: bool = False
    """Also score the mean of all checkpoints' predictions (FDA's multi-band transfer)."""
    out: Path | None = None
    """JSON file for the scores."""


def evaluate(options: Evaluate) -> None:
    device = choose_device(options.device)
    if options.out and options.out.is_dir():
        raise UsageError(f"{options.out}: wanted a file for the scores, found a folder")
    if not options.checkpoints:
        raise UsageError("checkpoints: wanted at least one checkpoint folder, got none")
    scores: dict[str, Scores] = {}
    networks = []
    for path in options.checkpoints:
        checkpoint = open_checkpoint(path)
        size = options.size or tuple(checkpoint.meta["config"]["data"]["size"])
        dataset = open_dataset(options.data, options.root, size)
        if list(dataset.classes) != checkpoint.meta["classes"]:
            raise UsageError(
                f"{path}: the checkpoint has the classes {', '.join(checkpoint.meta['classes'])}; "
                f"data set {dataset.name} has {', '.join(dataset.classes)}"
            )
        networks.append(network_of(checkpoint, device))
        scores[str(path)] = score(networks[-1], dataset, device, name=str(path)) | {
            "checkpoint": str(checkpoint.path),
            "rule": "given" if path == checkpoint.path else "last",
            "seed": checkpoint.meta["config"]["seed"],
        }
    if options.ensemble:
        name = f"mean of {len(networks)}"
        scores[name] = score(Ensemble(networks), dataset, device, name=name) | {"rule": "mean"}
    print(score_table(scores))
    if options.out:
        write_scores(options.out, scores)


if __name__ == "__main__":
    sys.exit(run_command(lambda argv: evaluate(tyro.cli(Evaluate, args=argv, description=__doc__))))
