"""Pseudo labels: Algorithm 1 of the paper with Eq. 10 (aggregation), and the same for every other policy.

Several processes share the frames of each clip (vda/distributed.py), and write what one alone would, byte for byte:
what thresholds are made from are counts, which add up exactly, and no pixel is sent.

Memory holds the logits of at most three frames, the flow of two pairs, and 4 bytes a pixel (two labels and a 16-bit
confidence; 7 for a relative policy) of a process's frames of one clip.
Labels are written as uint8 PNG, 255 for "none", beside a manifest that names the model, the flow, and the thresholds
of every finished clip; thresholds run from clip to clip, so a stopped run continues from the manifest and ends with
the same files.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vda import distributed
from vda.checkpoint import atomic_write
from vda.data.clip import Clip, FlowSource, LabelMap, VideoDataset
from vda.data.labels import read_label, write_label
from vda.errors import UsageError
from vda.flow.providers import both_ways
from vda.losses import min_entropy
from vda.occlusion import needs_back, photometric, visible_flow
from vda.ops import ClassThresholds, aggregate_labels
from vda.options import Occlusion, Pseudo
from vda.policies import POLICIES, Confident
from vda.progress import progress

MANIFEST = "manifest.jsonl"
_WRITERS = 8  # threads; a file waits for the disk longer than it takes to compress


@dataclass(frozen=True)
class Generator:
    """What turns frames into predictions; the network gives logits at any resolution."""

    network: nn.Module
    flow: FlowSource
    settings: Pseudo
    occlusion: Occlusion
    device: torch.device


class Predicted(NamedTuple):
    """One frame: label [1, H, W] uint8 and confidence [1, H, W] float16, the same of P / theta where asked for, and the
    mean normalised entropy (0..1) of the network's own prediction."""

    label: Tensor
    confidence: Tensor
    relative: tuple[Tensor, Tensor] | None
    entropy: Tensor


def predictions(generator: Generator, clip: Clip, theta: Tensor | None = None) -> Iterator[Predicted]:
    """This process's frames of a clip in turn: argmax and max of the softmax, aggregated over the neighbours (Eq. 10)
    where the settings ask for it, and of the softmax divided by `theta` [K] where that is given.

    The neighbours of the first and the last of them are another process's too, and go through the network twice.
    """
    frames: dict[int, Tensor] = {}
    logits: dict[int, Tensor] = {}
    flows: dict[tuple[int, int], Tensor] = {}
    for i in distributed.share(range(len(clip))):
        near = [j for j in (i - 1, i, i + 1) if 0 <= j < len(clip)] if generator.settings.aggregate else [i]
        for j in near:
            if j not in logits:
                frames[j] = image_tensor(clip, j, generator.device)
                logits[j] = generator.network(frames[j])
        for j, k in pairwise(near):  # frame k wants the same pair from its end
            if (j, k) not in flows:
                both = torch.from_numpy(np.stack(both_ways(generator.flow, clip, j, k)))
                flows[j, k], flows[k, j] = both[:, None].to(generator.device)
        neighbours = [j for j in near if j != i]
        there, back = _stack([flows[i, j] for j in neighbours], like=frames[i][:, :2]), None
        if needs_back(generator.occlusion):
            back = _stack([flows[j, i] for j in neighbours], like=frames[i][:, :2])
        inputs = (
            logits[i],
            _stack([logits[j] for j in neighbours], like=logits[i]),
            visible_flow(there, back, generator.occlusion),
            frames[i],
            _stack([frames[j] for j in neighbours], like=frames[i]),
        )
        test = photometric(generator.occlusion)
        relative = None if theta is None else aggregate_labels(*inputs, **test, weight=(1 / theta).float())
        yield Predicted(*aggregate_labels(*inputs, **test), relative, min_entropy(logits[i]))
        frames.pop(i - 1, None)
        logits.pop(i - 1, None)
        flows.pop((i - 1, i), None)
        flows.pop((i, i - 1), None)


def image_tensor(clip: Clip, i: int, device: torch.device) -> Tensor:
    """Frame i as the network takes it: [1, 3, H, W] float32 in [0, 1]."""
    return torch.from_numpy(clip.frame(i)).to(device).permute(2, 0, 1)[None].float() / 255


def _stack(maps: list[Tensor], like: Tensor) -> Tensor:
    """[1, J, ...] of J maps [1, ...]; of none, J = 0 and the shape of `like`."""
    return torch.stack(maps, 1) if maps else like[:, None][:, :0]


