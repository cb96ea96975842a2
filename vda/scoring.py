"""The only scoring loop: predictions against the labelled frames of a data set, and against each other."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vda import distributed
from vda.checkpoint import atomic_write
from vda.data import VideoDataset
from vda.data.clip import Clip, FlowField
from vda.errors import UsageError
from vda.flow.providers import FlowProvider, both_ways
from vda.metrics import Scorer
from vda.occlusion import needs_back, visible
from vda.options import Occlusion
from vda.predictions import NetworkPredictor, Predictor
from vda.progress import progress

Scores = dict[str, Any]


@dataclass(frozen=True)
class Motion:
    """What TC is measured with: optical flow, and the test for what a neighbouring frame shows."""

    flow: FlowProvider
    occlusion: Occlusion = field(default_factory=Occlusion)

    def following(self, clip: Clip, i: int) -> tuple[FlowField, NDArray[np.bool_]]:
        """Flow from frame i to frame i + 1, and where that shows what frame i shows, [H, W]."""
        back: torch.Tensor | None = None
        if needs_back(self.occlusion):
            flow, reverse = both_ways(self.flow, clip, i, i + 1)
            back = torch.from_numpy(reverse)[None]
        else:
            flow = self.flow(clip, i, i + 1)
        frame, neighbour = (torch.from_numpy(clip.frame(j)).permute(2, 0, 1)[None].float() / 255 for j in (i, i + 1))
        seen = visible(frame, neighbour, torch.from_numpy(flow)[None], back, self.occlusion)
        return flow, seen[0].numpy()


def score(
    network: nn.Module,
    dataset: VideoDataset,
    device: torch.device,
    *,
    name: str = "score",
    motion: Motion | None = None,
) -> Scores:
    """`score_predictions` of a network, which sees one frame at a time; logits are upsampled before the argmax."""
    return score_predictions(NetworkPredictor(network, device), dataset, name=name, motion=motion)


def score_predictions(
    predict: Predictor, dataset: VideoDataset, *, name: str = "score", motion: Motion | None = None
) -> Scores:
    """The scores of a whole data set, with its name; with `motion` also TC, and what it was measured with.

    Frames without labels are predicted for TC alone. Several processes call it together, share the clips, and get the
    same scores, those of one process. Raises UsageError for a set in which there is nothing to score.
    """
    scorer = Scorer(dataset.classes)
    clips = distributed.share(dataset.clips)
    bar = progress(total=sum(map(len, clips)), desc=name, unit="frame")
    for clip in clips:
        before = None
        for i in range(len(clip)):
            bar.update()
            label = clip.label(i)
            prediction = None if label is None and motion is None else predict(clip, i)
            if label is None or prediction is None:
                scorer.add_gap()
            else:
                scorer.add_frame(prediction, label)
            if motion is not None and prediction is not None:
                if before is not None:
                    scorer.add_pair(before, prediction, *motion.following(clip, i - 1))
                before = prediction
        scorer.end_clip(clip.name)
    bar.close()
    parts = distributed.gather(scorer.state())
    scores = reduce(operator.add, (Scorer.from_state(part, dataset.classes) for part in parts)).scores()
    if not scores["frames"] and not scores["tc_pairs"]:
        raise UsageError(f"data set {dataset.name}: wanted labelled frames to score, found none")
    measured = {} if motion is None else {"flow": motion.flow.name, "occlusion": asdict(motion.occlusion)}
    return scores | {"dataset": dataset.name} | measured


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Scores as JSON; the folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(scores, indent=1) + "\n").encode())
