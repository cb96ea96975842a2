"""Pseudo labels: Algorithm 1 of the paper, with Eq. 10 (aggregation) and Eq. 11 (clip-adaptive thresholds).

Memory holds the logits of at most three frames, the flow of two pairs, and 3 bytes a pixel (label and 16-bit
confidence) of one clip.
Labels are written as uint8 PNG, 255 for "none", beside a manifest that names the model, the flow, and the thresholds
of every finished clip; thresholds run from clip to clip, so a stopped run continues from the manifest and ends with
the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vda.checkpoint import atomic_write
from vda.config import Occlusion, Pseudo
from vda.data.clip import IGNORE, Clip, FlowSource, LabelMap, VideoDataset
from vda.data.labels import read_label, write_label
from vda.errors import UsageError
from vda.flow.providers import both_ways
from vda.occlusion import needs_back, photometric, visible_flow
from vda.ops import ClassThresholds, aggregate_labels, apply_thresholds
from vda.progress import progress


@dataclass(frozen=True)
class Confident:
    """The predictions of one clip: label [N, H, W] uint8 (argmax) and confidence [N, H, W] float16 (max)."""

    label: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Generator:
    """What turns frames into predictions; the network gives logits at any resolution."""

    network: nn.Module
    flow: FlowSource
    settings: Pseudo
    occlusion: Occlusion
    device: torch.device


def predictions(generator: Generator, clip: Clip, weight: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Label and confidence [1, H, W] of the frames of a clip in turn.

    Argmax and max of the softmax, aggregated over the neighbours (Eq. 10) where asked, times `weight` [K] where given.
    """
    frames: dict[int, Tensor] = {}
    logits: dict[int, Tensor] = {}
    flows: dict[tuple[int, int], Tensor] = {}
    for i in range(len(clip)):
        near = [j for j in (i - 1, i, i + 1) if 0 <= j < len(clip)] if generator.settings.aggregate else [i]
        for j in near:
            if j not in logits:
                image = torch.from_numpy(clip.frame(j)).to(generator.device)
                frames[j] = image.permute(2, 0, 1)[None].float() / 255
                logits[j] = generator.network(frames[j])
        if i + 1 in near:  # frame i + 1 wants the same pair from its end
            both = torch.from_numpy(np.stack(both_ways(generator.flow, clip, i, i + 1)))
            flows[i, i + 1], flows[i + 1, i] = both[:, None].to(generator.device)
        neighbours = [j for j in near if j != i]
        there, back = _stack([flows[i, j] for j in neighbours], like=frames[i][:, :2]), None
        if needs_back(generator.occlusion):
            back = _stack([flows[j, i] for j in neighbours], like=frames[i][:, :2])
        yield aggregate_labels(
            logits[i],
            _stack([logits[j] for j in neighbours], like=logits[i]),
            visible_flow(there, back, generator.occlusion),
            frames[i],
            _stack([frames[j] for j in neighbours], like=frames[i]),
            **photometric(generator.occlusion),
            weight=weight,
        )
        frames.pop(i - 1, None)
        logits.pop(i - 1, None)
        flows.pop((i - 1, i), None)
        flows.pop((i, i - 1), None)


def _stack(maps: list[Tensor], like: Tensor) -> Tensor:
    """[1, J, ...] of J maps [1, ...]; of none, J = 0 and the shape of `like`."""
    return torch.stack(maps, 1) if maps else like[:, None][:, :0]


def confident(generator: Generator, clip: Clip, weight: Tensor | None = None) -> Confident:
    """The predictions of all frames of a clip."""
    labels, confidences = zip(*predictions(generator, clip, weight), strict=True)
    return Confident(torch.cat(labels), torch.cat(confidences))


# --- policies: (predictions of a clip, thresholds so far) -> (thresholds of its frames [N, K], thresholds to carry on)


