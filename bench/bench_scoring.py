"""Scoring of decoded predictions: the joint histogram from which scores come, and whole passes over a data set.

Beside a pass stands the decoding of what it is given, the label and the predicted label of a frame. `scores` is
everything that `evaluate.py` counts without optical flow; `VPQ^s` alone is timed on as many frames as Cityscapes-VPS
has for validation, 50 clips of 6 labelled frames.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import inputs, work
from bench.harness import Bench, Beside, Call, Prepare, call
from vda.data.labels import read_label, write_label
from vda.metrics import Scorer, VideoPanopticQuality, joint_histogram

K = 19
FRAMES = 6  # labelled frames of a clip
CLIPS = 50


def clip(H: int, W: int) -> tuple[Tensor, Tensor]:
    """Predictions and labels [FRAMES, H, W] uint8: patches, a tenth of the pixels predicted otherwise, some void."""
    confidence, label = inputs.predictions(K, H, W, count=FRAMES)
    pred = torch.where(confidence < confidence.flatten()[:: H + 1].quantile(0.1), (label + 1) % K, label)
    label = label.clone()
    label[:, H - H // 20 :] = 255
    return pred.contiguous(), label


def histogram(pred: Tensor, label: Tensor) -> Tensor:
    return torch.from_numpy(joint_histogram(pred.numpy(), label.numpy(), K))


def bincount(pred: Tensor, label: Tensor) -> Tensor:
    """As every scoring script has it; with a row and a column for void."""
    side = K + 1
    place = label.clamp(max=K).long() * side + pred.clamp(max=K)
    return torch.bincount(place.flatten(), minlength=side * side).view(side, side)


def numpy_bincount(pred: Tensor, label: Tensor) -> Tensor:
    """The same in NumPy."""
    side = K + 1
    place = np.minimum(label.numpy(), K).astype(np.int64) * side + np.minimum(pred.numpy(), K)
    return torch.from_numpy(np.bincount(place.ravel(), minlength=side * side).reshape(side, side))


ROWS = {"ours": call(histogram), "torch": call(bincount), "np.bincount": call(numpy_bincount)}


@pytest.mark.cpu_only
@pytest.mark.parametrize("row", ROWS)
def test_joint_histogram(bench: Bench, row: str) -> None:
    H, W = bench.size(1024, 2048)
    bench.case("joint_histogram", f"K={K} {H}×{W}", work.joint_histogram(H * W), "uint8")
    pred, label = clip(H, W)
    bench.time(ROWS, pred[0], label[0])


def scores(clips: int) -> Prepare:
    """All scores without flow, of the same clip so many times."""

    def prepare(pred: Tensor, label: Tensor) -> Call:
        def run() -> Tensor:
            scorer = Scorer([str(k) for k in range(K)])
            for number in range(clips):
                for frames in zip(pred.numpy(), label.numpy(), strict=True):
                    scorer.add_frame(*frames)
                scorer.end_clip(str(number))
            return torch.tensor(scorer.scores()["confusion"])

        return run

    return prepare


def vpq(clips: int) -> Prepare:
    """VPQ^s of the same clip so many times."""

    def prepare(pred: Tensor, label: Tensor) -> Call:
        def run() -> Tensor:
            quality = VideoPanopticQuality(K)
            for _ in range(clips):
                quality.add_clip(pred.numpy(), label.numpy())
            return torch.from_numpy(quality.per_window()).nan_to_num()

        return run

    return prepare


@pytest.mark.cpu_only
@pytest.mark.parametrize("row", ["ours"])
@pytest.mark.parametrize(("op", "passes", "clips"), [("scores", scores, 2), ("VPQ^s", vpq, CLIPS)])
def test_pass(bench: Bench, op: str, passes: Callable[[int], Prepare], clips: int, row: str, tmp_path: Path) -> None:
    H, W = bench.size(1024, 2048)
    pred, label = clip(H, W)
    for name, image in (("pred", pred[0]), ("label", label[0])):
        write_label(tmp_path / f"{name}.png", image.numpy())
    files = sorted(tmp_path.glob("*.png"))
    beside = Beside("decoding of both PNGs", lambda: [read_label(file) for file in files], 1, clips * FRAMES)
    bench.case(op, f"K={K} {clips}×{FRAMES}×{H}×{W}", kind="uint8", beside=beside)
    bench.time({"ours": passes(clips)}, pred, label)