def confident(generator: Generator, clip: Clip, theta: Tensor | None = None) -> tuple[Confident, list[float]]:
    """The predictions of this process's frames of a clip, and the entropy of each."""
    none = torch.empty(0, 0, 0, device=generator.device)  # a clip may have fewer frames than there are processes
    maps = [none.byte(), none.half()] * (1 if theta is None else 2)
    count = len(distributed.share(range(len(clip))))
    entropies = torch.empty(count, device=generator.device)
    for n, frame in enumerate(predictions(generator, clip, theta)):
        found = (frame.label, frame.confidence, *(frame.relative or ()))
        if n == 0:
            maps = [x.new_empty(count, *x.shape[1:]) for x in found]
        for whole, one in zip(maps, found, strict=True):
            whole[n] = one[0]
        entropies[n] = frame.entropy
    return Confident(*maps), entropies.tolist()


def portion_thresholds(generator: Generator, dataset: VideoDataset) -> Tensor:
    """Thresholds [K] of the whole set: per class, the confidence that the portion alpha of its pixels reaches (CBST).

    A class of which less than one pixel would pass, or that is never predicted, gets 1.
    """
    K = dataset.num_classes
    # beta = gamma = 0: no momentum, and the same portion for every class, so finish() is the plain order statistic.
    thresholds = ClassThresholds(
        K, alpha=generator.settings.alpha, beta=0.0, gamma=0.0, rule="portion", device=generator.device
    )
    for clip in progress(dataset.clips, desc="thresholds of the whole set", unit="clip"):
        for frame in predictions(generator, clip):
            thresholds.update(frame.confidence, frame.label)
    thresholds.histogram = distributed.total(thresholds.histogram)
    return thresholds.finish(torch.ones(K, device=generator.device, dtype=torch.float64))


# --- files


@dataclass
class PseudoLabels:
    """Written pseudo labels of a data set, as a label source for `Tubes`."""

    folder: Path
    manifest: list[dict[str, Any]]

    def __call__(self, clip: Clip, i: int) -> LabelMap:
        path, size, K = self.path(clip, i), self.manifest[0]["size"], len(self.theta)
        label = read_label(path)
        if list(label.shape) != size or not ((label < K) | (label == 255)).all():
            raise UsageError(f"{path}: wanted pseudo labels of {K} classes, {size[0]} x {size[1]}, found another image")
        return label

    def path(self, clip: Clip, i: int) -> Path:
        return self.folder / clip.name / f"{clip.frame_names[i]}.png"

    @property
    def theta(self) -> list[float]:
        """The thresholds [K] after the last clip."""
        return list(self.manifest[-1]["theta"])

    @property
    def coverage(self) -> float:
        """Labelled share of all pixels."""
        return sum(self._share("coverage"))

    @property
    def predicted(self) -> list[float]:
        """Share of all pixels [K] for which each class is the most likely one, labelled or not."""
        return self._share("predicted")

    def _share(self, what: str) -> list[float]:
        clips = self.manifest[1:]
        total = sum(c["frames"] for c in clips)
        return [sum(of) / total for of in zip(*([c["frames"] * x for x in c[what]] for c in clips), strict=True)]

    def entropy(self, clip: Clip, i: int) -> float:
        """Mean normalised entropy of the prediction of a frame, 0..1."""
        return self._entropies[clip.name][i]

    @cached_property
    def _entropies(self) -> dict[str, list[float]]:
        return {entry["clip"]: entry["entropy"] for entry in self.manifest[1:]}


def generate(
    generator: Generator, dataset: VideoDataset, folder: Path, *, model: str, flow_name: str, seed: int
) -> PseudoLabels:
    """Writes the pseudo labels of every frame of `dataset` under `folder` and returns them.

    model: hash of the weights, for the manifest. Clips are taken in an order shuffled by `seed`, since thresholds
    depend on it. Clips that the manifest already has are not done again, up to the first that lacks a file. Several
    processes call it together and need a folder that they share: each writes the labels of its frames, the first one
    the manifest.

    Raises UsageError where `folder` holds the labels of another model, flow, data set or setting.
    """
    settings = generator.settings
    head = {
        "format": 2,
        "model": model,
        "flow": flow_name if settings.aggregate else None,
        "dataset": dataset.name,
        "size": list(dataset.size),
        "classes": list(dataset.classes),
        "seed": seed,
        "settings": asdict(settings),
        "occlusion": asdict(generator.occlusion),
    }
    order = np.random.default_rng(seed).permutation(len(dataset.clips))
    manifest = distributed.by_first(_open_manifest, folder, head, [dataset.clips[c] for c in order])
    todo = order[len(manifest) - 1 :]
    generator.network.eval()
    with torch.inference_mode():
        theta = _thresholds_so_far(generator, dataset, manifest) if len(todo) else torch.empty(0)
        for c in progress(todo, desc="pseudo labels", unit="clip", initial=len(order) - len(todo), total=len(order)):
            entry, theta = _label(generator, dataset.clips[c], theta, folder, dataset.num_classes)
            manifest.append(entry)
            distributed.by_first(_write_manifest, folder, manifest)
    return PseudoLabels(folder, manifest)


