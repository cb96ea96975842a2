"""Score a trained network: mIoU and VPQ^s on labelled video.

python evaluate.py runs/embedded-1/vst --data embedded/camera-val
python evaluate.py runs/camvid-1/vat runs/camvid-1/vst --data camvid/dusk-val --root /data/camvid
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn

from vda.checkpoint import atomic_write
from vda.cli import choose_device, run_command
from vda.data import VideoDataset, open_dataset
from vda.errors import UsageError
from vda.metrics import Scorer
from vda.models import upsample
from vda.progress import progress
from vda.report import score_table
from vda.run import network_of, open_checkpoint

Scores = dict[str, Any]


@torch.inference_mode()
def score(network: nn.Module, dataset: VideoDataset, device: torch.device, *, name: str = "score") -> Scores:
    """Every labelled frame of `dataset` through the network, one at a time, and the scores of the whole set.

    Logits are upsampled to the size of the label before the argmax. Raises UsageError for a set without labels.
    """
    network.eval()
    scorer = Scorer(dataset.classes)
    bar = progress(total=dataset.num_frames, desc=name, unit="frame")
    for clip in dataset.clips:
        for i in range(len(clip)):
            bar.update()
            label = clip.label(i)
            if label is None:
                continue
            image = torch.from_numpy(clip.frame(i)).to(device).permute(2, 0, 1)[None].float() / 255
            prediction = upsample(network(image), label.shape).argmax(1)[0]
            scorer.add_frame(prediction.to("cpu", torch.uint8).numpy(), label)
        scorer.end_clip()
    bar.close()
    scores = scorer.scores()
    if not scores["frames"]:
        raise UsageError(f"data set {dataset.name}: wanted labelled frames to score, found none")
    return scores | {"dataset": dataset.name}


@dataclass(frozen=True)
class Evaluate:
    """Score checkpoints on labelled video: per-class IoU, mIoU and VPQ^s, side by side."""

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Checkpoint folders, or phase folders of a run (the newest checkpoint is taken)."""
    data: str
    """Labelled video, as DATASET/SPLIT."""
    root: Path | None = None
    """Folder of the data set; not needed for the embedded world."""
    size: tuple[int, int] | None = None
    """Height and width of the frames; that of the training where not given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    out: Path | None = None
    """JSON file for the scores."""


def evaluate(options: Evaluate) -> None:
    device = choose_device(options.device)
    if options.out and options.out.is_dir():
        raise UsageError(f"{options.out}: wanted a file for the scores, found a folder")
    if not options.checkpoints:
        raise UsageError("checkpoints: wanted at least one checkpoint folder, got none")
    scores: dict[str, Scores] = {}
    for path in options.checkpoints:
        checkpoint = open_checkpoint(path)
        size = options.size or tuple(checkpoint.meta["config"]["data"]["size"])
        dataset = open_dataset(options.data, options.root, size)
        if list(dataset.classes) != checkpoint.meta["classes"]:
            raise UsageError(
                f"{path}: the checkpoint has the classes {', '.join(checkpoint.meta['classes'])}; "
                f"data set {dataset.name} has {', '.join(dataset.classes)}"
            )
        scores[str(path)] = score(network_of(checkpoint, device), dataset, device, name=str(path)) | {
            "checkpoint": str(checkpoint.path),
            "rule": "given" if path == checkpoint.path else "last",
            "seed": checkpoint.meta["config"]["seed"],
        }
    print(score_table(scores))
    if options.out:
        write_scores(options.out, scores)


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(scores, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(run_command(lambda argv: evaluate(tyro.cli(Evaluate, args=argv, description=__doc__))))