def clip_adaptive(clip: Confident, theta: Tensor, settings: Pseudo) -> tuple[Tensor, Tensor]:
    """Eq. 11: all frames of the clip are one instance and share its thresholds."""
    theta = _updated(clip.confidence, clip.label, theta, settings)
    return theta.expand(len(clip.label), -1), theta


def instance_adaptive(clip: Confident, theta: Tensor, settings: Pseudo) -> tuple[Tensor, Tensor]:
    """Eq. 4 (IAST): every frame is an instance."""
    thetas = []
    for confidence, label in zip(clip.confidence, clip.label, strict=True):
        theta = _updated(confidence, label, theta, settings)
        thetas.append(theta)
    return torch.stack(thetas), theta


def class_balanced(clip: Confident, theta: Tensor, settings: Pseudo) -> tuple[Tensor, Tensor]:
    """CBST: predictions come divided by the thresholds of the whole set, so 1 is the bar for every class; 1 passes."""
    return torch.ones(len(clip.label), len(theta)), theta


POLICIES: dict[str, Callable[[Confident, Tensor, Pseudo], tuple[Tensor, Tensor]]] = {
    "clip_adaptive": clip_adaptive,
    "instance_adaptive": instance_adaptive,
    "class_balanced": class_balanced,
}


def _updated(confidence: Tensor, label: Tensor, theta: Tensor, settings: Pseudo) -> Tensor:
    thresholds = ClassThresholds(
        len(theta),
        alpha=settings.alpha,
        beta=settings.beta,
        gamma=settings.gamma,
        rule=settings.rule,
        device=confidence.device,
    )
    thresholds.update(confidence, label)
    return thresholds.finish(theta)


def portion_thresholds(generator: Generator, dataset: VideoDataset) -> Tensor:
    """CBST's thresholds [K] (Zou et al., ECCV 2018): the last of the floor(alpha n) highest confidences of each class.

    n counts the pixels of the class in the whole set. Where floor(alpha n) is 0 the threshold is 1, which only
    certainty reaches.
    """
    K = dataset.num_classes
    # beta = gamma = 0: no momentum, and the same portion for every class, so finish() is the plain order statistic.
    thresholds = ClassThresholds(
        K, alpha=generator.settings.alpha, beta=0.0, gamma=0.0, rule="portion", device=generator.device
    )
    for clip in progress(dataset.clips, desc="class-balanced thresholds", unit="clip"):
        found = confident(generator, clip)
        thresholds.update(found.confidence, found.label)
    return thresholds.finish(torch.ones(K, device=generator.device))


# --- files


@dataclass
class PseudoLabels:
    """Written pseudo labels of a data set, as a label source for `Tubes`."""

    folder: Path
    manifest: list[dict[str, Any]]

    def __call__(self, clip: Clip, i: int) -> LabelMap:
        return read_label(self.path(clip, i))

    def path(self, clip: Clip, i: int) -> Path:
        return self.folder / clip.name / f"{clip.frame_names[i]}.png"

    @property
    def coverage(self) -> float:
        """Labelled share of all pixels."""
        clips = self.manifest[1:]
        return sum(sum(c["coverage"]) * c["frames"] for c in clips) / max(1, sum(c["frames"] for c in clips))


