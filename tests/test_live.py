"""What a run shows while it trains: a line for every step, panels, TensorBoard; each once, also after a stop."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train
from vda import live
from vda.cli import Stopped
from vda.config import Config, digest
from vda.data.tubes import Batch, Mixed
from vda.errors import UsageError
from vda.live import CAPTION_HEIGHT, Row, panel, panel_rows, trim_log
from vda.methods.cbst import CBSTSettings
from vda.methods.supervised import SupervisedSettings
from vda.methods.vat import VATSettings
from vda.methods.vst import VSTSettings
from vda.options import Data, Flow, Network, Optimiser
from vda.progress import progress
from vda.run import Run

STEPS = 5
WITH_TENSORBOARD = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


def small(**changes: Any) -> Config:
    """Two methods on two clips of each domain, the second of them on batches of both."""
    steps = Optimiser(iterations=STEPS, batch=1, name="adam", lr=1e-3)
    return Config(
        device="cpu",
        checkpoint_every=2,
        snapshots=1,
        flow=Flow(provider="exact"),
        data=Data("embedded/simulator:2", "embedded/camera:2", None, "embedded/camera-val:2", size=(64, 96)),
        network=Network(name="deeplab-resnet18", width=8, batch_norm="train"),
        methods={"source_only": SupervisedSettings(optimiser=steps), "vat": VATSettings(optimiser=steps)},
        **changes,
    )


def log_of(run: Run, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder_of(name) / "log.jsonl").read_text().splitlines()]


def trained(config: Config, folder: Path) -> Run:
    run = Run(config, folder)
    for name in config.training:
        train.train_method(run, name)
    return run


class StopAt:
    """Requests a stop in the n-th training step, or raises as a crash would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, crash: bool) -> None:
        self.left, self.crash, self.step = at, crash, train.step
        monkeypatch.setattr(train, "step", self)

    def __call__(self, *arguments: Any) -> dict[str, float]:
        self.left -= 1
        if not self.left:
            if self.crash:
                raise RuntimeError("out of memory")
            os.kill(os.getpid(), signal.SIGTERM)
        return self.step(*arguments)


def stopped(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, *, crash: bool) -> Run:
    """A run that was stopped in the fourth step of its first method, and went on."""
    run = Run(config, folder)
    with monkeypatch.context() as patch:
        StopAt(patch, 4, crash)
        with pytest.raises(RuntimeError if crash else Stopped):
            train.train_method(run, "source_only")
    return trained(config, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never stopped."""
    return trained(small(), tmp_path_factory.mktemp("whole"))


# ---- the log


def test_every_step_has_a_line(whole: Run) -> None:
    lines = log_of(whole, "vat")
    assert [(line["phase"], line["iteration"]) for line in lines] == [("vat", k) for k in range(STEPS)]
    for line in lines:
        assert {"seg", "tube", "adv", "disc", "lr", "data_seconds", "seconds"} < line.keys()
        assert line["data_seconds"] >= 0
        assert line["seconds"] > 0
    poly = [1e-3 * (1 - k / STEPS) ** 0.9 for k in range(STEPS)]
    assert [line["lr"] for line in lines] == pytest.approx(poly)


@pytest.mark.parametrize("crash", [False, True])
def test_a_resumed_run_logs_every_step_once(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: bool
) -> None:
    again = stopped(small(), tmp_path, monkeypatch, crash=crash)
    for name in ("source_only", "vat"):
        one, other = log_of(whole, name), log_of(again, name)
        assert [line["iteration"] for line in other] == list(range(STEPS))
        for a, b in zip(one, other, strict=True):
            times = ("data_seconds", "seconds")
            assert {k: v for k, v in a.items() if k not in times} == {k: v for k, v in b.items() if k not in times}
        panels = [sorted((run.folder_of(name) / "panels").iterdir()) for run in (whole, again)]
        assert [[path.name for path in found] for found in panels] == [["step-000005.jpg"]] * 2
        assert panels[0][0].read_bytes() == panels[1][0].read_bytes()


def test_trimming_drops_later_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    trim_log(path, 3)
    assert path.read_text() == ""
    path.write_text("".join(f'{{"iteration": {k}}}\n' for k in (0, 1, 2, 3, 4)) + '{"iteration": 1, "se')
    trim_log(path, 3)
    assert path.read_text() == '{"iteration": 0}\n{"iteration": 1}\n{"iteration": 2}\n'


def test_waiting_and_computing_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 13.0, 13.5, 20.0, 21.0, 21.25, 30.0])  # asked, there, done; asked, there, done; asked
    monkeypatch.setattr(live.time, "perf_counter", lambda: next(clock))
    training = SimpleNamespace(folder=tmp_path, optimiser=Optimiser(iterations=9), method=SimpleNamespace(network=None))
    with live.Live(training, "p", small(), np.zeros((3, 3), np.uint8), 0) as shown:  # type: ignore[arg-type]
        for k in shown.timed(range(2)):
            shown.step(k, {"seg": 1.0}, None, None)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["data_seconds"], line["seconds"]) for line in lines] == [(3.0, 0.5), (1.0, 0.25)]


def test_losses_are_one_transfer_and_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.tensor(0.1))
    other = torch.nn.Parameter(torch.tensor(1 / 3, dtype=torch.float16))
    groups = [{"a": weight * 3, "b": weight.square()}, {"c": other * 1}]
    method = SimpleNamespace(losses=lambda source, target: iter(groups), modules=list)
    wanted = {name: float(value.detach()) for group in groups for name, value in group.items()}
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: pytest.fail("a wait for every loss"))
    assert train.step(method, {}, None, None) == wanted  # type: ignore[arg-type]
    monkeypatch.undo()
    groups = [{"a": weight * float("nan")}]
    with pytest.raises(UsageError, match=r"training diverged, losses \{'a': nan\}"):
        train.step(method, {}, None, None)  # type: ignore[arg-type]


def test_no_bar_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    steps = progress(range(3), desc="vat", unit="step")
    for _ in steps:
        steps.set_postfix({"seg": "1.000"}, refresh=False)
    lines = stream.getvalue().splitlines()
    assert lines
    assert lines[-1].startswith("vat: 100%")
    assert "seg=1.000" in lines[-1]
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


# ---- panels


class Third(torch.nn.Module):
    """Class 2 where red is above a half, else 0; in training mode everywhere 1. Half the resolution."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            return torch.tensor([0.0, 1.0, 0.0])[None, :, None, None].expand(len(images), 3, 4, 6)
        red = (images[:, 0, ::2, ::2] > 0.5).float()
        return torch.stack([1 - red, 0 * red - 1, red], 1)


PALETTE = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)


