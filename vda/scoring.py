"""The only scoring loop: a network over the labelled frames of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vda.checkpoint import atomic_write
from vda.data import VideoDataset
from vda.errors import UsageError
from vda.metrics import Scorer
from vda.models import upsample
from vda.progress import progress

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


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Scores as JSON; the folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(scores, indent=1) + "\n").encode())
