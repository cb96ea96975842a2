"""The choice of a snapshot: entropy and agreement worked out by hand on clips of known flow, and the rules."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clips import ArrayClip, dataset
from torch import Tensor, nn

from vda import choice
from vda.config import Config
from vda.data.clip import Clip, FlowField
from vda.options import Occlusion

H, W = 4, 10


class BlueNet(nn.Module):
    """P = (3/4, 1/4) where blue is at most 100 of 255, the other way round where it is more."""

    def forward(self, images: Tensor) -> Tensor:
        first = images[:, 2] < 100.5 / 255
        p = torch.where(first, 0.75, 0.25)
        return torch.stack([p, 1 - p], 1).log()


def flow(clip: Clip, i: int, j: int) -> FlowField:
    known = clip.exact_flow(i, j)
    assert known is not None
    return known


def moving_clip(name: str = "moving", other: int = 4) -> ArrayClip:
    """Two frames; what is at x in the first is at x - 2 in the second.

    Of the 4 x 10 pixels of the first frame 32 stay in the picture. Two of those are covered in the second frame, by
    another colour. `other` more have another class there, by one level of blue that the test of colours forgives.
    """
    frames = np.full((2, H, W, 3), 100, np.uint8)
    frames[1, 1, :2] = 200
    frames[1, 0, :other, 2] = 101
    return ArrayClip(name, frames, flow=(-2.0, 0.0))


def run_on(*clips: ArrayClip, occlusion: Occlusion | None = None) -> Any:
    config = SimpleNamespace(occlusion=occlusion or Occlusion(), seed=0)
    return SimpleNamespace(target=dataset(*clips, classes=2), device=torch.device("cpu"), flow=flow, config=config)


NORMALISED = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)


def test_agreement_by_hand() -> None:
    """30 pixels are shown, 26 of them keep their class."""
    found = choice.without_labels(run_on(moving_clip()), BlueNet())
    assert found == {"agreement": pytest.approx(26 / 30), "entropy": pytest.approx(NORMALISED, rel=1e-5)}


def test_pixels_of_all_clips_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair of each clip: 26 of 30 and 22 of 30; and of a clip whose flow leads out of the picture, none of none."""
    monkeypatch.setattr(choice, "PAIRS", 3)
    gone = ArrayClip("gone", np.full((2, H, W, 3), 100, np.uint8), flow=(float(W), 0.0))
    found = choice.without_labels(run_on(moving_clip("a"), gone, moving_clip("b", other=8)), BlueNet())
    assert found["agreement"] == pytest.approx(48 / 60)
    assert choice.without_labels(run_on(gone), BlueNet())["agreement"] == 0


def test_the_flow_goes_from_the_frame_to_its_successor() -> None:
    """The right way round all agree; with the flow of the other direction stripes meet stripes of another class."""
    stripes = np.full((2, H, W, 3), 100, np.uint8)
    stripes[0, :, ::2, 2] = stripes[1, :, 1::2, 2] = 101
    right = choice.without_labels(run_on(ArrayClip("right", stripes, flow=(-1.0, 0.0))), BlueNet())
    still = choice.without_labels(run_on(ArrayClip("still", stripes, flow=(0.0, 0.0))), BlueNet())
    assert (right["agreement"], still["agreement"]) == (1.0, 0.0)
    stripes[0, :, 0, 2] = 100  # a class that only the column has that leaves the picture to the left
    assert choice.without_labels(run_on(ArrayClip("left", stripes, flow=(-1.0, 0.0))), BlueNet())["agreement"] == 1.0
    assert choice.without_labels(run_on(ArrayClip("wrong", stripes, flow=(1.0, 0.0))), BlueNet())["agreement"] < 1.0


def test_the_occlusion_test_is_that_of_the_settings() -> None:
    """Consistency asks the flow back, which here knows of no cover: the two covered pixels count, and disagree."""
    found = choice.without_labels(run_on(moving_clip(), occlusion=Occlusion(test="consistency")), BlueNet())
    assert found["agreement"] == pytest.approx(26 / 32)


