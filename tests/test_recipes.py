"""Every recipe from its start to its scores on a piece of the embedded world, and rounds that go on after a stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import train
from vda.choice import scored
from vda.cli import Stopped
from vda.config import Config
from vda.data import open_dataset
from vda.errors import UsageError
from vda.options import Data
from vda.recipes import RECIPES, recipe
from vda.run import Run
from vda.tables import TABLES
from vda.tables import command as tables

# Two clips of each domain at the least size that the discriminators take twice over.
SMALL = Data(
    source="embedded/simulator:2", target="embedded/camera:2", validation="embedded/camera-val:2", size=(64, 96)
)


def small(name: str, steps: int = 2, first: int = 2, **changes: Any) -> Config:
    """A recipe of the embedded world with `steps` steps for every training, `first` for those from random weights."""
    config = recipe(name, "embedded")
    methods = {
        method: tables.scaled(settings, steps=steps if settings.start else first)
        for method, settings in config.methods.items()
    }
    network = replace(config.network, width=8)
    return replace(config, data=SMALL, network=network, methods=methods, device="cpu", snapshots=1, **changes)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all recipes of this file share what they have in common."""
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def chance() -> float:
    """The best mIoU of a network that sees nothing: one class everywhere."""
    data = open_dataset(SMALL.validation, None, SMALL.size)
    labels = np.stack([clip.label(i) for clip in data.clips for i in range(len(clip))])
    return max(float((labels == k).mean()) for k in range(data.num_classes)) / data.num_classes


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_ends_above_chance(name: str, shared: Path, chance: float) -> None:
    run = Run(small(name, steps=3, first=60), shared, shared=True)
    for method in run.config.training:
        train.train_method(run, method)
    scores = scored(run, run.config.training[-1])
    assert scores["frames"] == 24
    assert chance < scores["miou"] <= 1
    assert 0 <= scores["agreement"] <= 1
    assert 0 <= scores["entropy"] <= 1
    assert set(scores["rules"]) == {"last", "entropy", "agreement", "oracle"}


class Kill:
    """Sends the process SIGTERM at the n-th training step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.at, self.steps, self.step = at, 0, train.step
        monkeypatch.setattr(train, "step", self)

    def __call__(self, *arguments: Any) -> dict[str, float]:
        self.steps += 1
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.step(*arguments)


def weights(run: Run, method: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(run.folder_of(method).rglob("*.safetensors")):
        yield str(file.relative_to(run.folder_of(method))), load_file(file)


@pytest.mark.parametrize("name", ["cbst", "fda", "ccm"])
def test_rounds_go_on_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(name, steps=3)
    changes = {"rounds": 2} | ({"betas": (0.01, 0.09)} if name == "fda" else {})
    config.methods[name] = replace(config.methods[name], **changes)
    whole = Run(config, tmp_path / "whole", shared=True)
    for method in config.training:
        train.train_method(whole, method)
    for at in (2, 4):  # inside the first and the second training
        again = Run(config, tmp_path / f"stopped-{at}", shared=True)
        train.train_method(again, "source_only")
        with monkeypatch.context() as patch:
            Kill(patch, at)
            with pytest.raises(Stopped, match="stopped after step"):
                train.train_method(again, name)
        train.train_method(again, name)
        assert again.result(name).relative_to(again.folder) == whole.result(name).relative_to(whole.folder)
        found, wanted = dict(weights(again, name)), dict(weights(whole, name))
        last = {key for key in wanted if "step-000003" in key}
        assert len(last) >= 6
        for key in last:
            assert all((found[key][t] == wanted[key][t]).all() for t in wanted[key]), key


def test_a_table_from_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["1", "--rows", "source-only", "oracle", "--seeds", "0", "1", "--budget", "0.003", "--snapshots", "2"]
    small_world = ["--data.source", SMALL.source, "--data.target", SMALL.target, "--data.validation", SMALL.validation]
    line += [*small_world, "--data.size", "64", "96", "--network.width", "8", "--device", "cpu", "--out", "t"]
    tables.main(line, train.train_method)
    shown = capsys.readouterr().out
    assert "| Source-only |" in shown
    assert "34.02" in shown  # the paper's
    assert "±" in shown
    assert {f"table-1{part}.{suffix}" for part in ("", "-rules") for suffix in ("md", "csv", "tex")} <= {
        path.name for path in Path("t").iterdir()
    }
    before = {path: path.stat().st_mtime_ns for path in Path("t").rglob("*.safetensors")}
    tables.main(line, train.train_method)
    assert before == {path: path.stat().st_mtime_ns for path in Path("t").rglob("*.safetensors")}
    assert capsys.readouterr().out.count("already trained") == 4


def test_every_table_can_be_asked_for() -> None:
    for number in TABLES:
        for name in tables.TableCommand(number).recipes():
            assert name in RECIPES


def test_table_seven_measures_labels_at_a_proportion(shared: Path) -> None:
    run = Run(small("vat"), shared, shared=True)
    for method in run.config.training:
        train.train_method(run, method)
    labelling = small("ours").methods["vst"].pseudo
    for policy in ("class_balanced", "instance_adaptive", "clip_adaptive"):
        graded = tables.graded(run, policy, 0.4, labelling)
        assert graded["frames"] == 24
        assert abs(graded["proportion"] - 0.4) < 0.02, policy
        assert 0 <= graded["p_miou"] <= 1
        assert tables.graded(run, policy, 0.4, labelling) == graded


def test_unlabelled_data_cannot_be_learnt_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vda.data.synthetic import SyntheticClip

    monkeypatch.setattr(SyntheticClip, "label", lambda clip, i: None)
    with pytest.raises(UsageError, match="oracle: wanted labels of all frames, embedded/camera has none of camera-000"):
        Run(small("oracle"), tmp_path)
