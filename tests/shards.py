"""What is done between trainings, for tests/test_shards.py: in one process, or in several started by torchrun.

    torchrun --nproc-per-node 3 tests/shards.py FOLDER

Every process leaves FOLDER/RANK.json: what it was given back, and how much it computed itself.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from clips import ArrayClip, dataset, scrolling_clip
from torch import Tensor, nn

import evaluate
from vda import choice, distributed, pseudo
from vda.config import Config
from vda.data.clip import Clip, FlowField, LabelMap, VideoDataset
from vda.data.labels import write_label
from vda.flow.cache import precompute
from vda.flow.providers import DISFlow
from vda.methods.ccm import CCMSettings
from vda.options import Data, Occlusion, Pseudo
from vda.policies import POLICIES
from vda.proportion import at_proportion
from vda.run import Run
from vda.scoring import Motion, score_predictions
from vda.source_selection import matched_source

PAIRS = 7
K, SIZE, LENGTHS, SEED = 3, (32, 48), (2, 9, 1, 5), 4  # more and fewer frames than processes
CPU = torch.device("cpu")


class Network(nn.Module):
    """Logits that are a fixed random function of the colour; counts the frames that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = 6 * torch.randn(K, 3, generator=torch.Generator().manual_seed(5))
        self.frames = 0

    def forward(self, images: Tensor) -> Tensor:
        self.frames += len(images)
        return torch.einsum("kc,nchw->nkhw", self.mix, images - 0.5)


class Flow(DISFlow):
    """DIS, which counts the pairs that it is asked for."""

    pairs = 0

    def both(self, clip: Clip, i: int, j: int) -> tuple[FlowField, FlowField]:
        self.pairs += 1
        return super().both(clip, i, j)


def noisy(name: str, length: int, seed: int) -> ArrayClip:
    """A moving picture whose colours differ from pixel to pixel, with true labels."""
    clip, rng = scrolling_clip(name, length, SIZE, K, seed=seed), np.random.default_rng(seed)
    frames = clip.frames + rng.integers(-25, 26, clip.frames.shape)
    return replace(clip, frames=np.clip(frames, 0, 255).astype(np.uint8))


def videos(*lengths: int, seed: int = 0) -> VideoDataset:
    return dataset(*(noisy(f"clip{n}", length, seed + n) for n, length in enumerate(lengths)), classes=K)


# --- pseudo labels

SETTINGS = list(itertools.product(POLICIES, (False, True)))


def labels(folder: Path, settings: Pseudo, target: VideoDataset, network: nn.Module) -> pseudo.PseudoLabels:
    generator = pseudo.Generator(network, DISFlow(), settings, Occlusion(), CPU)
    return pseudo.generate(generator, target, folder, model="m", flow_name="dis", seed=SEED)


def all_labels(folder: Path) -> dict[str, int]:
    """Of every policy, with and without aggregation; the frames that the network has seen for each."""
    seen = {}
    for policy, aggregate in SETTINGS:
        network, name = Network(), f"{policy}-{aggregate}"
        labels(folder / name, Pseudo(policy=policy, aggregate=aggregate, gamma=2.0), videos(*LENGTHS), network)
        seen[name] = network.frames
    return seen


def labels_after_a_stop(folder: Path, whole: Path) -> int:
    """Of a folder that a run has left after two clips and a half; the frames that the network has still seen."""

    def leave_half() -> None:
        shutil.copytree(whole, folder)
        manifest = (folder / "manifest.jsonl").read_text().splitlines(keepends=True)
        (folder / "manifest.jsonl").write_text("".join(manifest[:3]))
        later = [json.loads(line)["clip"] for line in manifest[3:]]
        shutil.rmtree(folder / later[-1])
        min((folder / later[0]).glob("*.png")).unlink()

    distributed.by_first(leave_half)
    network = Network()
    labels(folder, Pseudo(policy="clip_adaptive", aggregate=True, gamma=2.0), videos(*LENGTHS), network)
    return network.frames


# --- flow


