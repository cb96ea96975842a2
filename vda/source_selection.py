"""CCM's selection over a data set: the source tubes and pixels that resemble the target (parts: vda/matching.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from vda import distributed
from vda.checkpoint import atomic_write
from vda.data.clip import Clip, LabelMap
from vda.data.labels import read_label, write_label
from vda.data.transforms import Augment
from vda.data.tubes import Tubes, true_labels
from vda.errors import UsageError
from vda.files import kept_json
from vda.matching import Templates, label_layout, layout, layout_centres, layout_score, similar_pixels, stack
from vda.models import upsample
from vda.progress import progress
from vda.pseudo import PseudoLabels, image_tensor

if TYPE_CHECKING:
    from vda.run import Run

SELECTION = "selection.json"


class Selection(Protocol):
    """The settings of CCM that it reads; see vda/methods/ccm.py."""

    @property
    def augment(self) -> Augment: ...
    @property
    def pool(self) -> float: ...
    @property
    def matched(self) -> float: ...
    @property
    def pixels(self) -> float: ...
    @property
    def centres(self) -> int: ...
    @property
    def layout_frames(self) -> int: ...


def matched_source(
    run: Run, settings: Selection, network: nn.Module, labels: PseudoLabels, folder: Path, r: int
) -> Tubes:
    """The chosen source tubes, with the labels of the pixels that stay; written under `folder` the first time.

    Of several processes the first one chooses: what it compares are sums of floats over all frames.
    """

    def remaining(clip: Clip, i: int) -> LabelMap:
        return read_label(_file(folder, clip, i))

    pool = run.tubes(run.source, remaining, augment=settings.augment, number=r).part(settings.pool, r)
    return pool.chosen(distributed.by_first(_select, run, settings, network, labels, folder, pool))


@torch.inference_mode()
def _select(
    run: Run, settings: Selection, network: nn.Module, labels: PseudoLabels, folder: Path, pool: Tubes
) -> list[int]:
    """The numbers of the chosen tubes of the pool; those and the labels that stay are written the first time."""
    if (known := kept_json(folder / SELECTION)) is not None:
        if not (isinstance(known, list) and all(isinstance(i, int) and 0 <= i < len(pool) for i in known)):
            raise UsageError(f"{folder / SELECTION}: wanted numbers of the {len(pool)} tubes, found something else")
        return known
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
    best: list[int] = torch.stack(scores).argsort(stable=True)[: max(1, int(settings.matched * len(pool)))].tolist()
    chosen = {(clip.name, i): (clip, i) for clip, indices in pool.chosen(best).tubes for i in indices}
    for clip, i in progress(chosen.values(), desc="source pixels", unit="frame"):
        probs = _logits(run, network, clip, i).softmax(1)[0]
        kept = similar_pixels(probs, _truth(clip, i).to(run.device), templates.mean(), settings.pixels)
        write_label(_file(folder, clip, i), kept.cpu().numpy())
    atomic_write(folder / SELECTION, json.dumps(best).encode())
    return best


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