def batch(tubes: int = 1, labels: bool = True, part: int = 0, size: tuple[int, int] = (8, 12)) -> Batch:
    """Tubes whose left half is red, labelled 0, 1, .. by tube."""
    frames = torch.zeros(tubes, 2, 3, *size)
    frames[..., 0, :, : size[1] // 2] = 1
    numbers = torch.arange(tubes, dtype=torch.uint8)[:, None, None, None].expand(tubes, 2, *size)
    names = [[f"clip{k}/0", f"clip{k}/1"] for k in range(tubes)]
    return Batch(frames, numbers if labels else None, None, names, torch.tensor([0] * (tubes - 1) + [part]))


def parts_of(picture: np.ndarray, width: int = 12) -> list[np.ndarray]:
    """The pictures of the first row."""
    row = picture[CAPTION_HEIGHT : CAPTION_HEIGHT + 8]
    return [row[:, at : at + width] for at in range(0, row.shape[1], width)]


def test_a_panel_shows_frame_label_and_prediction() -> None:
    network = Third().train()
    picture = panel(
        network, [Row("source", "label", batch()), Row("target", "pseudo label", batch(labels=False))], PALETTE
    )
    assert network.training
    assert picture.shape == (2 * (CAPTION_HEIGHT + 8), 3 * 12, 3)
    frame, prediction, label = parts_of(picture)
    assert np.array_equal(frame[:, :6], np.broadcast_to([255, 0, 0], (8, 6, 3)))
    assert not frame[:, 6:].any()
    assert (label == PALETTE[0]).all()
    assert (prediction[:, :5] == PALETTE[2]).all()
    assert (prediction[:, 7:] == PALETTE[0]).all()
    # the second row has no label, so it ends earlier
    second = picture[8 + CAPTION_HEIGHT :]
    assert not second[:, 24:].any()
    assert np.array_equal(second[CAPTION_HEIGHT:, 12:24], prediction)
    assert picture[:CAPTION_HEIGHT].any()  # captions


def test_large_frames_are_shown_smaller_and_void_is_black() -> None:
    large = batch(size=(301, 1203))
    assert large.labels is not None
    unlabelled = Batch(large.frames, torch.full_like(large.labels, 255), None, large.names, large.part)
    picture = panel(Third(), [Row("target", "pseudo label", unlabelled)], PALETTE)
    assert picture.shape == (CAPTION_HEIGHT + 120, 3 * 480, 3)
    assert not picture[CAPTION_HEIGHT:, 960:].any()


def round_of(target: Any = None, ceiling: bool = False) -> Any:
    return SimpleNamespace(method=SimpleNamespace(ceiling=ceiling), target=target)


@pytest.mark.parametrize(
    ("training", "source", "target", "wanted"),
    [
        (round_of(), batch(), None, [("source", "label", 0)]),
        (round_of(), None, batch(), [("target", "pseudo label", 0)]),
        (round_of(), batch(), batch(labels=False), [("source", "label", 0), ("target", "pseudo label", 0)]),
        (round_of(ceiling=True), batch(), None, [("target", "label", 0)]),
        (round_of(object.__new__(Mixed)), None, batch(3, part=1), [("target", "pseudo label", 2)]),
        (round_of(object.__new__(Mixed)), None, batch(3, part=0), [("source", "label", 0)]),
        (round_of(), None, None, []),
    ],
)
def test_rows_are_called_what_they_are(training: Any, source: Any, target: Any, wanted: list[Any]) -> None:
    assert [(row.domain, row.label, row.tube) for row in panel_rows(training, source, target)] == wanted


@pytest.mark.parametrize(("every", "wanted"), [(2, [2, 4, 5]), (0, [])])
def test_panels_come_every_so_many_steps(tmp_path: Path, every: int, wanted: list[int]) -> None:
    run = trained(replace(small(panel_every=every), only=("source_only",)), tmp_path)
    found = sorted((run.folder_of("source_only") / "panels").glob("*"))
    assert [path.name for path in found] == [f"step-{step:06d}.jpg" for step in wanted]
    for path in found:
        with Image.open(path) as file:
            assert file.format == "JPEG"
            assert file.size == (3 * 96, CAPTION_HEIGHT + 64)


@pytest.mark.parametrize("settings", [CBSTSettings, VSTSettings])
def test_panels_change_no_number(tmp_path: Path, settings: Callable[..., Any]) -> None:
    """Batch norm in training mode, self-training with pseudo labels: the same losses with and without pictures."""
    steps = Optimiser(iterations=2, batch=2, name="adam", lr=1e-3)
    config = small()
    name = "cbst" if settings is CBSTSettings else "vst"
    config.methods.pop("vat")
    config.methods[name] = settings(start="source_only", rounds=1, optimiser=steps)
    with_panels, without = (trained(replace(config, panel_every=every), tmp_path / str(every)) for every in (1, 0))
    assert len([*with_panels.folder_of(name).glob("panels/*.jpg")]) == 2
    for method in config.methods:
        one, other = log_of(with_panels, method), log_of(without, method)
        for line in one + other:
            del line["seconds"], line["data_seconds"]
        assert one == other


def test_live_settings_do_not_decide_numbers() -> None:
    assert digest(small(panel_every=7, tensorboard=True)) == digest(small())
    with pytest.raises(UsageError, match="setting panel_every: wanted 0 or more, found -1"):
        small(panel_every=-1)


# ---- TensorBoard


def test_missing_tensorboard_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    with pytest.raises(UsageError, match=r'tensorboard: wanted the package, found none: pip install -e "\.\[tensor'):
        Run(small(tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Run(small(), tmp_path / "run")


@WITH_TENSORBOARD
@pytest.mark.parametrize("crash", [False, True])
def test_tensorboard_has_every_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: bool) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = stopped(small(tensorboard=True, panel_every=2), tmp_path, monkeypatch, crash=crash)
    for name in ("source_only", "vat"):
        board = EventAccumulator(str(run.folder_of(name)))
        board.Reload()
        lines = log_of(run, name)
        tags = {"lr", "seconds", "data_seconds", "loss/seg"}
        assert tags <= {*board.Tags()["scalars"]}
        for tag in tags:
            key = tag.rpartition("/")[2]
            points = board.Scalars(tag)
            assert [point.step for point in points] == list(range(STEPS))
            assert [point.value for point in points] == pytest.approx([line[key] for line in lines], rel=1e-6)
        assert [picture.step for picture in board.Images("panel")] == [1, 3, 4]  # counted from 0, as all points are