def _label(generator: Generator, clip: Clip, theta: Tensor, folder: Path, K: int) -> tuple[dict[str, Any], Tensor]:
    """Writes the labels of one clip, whose maps are gone before the next; its line of the manifest, and theta to go on
    with."""
    policy = POLICIES[generator.settings.policy]
    found, entropies = confident(generator, clip, theta if policy.relative else None)
    labels, theta = policy.label(found, theta, generator.settings)
    kept = labels.cpu().numpy()
    paths = [folder / clip.name / f"{name}.png" for name in distributed.share(clip.frame_names)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        deque(pool.map(write_label, paths, kept), maxlen=0)  # raises what a writer raised
    # The sums below wait for all processes, which have written by then: the manifest vouches for the files of each.
    entry = {
        "clip": clip.name,
        "frames": len(clip),
        "theta": theta.tolist(),
        "coverage": _shares(kept, K),
        "predicted": _shares(found.label.cpu().numpy(), K),
        "entropy": list(chain(*distributed.gather(entropies))),
    }
    return entry, theta


def _thresholds_so_far(generator: Generator, dataset: VideoDataset, manifest: list[dict[str, Any]]) -> Tensor:
    """Thresholds [K] float64 before the next clip: those of the last one, or where there is none the policy's first."""
    if len(manifest) > 1:
        theta = torch.tensor(manifest[-1]["theta"], dtype=torch.float64)
    elif POLICIES[generator.settings.policy].set_wide:
        theta = portion_thresholds(generator, dataset)
    else:
        theta = torch.full((dataset.num_classes,), generator.settings.theta_init, dtype=torch.float64)
    return theta.to(generator.device)


def _shares(labels: NDArray[np.uint8], K: int) -> list[float]:
    """Share that each class has of the pixels of all processes."""
    counts = distributed.total(torch.from_numpy(np.bincount(labels.ravel(), minlength=256))).tolist()
    return [n / max(1, sum(counts)) for n in counts[:K]]


def _open_manifest(folder: Path, head: dict[str, Any], clips: list[Clip]) -> list[dict[str, Any]]:
    """What is done of the clips, which come in this order, or a new manifest."""
    path = folder / MANIFEST
    if not path.exists():
        _write_manifest(folder, [head])
        return [head]
    manifest = _read_manifest(path)
    for key, value in head.items():
        if manifest[0].get(key) != value:
            raise UsageError(
                f"{path}: these pseudo labels are of another {key}: wanted {value}, found {manifest[0].get(key)}"
            )
    return manifest[: 1 + _done(folder, manifest, clips)]


def _done(folder: Path, manifest: list[dict[str, Any]], clips: list[Clip]) -> int:
    """How many clips of a manifest are there, in their order, up to the first that lacks a file."""
    found = [entry["clip"] for entry in manifest[1:]]
    if found != [clip.name for clip in clips[: len(found)]]:
        raise UsageError(f"{folder / MANIFEST}: wanted the clips of the data set in their order, found others")
    labels = PseudoLabels(folder, manifest)
    for number, clip in enumerate(clips[: len(found)]):
        missing = [path for i in range(len(clip)) if not (path := labels.path(clip, i)).exists()]
        if missing:
            print(f"{missing[0]}: is missing; labelling {clip.name} and the clips after it anew", file=sys.stderr)
            return number
    return len(found)


def _read_manifest(path: Path) -> list[dict[str, Any]]:
    try:
        manifest = [_unsealed(json.loads(line)) for line in path.read_text().splitlines()]
        manifest[0]["model"], [(entry["theta"], entry["clip"]) for entry in manifest[1:]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: wanted a manifest of pseudo labels, found: {error!r}") from None
    return manifest


def _sealed(entry: dict[str, Any]) -> dict[str, Any]:
    """A line with its hash: thresholds that are changed by hand or by the disk would go on to every later clip."""
    return entry | {"sha256": _hash(entry)}


def _unsealed(entry: dict[str, Any]) -> dict[str, Any]:
    # lines of earlier versions have no hash
    if entry.pop("sha256", None) not in (None, _hash(entry)):
        raise ValueError("a line without its recorded hash")
    return entry


def _hash(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _write_manifest(folder: Path, manifest: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / MANIFEST, "".join(json.dumps(_sealed(entry)) + "\n" for entry in manifest).encode())


def read_labels(folder: Path) -> PseudoLabels | None:
    """The pseudo labels that lie in a folder, None where there are none; UsageError where their manifest is damaged."""
    path = folder / MANIFEST
    return PseudoLabels(folder, _read_manifest(path)) if path.exists() else None
