"""Training of a flow network: the loss by hand, and `python train.py flow` from its start to weights in use."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vda.data import open_dataset
from vda.data.tubes import Batch, known_flow
from vda.flow.flownet2 import UNIT, build_estimator, normalised
from vda.flow.providers import provider
from vda.methods.flow import FlowTraining, multi_scale_error
from vda.options import Flow

ROOT = Path(__file__).parents[1]
NAN = math.nan


def constant(u: float, v: float, H: int, W: int) -> Tensor:
    return torch.tensor([u, v]).view(1, 2, 1, 1).expand(1, 2, H, W).clone()


def test_error_by_hand() -> None:
    truth = constant(3 * UNIT, 4 * UNIT, 64, 128)  # an end-point error of 5 against zero
    pyramid = [torch.zeros(1, 2, 64 >> level, 128 >> level) for level in (2, 3, 4, 5, 6)]
    weights = [0.32, 0.16, 0.08, 0.04, 0.02]
    assert multi_scale_error(pyramid, truth).item() == pytest.approx(5 * sum(weights))
    pyramid[0] = constant(3, 4, 16, 32)
    assert multi_scale_error(pyramid, truth).item() == pytest.approx(5 * sum(weights[1:]))


def test_cells_count_where_half_of_them_is_known() -> None:
    truth = constant(UNIT, 0, 64, 64)
    truth[..., :32] = NAN
    truth[..., 1, :, 40:] = NAN  # one component is enough to be unknown: 8 of 64 columns are left
    pyramid = [torch.zeros(1, 2, 16, 16)]
    assert multi_scale_error(pyramid, truth).item() == pytest.approx(0.32)  # the mean over what is known
    assert multi_scale_error([torch.zeros(1, 2, 1, 1)], truth).item() == 0  # an eighth of the one cell
    truth[:] = NAN
    assert multi_scale_error(pyramid, truth).item() == 0


def test_sides_that_are_no_multiple_of_64_and_gradients() -> None:
    truth = constant(UNIT, 0, 40, 70)
    pyramid = [torch.zeros(1, 2, 64 >> level, 128 >> level, requires_grad=True) for level in (2, 3)]
    multi_scale_error(pyramid, truth).backward()
    grad = pyramid[0].grad
    assert grad is not None
    assert grad.isfinite().all()
    assert grad[0, 0, :10, :17].ne(0).all()
    assert grad[..., 10:, :].eq(0).all()
    assert grad[..., 18:].eq(0).all()


def pairs(frames: Tensor, flows: Tensor | None) -> Batch:
    return Batch(frames, None, flows, [], torch.zeros(len(frames), dtype=torch.int64))


def test_a_pair_without_flow_is_refused() -> None:
    method = FlowTraining(build_estimator("flownet2-s", 4))
    batch = pairs(torch.rand(1, 2, 3, 64, 64), None)
    with pytest.raises(ValueError, match="source: wanted pairs of frames with their flows"):
        next(method.losses(batch))


@pytest.mark.parametrize("variant", ["flownet2-c", "flownet2-s", "flownet2-sd"])
def test_both_directions_are_trained(variant: str) -> None:
    """The loss of a pair and of the same pair turned round are the same, and each direction is its own."""
    torch.manual_seed(0)
    method = FlowTraining(build_estimator(variant, 4))
    frames, flows = torch.rand(1, 2, 3, 64, 64), torch.randn(1, 1, 2, 2, 64, 64)
    there = next(method.losses(pairs(frames, flows)))["flow"]
    back = next(method.losses(pairs(frames.flip(1), flows.flip(2))))["flow"]
    assert torch.allclose(there, back, atol=1e-5)
    flows[:, :, 0] = NAN  # known from the second image to the first alone
    back = next(method.losses(pairs(frames, flows)))["flow"]
    first, second = normalised(frames[:, 0], frames[:, 1])
    assert torch.allclose(back, multi_scale_error(method.network.pyramid(second, first), flows[:, 0, 1]), atol=1e-5)


def test_it_learns_a_shift() -> None:
    torch.manual_seed(0)
    method = FlowTraining(build_estimator("flownet2-c", 8))
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 20, 24), (80, 96), mode="bicubic").clamp(0, 1)
    frames = torch.stack([image[..., 8:72, 12:76], image[..., 8:72, 4:68]], 1)
    flows = torch.zeros(2, 1, 2, 2, 64, 64)
    flows[:, 0, 0, 0], flows[:, 0, 1, 0] = 8, -8  # what is at x in the first image is at x + 8 in the second
    optimiser = torch.optim.Adam(method.parameters(), 1e-3)
    losses = []
    for _ in range(60):
        loss = next(method.losses(pairs(frames, flows)))["flow"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        there, back = method.network.both(frames[:, 0], frames[:, 1])
    assert there[:, 0].mean() > 2
    assert back[:, 0].mean() < -2


def test_unknown_flow_is_nan() -> None:
    clip = open_dataset("motion/val", None, (32, 48)).clips[1]
    assert (known_flow(clip, 0, 1) == clip.exact_flow(0, 1)).all()

    class Blind:
        def exact_flow(self, i: int, j: int) -> None:
            return None

        frame = clip.frame

    assert (known_flow(Blind(), 0, 1) != known_flow(Blind(), 0, 1)).all()  # type: ignore[arg-type]


def command(*argv: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "train.py"), "flow", *map(str, argv)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


def test_train_py_flow(tmp_path: Path) -> None:
    size = ["--data.size", 64, 96, "--flow-training.width", 8, "--data.validation", "motion/val", "--device", "cpu"]
    steps = ["--flow-training.optimiser.iterations", 4, "--flow-training.optimiser.batch", 1, "--checkpoint-every", 2]
    done = command(*size, *steps, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| flownet2-c-\w+ +\| +100 \|.*\n\| dis-medium +\| +100 \|", done.stdout, re.M)
    run = tmp_path / "run"
    log = [json.loads(line) for line in (run / "flow_training" / "log.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in log] == [0, 1, 2, 3]
    report = (run / "report.html").read_text()
    assert report.count("estimated flow") >= 6
    weights = run / "flow_training" / "flow.safetensors"
    source = provider(Flow("flownet2", weights=weights))
    clip = open_dataset("motion/val", None, (64, 96)).clips[0]
    flow = source(clip, 0, 1)
    assert flow.shape == (2, 64, 96)
    assert {"flownet2-c", "dis-medium"} == {re.sub(r"-\w{12}$", "", name) for name in read_scores(run)}

    # Stopped at step 2 and resumed: the same weights as those of the whole run.
    shutil.rmtree(run / "flow_training" / "step-000004")
    shutil.rmtree(run / "flow_training" / "step-000003")
    (run / "flow_training" / "finished.json").unlink()
    weights.unlink()
    again = command(*size, *steps, "--out", "run", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert provider(Flow("flownet2", weights=weights)).name == source.name
    done = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), "run/flow_training", "--data", "motion/val"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2
    assert "wanted a segmentation network, found that of flow_training" in done.stderr


def read_scores(run: Path) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = json.loads((run / "flow_training" / "flow-scores.json").read_text())
    assert all(0 < entry["end_point_error"] < 100 for entry in scores.values())
    return scores


def test_settings_that_cannot_train_flow(tmp_path: Path) -> None:
    done = command("--data.size", 64, 96, "--out", "run", "--data.tube-length", 3, cwd=tmp_path)
    assert done.returncode == 2
    assert "tubes of 3 frames" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