def test_agreement_is_at_the_size_of_the_frames() -> None:
    """A network that puts out a quarter of the resolution."""

    class Coarse(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 2, 1, 3)

    found = choice.without_labels(run_on(moving_clip()), Coarse())
    assert found == {"agreement": 1.0, "entropy": pytest.approx(1.0)}


def test_clips_of_one_frame_have_no_pair() -> None:
    lone = ArrayClip("lone", np.zeros((1, H, W, 3), np.uint8))
    assert choice.without_labels(run_on(lone), BlueNet()) == {}


def test_a_network_is_compared_in_evaluation_mode() -> None:
    network = nn.Sequential(BlueNet(), nn.Dropout(0.9)).train()
    assert choice.without_labels(run_on(moving_clip()), network)["agreement"] == pytest.approx(26 / 30)


# ---- the rules


def scored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, snapshots: Sequence[dict[str, Any]], digest: str = "d"
) -> tuple[dict[str, Any], int]:
    """`choice.scored` over given snapshots, and how many of them it looked at."""
    looked: list[int] = []

    def snapshot(run: Any, name: str, step: int) -> dict[str, Any]:
        looked.append(step)
        return {"model": f"{digest}{step}", **snapshots[step]}

    newest = len(snapshots) - 1
    last = SimpleNamespace(digest=f"{digest}{newest}", step=newest, path=folder / "newest")
    monkeypatch.setattr(choice, "_snapshot", snapshot)
    monkeypatch.setattr(choice, "checkpoints", lambda folder, steps: [n for n in range(len(snapshots)) if n in steps])
    monkeypatch.setattr(choice, "load_checkpoint", int)
    monkeypatch.setattr(choice, "snapshots", lambda step, count: set(range(step + 1)))
    run = SimpleNamespace(result=lambda name: folder, checkpoint=lambda folder: last, config=Config())
    found = choice.scored(run, "vat")  # type: ignore[arg-type]
    return found, len(looked)


SNAPSHOTS = [
    {"entropy": 0.2, "agreement": 0.9, "miou": 0.1},
    {"entropy": 0.1, "agreement": 0.8, "miou": 0.3},
    {"entropy": 0.3, "agreement": 0.7, "miou": None},
    {"entropy": 0.2, "agreement": 0.8, "miou": 0.2},
]


def test_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, looked = scored(tmp_path, monkeypatch, SNAPSHOTS)
    assert looked == 4
    chosen = {rule: scores["model"] for rule, scores in found["rules"].items()}
    assert chosen == {"last": "d3", "entropy": "d1", "agreement": "d0", "oracle": "d1"}
    assert all(scores["rule"] == rule for rule, scores in found["rules"].items())
    assert (found["model"], found["miou"]) == ("d3", 0.2)  # the headline is the last


def test_scores_are_kept_with_their_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = scored(tmp_path, monkeypatch, SNAPSHOTS)
    again, looked = scored(tmp_path, monkeypatch, SNAPSHOTS)
    assert looked == 0
    assert again == first == json.loads((tmp_path / "scores.json").read_text())
    other, looked = scored(tmp_path, monkeypatch, SNAPSHOTS[:2], digest="e")
    assert looked == 2
    assert other["model"] == "e1"


def test_without_neighbours_nothing_is_chosen_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lone = [{"miou": 0.3}, {"miou": 0.2}]
    found, _ = scored(tmp_path, monkeypatch, lone)
    assert {rule: scores["model"] for rule, scores in found["rules"].items()} == {"last": "d1", "oracle": "d0"}


def test_snapshots_are_evenly_spaced_and_end_with_the_last() -> None:
    assert choice.snapshots(4000, 4) == {1000, 2000, 3000, 4000}
    assert choice.snapshots(10, 4) == {3, 5, 8, 10}
    assert choice.snapshots(2, 4) == {1, 2}
    assert choice.snapshots(7, 1) == {7}
