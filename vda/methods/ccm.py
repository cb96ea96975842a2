"""CCM: content-consistent matching (Li et al., ECCV 2020, arXiv 2008.08880). Self-training on target and chosen source.

Each round labels the target (a pixel where any class exceeds its threshold, or that is among the surest of its frame),
then looks in a random pool of the source for what resembles it: the frames whose classes lie where they lie in the
target (`layout_score`), and in them the pixels that the network sees as it sees their class in the target
(`similar_pixels`).

    L = CE over the labelled pixels of the mixed batch + 0.5 mean entropy of all its pixels

Layouts are compared on at most `layout_frames` frames of the target, evenly spread, since neighbours repeat. Whole
tubes of the source are chosen, by the mean over their frames. For tiny classes the published code's threshold index -0
lets every pixel pass; here none passes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vda.checkpoint import atomic_write
from vda.data.clip import Clip
from vda.data.labels import read_label, write_label
from vda.data.tubes import Batch, Mixed, Tubes, true_labels
from vda.errors import UsageError
from vda.losses import cross_entropy, entropy
from vda.matching import Templates, label_layout, layout, layout_centres, layout_score, similar_pixels, stack
from vda.methods.base import Losses, Round, frame_labels
from vda.methods.self_training import SelfTraining, SelfTrainingSettings, mixed_logits
from vda.models import upsample
from vda.options import Optimiser, Pseudo, wanted
from vda.progress import progress
from vda.pseudo import PseudoLabels, image_tensor

if TYPE_CHECKING:
    from vda.run import Run

SELECTION = "selection.json"


@dataclass(frozen=True)
class CCMSettings(SelfTrainingSettings):
    """Self-training on the target and on the part of the source that resembles it."""

    rounds: int = 6
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(iterations=5_000, batch=2, lr=7.5e-5))
    """Of one round; the learning rate falls by the square root of 2 from round to round."""
    pseudo: Pseudo = field(default_factory=lambda: Pseudo(policy="class_or_image", alpha=0.1))
    alpha_step: float = 0.0
    lambda_ent: float = 0.5
    """Weight of the entropy of all pixels."""
    pool: float = 0.2
    """Part of the source's tubes that a round looks at."""
    matched: float = 0.24
    """Part of the pool that a round trains on."""
    pixels: float = 0.9
    """Part of the pixels of each class of a frame that stay."""
    centres: int = 10
    """Clusters of the target's layouts for each class."""
    layout_frames: int = 500
    """Target frames that are clustered, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pool", "matched", "pixels"):
            wanted(0 < getattr(self, name) <= 1, f"ccm.{name}", "above 0, at most 1", getattr(self, name))
        for name in ("centres", "layout_frames"):
            wanted(getattr(self, name) >= 1, f"ccm.{name}", "at least 1", getattr(self, name))


class CCM(SelfTraining):
    """Cross entropy on both domains, and entropy."""

    title = "CCM"
    settings_type = CCMSettings

    def __init__(self, network: nn.Module, settings: CCMSettings) -> None:
        super().__init__(network)
        self.settings = settings

    def losses(self, source: None, target: Batch) -> Iterator[Losses]:
        logits = mixed_logits(self.network, target)
        ent = self.settings.lambda_ent * entropy(logits).mean()
        yield {"seg": cross_entropy(logits, frame_labels(target)), "ent": ent}

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        model = run.result(settings.start)
        for r in range(settings.rounds):
            here = folder if settings.rounds == 1 else folder / f"round-{r + 1}"
            labels = run.pseudo_labels(here, [model], settings.in_round(r))
            source = matched_source(run, settings, run.network_at(model).eval(), labels, here / "source", r)
            target = run.tubes(run.target, labels, augment=settings.augment, stream=1)
            optimiser = replace(settings.optimiser, lr=settings.optimiser.lr / math.sqrt(2) ** r)
            yield Round(here, cls(run.network_at(model), settings), optimiser, None, Mixed([source, target]))
            model = here

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        super().check(run, settings)
        count = len(run.tubes(run.source, None))
        if int(settings.pool * count) < 1:
            raise UsageError(
                f"ccm: wanted a pool of at least one tube, {settings.pool} of the source's {count} is none"
            )


@torch.inference_mode()
def matched_source(
    run: Run, settings: CCMSettings, network: nn.Module, labels: PseudoLabels, folder: Path, r: int
) -> Tubes:
    """The chosen source tubes, with the labels of the pixels that stay; written under `folder` the first time."""

    def remaining(clip: Clip, i: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return read_label(_file(folder, clip, i))

    pool = run.tubes(run.source, remaining, augment=settings.augment).part(settings.pool, r)
    if (folder / SELECTION).exists():
        return pool.chosen(json.loads((folder / SELECTION).read_text()))
    K = run.source.num_classes
    frames = [(clip, i) for clip in run.target.clips for i in range(len(clip))]
    some = progress(frames[:: -(-len(frames) // settings.layout_frames)], desc="layouts", unit="frame")
    layouts = stack([layout(_logits(run, network, clip, i).softmax(1)[0]) for clip, i in some])
    centres = layout_centres(layouts, settings.centres, seed=run.config.seed)
    templates = Templates(K, device=run.device)
    for clip, i in progress(frames, desc="templates", unit="frame"):
        label = torch.from_numpy(labels(clip, i))[None].to(run.device)
        templates.update(_logits(run, network, clip, i), label)
    scores = []
    for clip, indices in progress(pool.tubes, desc="source layouts", unit="tube"):
        tube = stack([label_layout(_truth(clip, i), K) for i in indices])
        scores.append(layout_score(tube, centres).mean())
    best = torch.stack(scores).argsort(stable=True)[: max(1, int(settings.matched * len(pool)))].tolist()
    chosen = {(clip.name, i): (clip, i) for clip, indices in pool.chosen(best).tubes for i in indices}
    for clip, i in progress(chosen.values(), desc="source pixels", unit="frame"):
        probs = _logits(run, network, clip, i).softmax(1)[0]
        kept = similar_pixels(probs, _truth(clip, i).to(run.device), templates.mean(), settings.pixels)
        write_label(_file(folder, clip, i), kept.cpu().numpy())
    atomic_write(folder / SELECTION, json.dumps(best).encode())
    return pool.chosen(best)


def _file(folder: Path, clip: Clip, i: int) -> Path:
    return folder / clip.name / f"{clip.frame_names[i]}.png"


def _truth(clip: Clip, i: int) -> Tensor:
    label = true_labels(clip, i)
    if label is None:
        raise UsageError(f"ccm: source frame {clip.name}/{clip.frame_names[i]} has no label")
    return torch.from_numpy(label)


def _logits(run: Run, network: nn.Module, clip: Clip, i: int) -> Tensor:
    image = image_tensor(clip, i, run.device)
    return upsample(network(image), (image.shape[-2], image.shape[-1]))