def generate(
    generator: Generator, dataset: VideoDataset, folder: Path, *, model: str, flow_name: str, seed: int
) -> PseudoLabels:
    """Writes the pseudo labels of every frame of `dataset` under `folder` and returns them.

    model: hash of the weights, for the manifest. Clips are taken in an order shuffled by `seed`, since thresholds
    depend on it. Clips that the manifest already has are not done again.

    Raises UsageError where `folder` holds the labels of another model, flow, data set or setting.
    """
    head = {
        "format": 1,
        "model": model,
        "flow": flow_name,
        "dataset": dataset.name,
        "size": list(dataset.size),
        "classes": list(dataset.classes),
        "seed": seed,
        "settings": asdict(generator.settings),
        "occlusion": asdict(generator.occlusion),
    }
    manifest = _open_manifest(folder, head)
    order = np.random.default_rng(seed).permutation(len(dataset.clips))
    theta = torch.full((dataset.num_classes,), generator.settings.theta_init, dtype=torch.float64)
    if len(manifest) > 1:
        theta = torch.tensor(manifest[-1]["theta"], dtype=torch.float64)
    theta = theta.to(generator.device)

    generator.network.eval()
    with torch.inference_mode():
        balanced = generator.settings.policy == "class_balanced" and len(manifest) <= len(order)
        weight, rule = None, "portion" if balanced else generator.settings.rule
        if balanced:
            theta = theta if len(manifest) > 1 else portion_thresholds(generator, dataset).double()
            weight = (1 / theta).float()
        todo = order[len(manifest) - 1 :]
        for c in progress(todo, desc="pseudo labels", unit="clip", initial=len(order) - len(todo), total=len(order)):
            clip = dataset.clips[c]
            found = confident(generator, clip, weight)
            thetas, theta = POLICIES[generator.settings.policy](found, theta, generator.settings)
            kept = keep(found, thetas, rule=rule).cpu().numpy()
            for i, label in enumerate(kept):
                write_label(folder / clip.name / f"{clip.frame_names[i]}.png", label)
            manifest.append(
                {
                    "clip": clip.name,
                    "frames": len(clip),
                    "theta": theta.tolist(),
                    "coverage": _coverage(kept, dataset.num_classes),
                }
            )
            _write_manifest(folder, manifest)
    return PseudoLabels(folder, manifest)


def keep(clip: Confident, thetas: Tensor, *, rule: str) -> Tensor:
    """Labels [N, H, W] where the confidence passes the threshold [N, K] of the label's class, 255 elsewhere."""
    return apply_thresholds(clip.label, clip.confidence, thetas.to(clip.label.device), rule=rule, ignore_index=IGNORE)


def _coverage(labels: NDArray[np.uint8], K: int) -> list[float]:
    """Share of all pixels labelled with each class."""
    return [float(n) / max(1, labels.size) for n in np.bincount(labels.ravel(), minlength=256)[:K]]


def _open_manifest(folder: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    path = folder / "manifest.jsonl"
    if not path.exists():
        _write_manifest(folder, [head])
        return [head]
    manifest = _read_manifest(path)
    for key, value in head.items():
        if manifest[0].get(key) != value:
            raise UsageError(
                f"{path}: these pseudo labels are of another {key}: wanted {value}, found {manifest[0].get(key)}"
            )
    return manifest


def _read_manifest(path: Path) -> list[dict[str, Any]]:
    try:
        manifest = [json.loads(line) for line in path.read_text().splitlines()]
        manifest[0]["model"], [entry["theta"] for entry in manifest[1:]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path}: wanted a manifest of pseudo labels, found: {error!r}") from None
    return manifest


def _write_manifest(folder: Path, manifest: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "manifest.jsonl", "".join(json.dumps(entry) + "\n" for entry in manifest).encode())


def open_labels(folder: Path, dataset: VideoDataset, model: str) -> PseudoLabels:
    """The pseudo labels that `generate` made of `dataset` with the weights whose hash is `model`.

    Raises UsageError where there are none, where they are unfinished, or of another model.
    """
    path = folder / "manifest.jsonl"
    if not path.exists():
        raise UsageError(f"{path}: wanted pseudo labels, found none; run the phase `pseudo` first")
    manifest = _read_manifest(path)
    if manifest[0]["model"] != model:
        raise UsageError(
            f"{path}: these pseudo labels are of another model: wanted {model}, found {manifest[0]['model']}"
        )
    if len(manifest) - 1 != len(dataset.clips):
        raise UsageError(
            f"{path}: wanted pseudo labels of {len(dataset.clips)} clips, found {len(manifest) - 1}; "
            "run the phase `pseudo` to its end first"
        )
    return PseudoLabels(folder, manifest)
