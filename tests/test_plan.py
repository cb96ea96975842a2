"""`python -m vda plan`: rounds are measured with the run's own code and multiplied rightly, and nothing stays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vda.__main__ import main
from vda.config import Config, load_yaml
from vda.data import open_dataset
from vda.errors import UsageError
from vda.methods import METHODS, Method, Round
from vda.options import Optimiser
from vda.plan import command, measure, memory
from vda.plan.command import duration, read_config, size, table
from vda.plan.measure import Estimate
from vda.plan.sample import sample

TINY = """
recipe: tiny
flow: {provider: exact}
checkpoint_every: 500
device: cpu
data: {source: embedded/simulator, target: embedded/camera, validation: embedded/camera-val, size: [32, 64]}
network: {name: deeplab-resnet18, width: 8, batch_norm: train}
snapshots: 4
methods:
  source_only: {optimiser: {iterations: 1000, batch: 1, name: adam, lr: 0.001}}
  ccm: {rounds: 2, optimiser: {iterations: 300, batch: 2, name: adam, lr: 0.0001}}
  intrada: {start: source_only, optimiser: {iterations: 1001, batch: 1, name: adam, lr: 0.0001}}
only: [ccm, intrada]
"""


def test_a_plan_of_rounds_labels_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert main(["plan", "tiny.yaml"]) == 0
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in out.splitlines() if line.startswith("|")]
    names = ["ccm/round-1", "ccm/round-2", "ccm scoring", "intrada", "intrada scoring", "the run"]
    assert [row[0] for row in rows[2:]] == names  # source_only is trained, since ccm starts from it, but not asked for
    assert [row[1] for row in rows[2:]] == ["300", "300", "", "1,001", "", "1,601"]
    assert all(row[-2].endswith(" MB") or row[-2].endswith(" GB") for row in rows[2:])
    assert "Measured on the cpu" in out
    assert "pseudo labels cover" in err  # what the rounds say is not in the table
    assert not list((tmp_path / "temporary").glob("vda-plan-*"))
    assert [p.name for p in tmp_path.iterdir() if p.name != "temporary"] == ["tiny.yaml"]


# --- arithmetic, on a clock of its own


class Toy(Method):
    """A step takes 3 s and a frame 0.5 s, by the clock of the test."""

    title = "toy"

    def losses(self, source: Any, target: Any) -> Iterator[Any]:
        raise NotImplementedError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(measure, "time", clock)
    monkeypatch.setattr("vda.plan.sample.time", clock)
    return clock


def test_numbers_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> None:
    """24 clips of 12 frames, of which 24 frames are looked at: 12 times as many."""
    config = Config(device="cpu", snapshots=4, checkpoint_every=400)
    target = open_dataset("embedded/camera", None, (32, 64))
    part = sample(target, 24, 3)
    parts = {"target": part}
    run: Any = SimpleNamespace(
        config=replace(config, methods={"vst": METHODS["vst"].settings_type()}),
        device=torch.device("cpu"),
        folder=tmp_path,
        folder_of=lambda name: tmp_path / name,
        finish=lambda name, result: None,
    )

    def rounds(run: Any, settings: Any, folder: Path) -> Iterator[Round]:
        clock.now += 2.0  # a network is built
        for clip in part.dataset.clips:
            for i in range(len(clip)):
                clip.frame(i)
                clock.now += 0.5
        (folder / "pseudo").mkdir(parents=True)
        (folder / "pseudo" / "0.png").write_bytes(bytes(10))
        yield Round(folder, Toy(torch.nn.Identity()), Optimiser(iterations=1000), None, None)
        clock.now += 7.0  # something behind the last round

    def fit(run: Any, name: str, training: Round) -> None:
        assert training.optimiser.iterations == 8
        for k in range(8):
            with pytest.raises(NotImplementedError):
                training.method.losses(None, None)
            clock.now += 100.0 if k == 0 else 3.0  # the first one compiles something
        clock.now += 1.5  # the checkpoint
        step = training.folder / "step-000008"
        step.mkdir()
        (step / "network.safetensors").write_bytes(bytes(1000))

    monkeypatch.setattr(METHODS["vst"], "rounds", rounds)
    monkeypatch.setattr(measure, "latest", lambda folder: folder / "step-000008")
    (row,) = measure._training(run, "vst", parts, fit)
    assert (row.name, row.steps, row.step) == ("vst", 1000, 3.0)
    assert row.before == 2.0 + 12 * 12.0 + 7.0
    # snapshots after 250, 500, 750, 1000 and checkpoints after 400, 800: six times 1.5 s, all of them kept
    assert row.saving == 6 * 1.5
    assert row.disk == 6 * 1000 + 12 * 10
    assert row.seconds == 153.0 + 3000.0 + 9.0
    assert row.memory > 1e7


def test_sample_takes_whole_beginnings_and_counts_reads() -> None:
    whole = open_dataset("embedded/camera", None, (32, 64))
    part = sample(whole, 24, 3)
    assert [len(clip) for clip in part.dataset.clips] == [12, 12]
    assert part.factor == 12.0
    short = sample(replace(whole, clips=whole.clips[:1]), 5, 3)
    assert [len(clip) for clip in short.dataset.clips] == [5]
    (clip,) = short.dataset.clips
    assert np.array_equal(clip.frame(4), whole.clips[0].frame(4))
    assert clip.frame_names == whole.clips[0].frame_names[:5]
    assert np.array_equal(clip.label(1), whole.clips[0].label(1))
    assert np.array_equal(clip.exact_flow(0, 1), whole.clips[0].exact_flow(0, 1))
    assert clip.name == whole.clips[0].name
    assert len(short.reads) == 1
    assert [len(clip) for clip in sample(whole, 5, 7).dataset.clips] == [7]  # a tube fits


def test_peak_is_that_of_the_part() -> None:
    if not memory._CLEAR.exists():
        pytest.skip("the peak of a part of a program is read from Linux's /proc")
    device = torch.device("cpu")
    block = np.ones(400_000_000, np.uint8)  # far more than the system takes from a process that stands still
    memory.reset(device)
    with_block = memory.peak(device)
    del block
    memory.reset(device)
    without = memory.peak(device)
    assert 250e6 < with_block - without < 550e6
    block = np.ones(300_000_000, np.uint8)
    del block
    assert 150e6 < memory.peak(device) - without < 450e6


def test_table_sums_times_and_disk_and_takes_the_largest_memory() -> None:
    rows = [
        Estimate("a", 1000, 0.25, 60.0, 5.0, 2_000_000_000, 3_000_000),
        Estimate("a scoring", 0, 0.0, 45.0, 0.0, 1_500_000_000, 0),
    ]
    lines = table(rows, Config(device="cpu")).splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines[:5]]
    assert cells[2] == ["a", "1,000", "0.250", "1 min 00 s", "4 min 10 s", "5.0 s", "5 min 15 s", "2 GB", "3 MB"]
    assert cells[3] == ["a scoring", "", "", "45.0 s", "0.0 s", "0.0 s", "45.0 s", "1.5 GB", "-"]
    assert cells[4] == ["the run", "1,000", "", "1 min 45 s", "4 min 10 s", "5.0 s", "6 min 00 s", "2 GB", "3 MB"]
    assert len({len(line) for line in lines[:5]}) == 1


def test_durations_and_sizes() -> None:
    texts = {
        0: "0.0 s",
        59.94: "59.9 s",
        60: "1 min 00 s",
        3599.6: "1 h 00 min",
        3661: "1 h 01 min",
        172_800: "2 d 00 h",
    }
    assert {value: duration(value) for value in texts} == texts
    texts = {0: "-", 512: "512 B", 1234: "1.23 kB", 999_700: "1 MB", 4.5e9: "4.5 GB", 7e12: "7 TB"}
    assert {value: size(value) for value in texts} == texts


# --- at the door


def test_names_are_those_of_train(tmp_path: Path) -> None:
    assert read_config([]).recipe == read_config(["embedded"]).recipe == "embedded"
    assert read_config(["--seed", "3"]).seed == 3
    by_name, in_full = read_config(["cbst", "--seed", "3"]), read_config(["recipe", "cbst", "--seed", "3"])
    assert by_name == in_full
    assert [*by_name.methods][-1] == "cbst"
    assert read_config(["cbst", "--data", "camvid"]).data.source.startswith("camvid")
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert read_config([str(tmp_path / "tiny.yaml")]) == load_yaml(tmp_path / "tiny.yaml", Config())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["cbts"], "cbst"),
        (["table", "3"], "vda plan: wanted a recipe, a scenario or a file, found table"),
        (["camvid"], "wanted the folder of the data set as its root, found none given"),
        (["none.yaml"], "none.yaml: wanted a YAML file of settings"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not list(tmp_path.iterdir())


def test_help_names_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    out = capsys.readouterr().out
    assert "cbst" in out
    assert "temporary folder" in out


def test_without_a_checkout_there_is_no_training_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "__file__", str(tmp_path / "vda" / "plan" / "command.py"))
    with pytest.raises(UsageError, match=r"train\.py: wanted the training loop beside the package"):
        command.training_loop()


def test_checkpoints_are_counted_as_train_keeps_them() -> None:
    assert command.training_loop().__globals__["KEEP_CHECKPOINTS"] == measure._KEPT