def flow(folder: Path) -> dict[str, list[int]]:
    """Pairs that each of three calls reports and computes here: all, those that were removed, none."""

    def remove() -> None:
        for path in sorted((folder / "clip1").glob("*.npy"))[::3]:
            path.unlink()

    found: dict[str, list[int]] = {"reported": [], "computed": []}
    for prepare in (lambda: None, remove, lambda: None):
        distributed.by_first(prepare)
        provider = Flow()
        found["reported"].append(precompute(provider, videos(*LENGTHS), folder, steps=(1, 2)))
        found["computed"].append(provider.pairs)
    return found


# --- scores


def scores() -> dict[str, Any]:
    """Of data sets with more and with fewer clips than processes, with TC; and what is said without labels."""
    seen = []

    def predict(clip: Clip, i: int) -> LabelMap:
        seen.append(i)
        rng, label = np.random.default_rng([len(clip), i]), clip.label(i)
        assert label is not None
        return np.where(rng.random(SIZE) < 0.2, rng.integers(0, K, SIZE), label).astype(np.uint8)

    found: dict[str, Any] = {"one clip": score_predictions(predict, videos(20), motion=Motion(DISFlow()))}
    seen.clear()
    found["scores"] = score_predictions(predict, videos(*LENGTHS), motion=Motion(DISFlow()))
    network, common = Network(), {"device": CPU, "flow": DISFlow(), "config": Config()}
    for name, target in (("without labels", videos(*LENGTHS)), ("lone frames", videos(1, 1))):
        run: Any = SimpleNamespace(target=target, **common)
        found[name] = choice.without_labels(run, network, pairs=PAIRS)
    return found | {"frames scored": len(seen), "frames seen": network.frames}


def evaluated(folder: Path) -> None:
    """evaluate.py on two folders of label images, with TC and all files."""
    target, rng = videos(*LENGTHS), np.random.default_rng(0)

    def predict() -> None:
        for name, clip in itertools.product(("good", "bad"), target.clips):
            for frame, label in zip(clip.frame_names, clip.labels, strict=True):
                wrong = rng.random(label.shape) < (0.1 if name == "good" else 0.4)
                write_label(folder / name / clip.name / f"{frame}.png", np.where(wrong, 0, label).astype(np.uint8))

    distributed.by_first(predict)
    evaluate.open_dataset = lambda *_: target  # type: ignore[assignment]
    names = (Path("good"), Path("bad"))  # the same words in every report, wherever the folder is
    os.chdir(folder)
    evaluate.evaluate(evaluate.Evaluate(names, "arrays/all", device="cpu", flow="dis", out=Path("compared")))


# --- CCM's selection, and labels at a proportion


class Target(Run):
    """A run without trainings, whose labels are those of `Network`."""

    def __init__(self, folder: Path) -> None:
        self.config = Config(data=Data(size=SIZE))
        self.folder, self.device = folder, CPU
        self.target, self.source = videos(*LENGTHS), videos(6, 9, 4, seed=20)

    def pseudo_labels(self, folder: Path, models: Sequence[Path], settings: Pseudo) -> pseudo.PseudoLabels:
        return labels(folder / "pseudo", settings, self.target, Network())


def selection(folder: Path) -> dict[str, Any]:
    """The chosen tubes, which two calls choose: the second one reads what the first has written."""
    run, settings, network = Target(folder), CCMSettings(pool=0.8, matched=0.5), Network()
    given = run.pseudo_labels(folder, [], settings.pseudo)
    twice = [matched_source(run, settings, network, given, folder / "source", 0) for _ in range(2)]
    chosen = [[(clip.name, list(indices)) for clip, indices in tubes.tubes] for tubes in twice]
    return {"chosen": chosen, "frames seen": network.frames}


def proportion(folder: Path) -> list[dict[str, Any]]:
    return [at_proportion(Target(folder), folder, Pseudo(beta=0.0, gamma=0.0), 0.4, folder) for _ in range(2)]


def everything(folder: Path) -> None:
    whole = folder / "labels"
    found = {
        "labels": all_labels(whole),
        "labels after a stop": labels_after_a_stop(folder / "stopped", whole / "clip_adaptive-True"),
        "flow": flow(folder / "flow"),
        "scores": scores(),
        "selection": selection(folder / "ccm"),
        "proportion": proportion(folder / "proportion"),
    }
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(found))
    evaluated(folder / "evaluated")


if __name__ == "__main__":
    distributed.start("cpu")
    everything(Path(sys.argv[1]))
    distributed.leave()
