"""Scores of a flow on numbers worked out by hand, and `vda flow-score` from data set to table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import ArrayClip, dataset, scrolling_clip
from shared import shared_data

from vda.__main__ import main
from vda.data.clip import Clip, FlowField
from vda.data.flow_files import write_flow
from vda.flow import weights
from vda.flow.flownet2 import build_estimator
from vda.flow.providers import DISFlow
from vda.flow.score_command import HEAD, choose_pairs, means
from vda.flow.scores import (
    PairScore,
    consistent_share,
    end_point_error,
    outliers,
    photometric_error,
    score_pair,
)

NAN = math.nan


def field(*vectors: tuple[float, float]) -> FlowField:
    """A flow [2, 1, n] of n pixels in a row."""
    return np.array(vectors, np.float32).T[:, None]


def grey(*values: int) -> np.ndarray:
    """An image [1, n, 3]."""
    return np.repeat(np.array(values, np.uint8)[None, :, None], 3, 2)


# ---- against the true flow ----


def test_end_point_error() -> None:
    flow, truth = field((3, 4), (1, 1), (-5, 2)), field((0, 0), (1, 1), (1, -6))
    assert end_point_error(flow, truth) == (5 + 0 + 10) / 3
    assert end_point_error(torch.from_numpy(flow)[None], truth[None]) == 5
    assert end_point_error(truth, truth) == 0


def test_unknown_pixels_are_left_out() -> None:
    truth = field((0, 0), (NAN, NAN), (2, math.inf), (0, 1), (7, 7))
    flow = field((3, 4), (9, 9), (9, 9), (0, 1), (NAN, 7))
    assert end_point_error(flow, truth) == 2.5
    assert outliers(flow, truth) == pytest.approx(2 / 3)  # 5 px, and the one whose estimate is unknown


def test_no_known_pixel_is_no_number() -> None:
    unknown = field((NAN, NAN), (NAN, 0))
    for score in (end_point_error, outliers):
        assert math.isnan(score(field((0, 0), (1, 1)), unknown))
    assert math.isnan(end_point_error(unknown, field((0, 0), (1, 1))))
    assert outliers(unknown, field((0, 0), (1, 1))) == 1


@pytest.mark.parametrize(
    ("length", "error", "wrong"),
    [(100, 4, False), (100, 6, True), (100, 5, False), (10, 2, False), (10, 3, False), (10, 3.5, True), (0, 4, True)],
)
def test_outliers_are_beyond_3_pixels_and_5_percent(length: float, error: float, wrong: bool) -> None:
    truth = field((0, length), (0, 0))
    flow = field((0, length + error), (0, 0))
    assert outliers(flow, truth) == (0.5 if wrong else 0)


# ---- by what it makes of the images ----


def test_photometric_error() -> None:
    image, neighbour = grey(10, 20, 30), grey(0, 10, 20)
    assert photometric_error(image, neighbour, field(*[(0, 0)] * 3)) == 10
    assert photometric_error(image, neighbour, field(*[(1, 0)] * 3)) == 0  # the last pixel leaves the frame
    assert photometric_error(image, neighbour, field((0.5, 0), (1, 0), (-1, 0))) == (5 + 0 + 20) / 3
    assert photometric_error(image, neighbour, field((0, 0), (NAN, 0), (0, math.inf))) == 10
    image[..., 0] += 3  # one colour of three
    assert photometric_error(image, neighbour, field(*[(1, 0)] * 3)) == 1


def test_flow_that_leaves_the_frame_leaves_no_error() -> None:
    image = grey(10, 20, 30)
    for away in ((3, 0), (-2.5, 0), (0, 0.5), (0, -1), (NAN, NAN)):
        assert math.isnan(photometric_error(image, image, field(*[away] * 3)))


def test_frames_of_networks() -> None:
    """[B, 3, H, W] in [0, 1] scores what uint8 does."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 6, 9, 3), dtype=np.uint8)
    flow = rng.normal(scale=2, size=(2, 6, 9)).astype(np.float32)
    tensors = [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images]
    wanted = photometric_error(images[0], images[1], flow)
    assert photometric_error(*tensors, torch.from_numpy(flow)) == pytest.approx(wanted, rel=1e-5)
    batch = [torch.stack([x, x]) for x in tensors]
    assert photometric_error(*batch, np.stack([flow, flow])) == pytest.approx(wanted, rel=1e-5)


def test_consistent_share() -> None:
    there, back = field(*[(1, 0)] * 4), field(*[(-1, 0)] * 4)
    assert consistent_share(there, back) == 0.75  # the last pixel leaves the frame
    assert consistent_share(there, there) == 0
    assert consistent_share(there * NAN, back) == 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: end_point_error(field((0, 0)), field((0, 0), (0, 0))), r"truth: wanted the shape \[1, 2, 1, 1\]"),
        (lambda: outliers(np.zeros((3, 4, 4)), np.zeros((3, 4, 4))), r"flow: wanted shape \[2, H, W\]"),
        (lambda: consistent_share(field((0, 0)), np.zeros((2, 2, 1))), "back: wanted the shape"),
        (lambda: photometric_error(grey(1), grey(1, 2), field((0, 0))), "neighbour: wanted the shape"),
        (lambda: photometric_error(grey(1), grey(2), field((0, 0), (0, 0))), r"flow: wanted shape \[1, 2, 1, 1\]"),
        (lambda: photometric_error(grey(1) / 255, grey(2), field((0, 0))), "frame: wanted a uint8 array"),
        (lambda: photometric_error(torch.zeros(1, 1, 3), grey(2), field((0, 0))), "frame: wanted a float tensor"),
    ],
)
def test_wrong_shapes_are_refused(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        call()


# ---- a provider on pairs ----


class Lazy(ArrayClip):
    """A clip that counts how often a frame is read."""

    reads = 0

    def frame(self, i: int) -> np.ndarray:
        self.reads += 1
        return super().frame(i)


def test_frames_are_read_before_the_clock_starts() -> None:
    scroll = scrolling_clip(shift=2)
    clip = Lazy("lazy", scroll.frames, flow=scroll.flow)
    seen: list[int] = []

    class Spy(DISFlow):
        def __call__(self, held: Clip, i: int, j: int) -> FlowField:
            seen.append(clip.reads)
            return super().__call__(held, i, j)

    found = score_pair(Spy(), clip, 1, 2)
    assert seen == [2, 2]
    assert (found.clip, found.i, found.j) == ("lazy", 1, 2)
    assert found.milliseconds > 0
    truth = clip.exact_flow(1, 2)
    assert truth is not None
    assert found.end_point_error == end_point_error(DISFlow()(clip, 1, 2), truth)


def test_pairs_are_spread_over_the_data_set() -> None:
    data = dataset(scrolling_clip("a", length=4), scrolling_clip("b", length=2), scrolling_clip("c", length=3))
    every = [(clip.name, i, j) for clip, i, j in choose_pairs(data, 1, None)]
    assert every == [("a", 0, 1), ("a", 1, 2), ("a", 2, 3), ("b", 0, 1), ("c", 0, 1), ("c", 1, 2)]
    assert [(clip.name, i) for clip, i, _ in choose_pairs(data, 1, 3)] == [("a", 0), ("a", 2), ("c", 0)]
    assert len(choose_pairs(data, 1, 99)) == 6
    assert [(clip.name, i, j) for clip, i, j in choose_pairs(data, 3, None)] == [("a", 0, 3)]


def test_means_are_over_the_pairs_that_have_the_score() -> None:
    scores = [
        PairScore("a", 0, 1, NAN, NAN, 2, 4, 0.5, 3),
        PairScore("b", 0, 1, 1, 0.5, 4, 5, NAN, 90),
        PairScore("c", 0, 1, 2, 0.0, NAN, 6, NAN, 2),
    ]
    assert means(scores) == {
        "end_point_error": 1.5,
        "outliers": 0.25,
        "photometric_error": 3,
        "without_flow": 5,
        "consistent_share": 0.5,
        "milliseconds": 3,
    }
    assert math.isnan(means(scores[:1])["end_point_error"])


# ---- the command ----


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, str], str]:
    """The row that `vda flow-score` prints, by column, and standard error."""
    assert main(["flow-score", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    head, rule, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines())
    assert tuple(head) == HEAD
    assert set("".join(rule)) == {"-", ":"}
    return dict(zip(head, row, strict=True)), err


SMALL = ("motion/val", "--size", 64, 96, "--limit", 5)


def test_exact_flow_has_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    row, _ = run(capsys, *SMALL, "--flow.provider", "exact")
    assert (row["provider"], row["pairs"], row["EPE"], row["Fl-all"]) == ("exact", "5", "0.00", "0.0 %")
    assert float(row["photometric error"]) < float(row["without flow"])
    assert float(row["consistent"].removesuffix(" %")) > 80


def test_numbers_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    row, _ = run(capsys, *SMALL, "--flow.provider", "dis", "--json", file)
    found = json.loads(file.read_text())
    assert (found["provider"], found["dataset"], found["size"]) == ("dis-medium", "motion/val", [64, 96])
    assert len(found["pairs"]) == 5
    for name, column in (("end_point_error", "EPE"), ("photometric_error", "photometric error")):
        mean = sum(pair[name] for pair in found["pairs"]) / 5
        assert found["mean"][name] == pytest.approx(mean)
        assert float(row[column]) == pytest.approx(mean, abs=0.006)
    assert 0 < found["mean"]["end_point_error"] < 2
    assert found["mean"]["photometric_error"] < found["mean"]["without_flow"]


def test_a_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Random weights: the numbers mean nothing, but are there."""
    torch.manual_seed(0)
    state = build_estimator("flownet2-s", 8).state_dict()
    file, _ = weights.save_weights(tmp_path / "w.safetensors", "flownet2-s", state, "")
    row, _ = run(capsys, *SMALL, "--flow.provider", "flownet2", "--flow.weights", file)
    assert row["provider"].startswith("flownet2-s-")
    assert "-" not in (row["EPE"], row["Fl-all"], row["photometric error"], row["consistent"])


def test_files_of_one_direction(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "val-00000").mkdir()
    write_flow(tmp_path / "val-00000" / "0-1.flo", np.zeros((2, 32, 48), np.float32))
    given = ("motion/val", "--size", 32, 48, "--limit", 1, "--flow.provider", "precomputed", "--flow.root", tmp_path)
    row, err = run(capsys, *given)
    assert row["photometric error"] == row["without flow"]
    assert row["consistent"] == "-"
    assert "not known for 1 of 1 pairs, which have no flow back: " in err
    assert "1-0: wanted a flow file" in err


def test_a_cache_is_scored_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = ("embedded/camera-val", "--size", "24", "40", "--flow.provider", "exact")
    assert main(["flow", *data, "-o", str(tmp_path)]) == 0
    capsys.readouterr()
    row, _ = run(capsys, *data, "--limit", 2, "--flow.cache", tmp_path)
    assert (row["provider"], row["Fl-all"]) == ("exact-tenths", "0.0 %")
    assert 0 < float(row["EPE"]) < 0.08  # tenths of a pixel


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["motion/val", "--step", "2"], "data set motion/val: pairs 2 apart want clips of at least 3 frames, the long"),
        (["motion/val", "--step", "0"], "vda flow-score: wanted --step of at least 1, got 0"),
        (["motion/val", "--limit", "0"], "vda flow-score: wanted --limit of at least 1, got 0"),
        (["motion/test"], "motion: wanted a split of train, val, found 'test'"),
        (["motion/val", "--flow.provider", "flownet2"], "--flow.provider flownet2: wanted --flow.weights"),
        (["motion/val", "--flow.provider", "precomputed"], "--flow.provider precomputed: wanted --flow.root"),
        (["motion/val", "--json", "nowhere/a.json"], "nowhere/a.json: wanted a file in a folder that exists"),
        (["pairs/all", "--root", "nowhere"], "pairs: wanted a folder of NAME_img"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flow-score", *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {sentence}")
    assert err.count("\n") == 1
    assert not out


def test_dis_explains_flying_chairs(capsys: pytest.CaptureFixture[str]) -> None:
    row, _ = run(capsys, "pairs/all", "--root", shared_data("flow"))  # each at its own size
    assert row["pairs"] == "2"
    assert float(row["photometric error"]) < 0.5 * float(row["without flow"])
    assert float(row["EPE"]) < 2.5


def test_dis_explains_driving_video(capsys: pytest.CaptureFixture[str]) -> None:
    row, _ = run(capsys, "camvid/sunny-15hz", "--root", shared_data("camvid"), "--limit", 3)
    assert (row["EPE"], row["Fl-all"]) == ("-", "-")
    assert float(row["photometric error"]) < 0.6 * float(row["without flow"])
