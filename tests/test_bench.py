"""The benchmarks, without their clocks: what they compare agrees, what they count and print is right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import ceilings, compositions, harness, inputs, table, timing, work
from bench.__main__ import main
from vda.flow.flownet2 import VARIANTS
from vda.ops import OPS, consensus, warp_occlusion

ROOT = Path(__file__).resolve().parents[1]
MACHINE = {"device": "cpu", "cpu": "a CPU", "threads": 2, "load": 0.1, "gpu": None, "vda": "1", "torch": "2"}
MACHINE |= {"python": "3", "commit": "abc", "date": "today"}


# ---- rows compute the same ----


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every row that needs no compiler, run once at a small shape."""
    file = tmp_path_factory.mktemp("bench") / "check.json"
    command = [sys.executable, "-m", "bench", "--check", "--device", "cpu", "-k", "not compile", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())["rows"]


def test_every_row_agrees_with_ours(checked: list[dict[str, Any]]) -> None:
    absent = ("is not installed", "does not load", "CamVid is not in")
    for row in checked:
        assert row["note"] == table.AGREES or any(why in row["note"] for why in absent), row
    found = Counter(row["row"] for row in checked if row["note"] == table.AGREES and row["op"] != "loader camvid")
    # operators, pseudo labels, loaders, forms of files, the transfer of FDA, scoring
    assert (found["ours"], found["torch"]) == (22 + 12 + 4 + 5 + 1 + 3, 21)
    assert found["cv2.remap"] == found["OpenCV"] == found["banded bmm"] == 3
    assert found["torch.kthvalue"] == 2
    assert found["torch.rfft2"] == 3
    assert found["two calls"] == found["np.bincount"] == 1
    assert found["2 workers"] == found["2 workers, waiting"] == 4


def test_every_op_has_a_benchmark(checked: list[dict[str, Any]]) -> None:
    assert {row["op"].partition(" ")[0] for row in checked} >= set(OPS)


def test_a_wrong_result_is_noticed() -> None:
    x = torch.rand(100)
    assert not harness.disagreement(x, x + 9e-5, atol=1e-4, share=0)
    assert "100 %" in harness.disagreement(x, x + 2e-4, atol=1e-4, share=0)
    assert "ours [100]" in harness.disagreement(x[:50], x, atol=1, share=1)
    assert harness.disagreement(x * torch.nan, x, atol=1, share=0.5)
    label = torch.zeros(10000, dtype=torch.uint8)
    other = label.clone()
    other[:20] = 1
    assert not harness.disagreement(other, label, atol=9, share=0.002)
    assert "0.2 %" in harness.disagreement(other, label, atol=9, share=0.001)
    assert "0.2 %" in harness.disagreement((label, other), (label, label), atol=9, share=0)


def test_compositions_on_numbers_worked_out_by_hand() -> None:
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0] = torch.tensor([1.0, 0.0, -1.0, 5.0])  # the last one leaves the frame
    label, reference = torch.tensor([[[7, 255, 3, 4]]]).byte(), torch.tensor([[[1, 7, 3, 4]]]).byte()
    flow, label, reference = (torch.cat([x, x], -2) for x in (flow, label, reference))  # two rows: a grid needs them
    strict = compositions.consensus(label, reference, flow, "strict")
    assert strict[0, 0].tolist() == [7, 255, 255, 255]
    assert compositions.consensus(label, reference, flow, "fill_in")[0, 0].tolist() == [7, 7, 3, 4]
    assert torch.equal(strict, consensus(label, reference, flow))
    confidence, classes, old = torch.tensor([0.2, 0.8, 0.6, 0.4]), torch.tensor([0, 0, 0, 2]), torch.full((3,), 0.9)
    theta = compositions.class_thresholds(confidence, classes, old, alpha=0.5, beta=0, gamma=0)
    torch.testing.assert_close(theta, torch.tensor([0.6, 0.9, 0.4]))


# ---- inputs ----


@pytest.mark.parametrize(("H", "W"), [(512, 1024), (1024, 2048)])
def test_flow_is_like_that_of_driving_video(H: int, W: int) -> None:
    flow = inputs.flow(H, W, batch=2)
    median = flow.abs().flatten(2).median(2).values * 512 / H
    torch.testing.assert_close(median, torch.tensor([[5.0, 2.6]] * 2), rtol=0.02, atol=0)
    rows = torch.floor(torch.arange(H)[:, None] + flow[:, 1]).unflatten(-1, (-1, 16)).sort(-1).values
    values = 1 + (rows.diff(dim=-1) != 0).sum(-1)
    for share, wanted in zip(((values == 1), (values == 2), (values > 2)), (0.64, 0.30, 0.06), strict=True):
        assert abs(share.float().mean().item() - wanted) < 0.03


def test_most_of_the_neighbours_is_visible() -> None:
    flows, frame, near = inputs.scene(512, 1024, 2)
    for j in range(2):
        _, visible = warp_occlusion(frame, near[:, j], flows[:, j], alpha=inputs.ALPHA, squared=True)
        assert 0.74 < visible.float().mean().item() < 0.94


# ---- bytes and FLOPs ----


def test_products_with_the_zeros_outside_do_not_count() -> None:
    H, W = 5, 43
    steps = [(dy, dx) for dy in work.REACH for dx in work.REACH]
    pairs = sum(0 <= y + dy < H and 0 <= x + dx < W for y in range(H) for x in range(W) for dy, dx in steps)
    assert work.correlation(1, 3, H, W).flop == 2 * 3 * pairs
    assert work.correlation_backward(2, 3, H, W).flop == 2 * 2 * 2 * 3 * pairs


def test_bytes_are_those_of_inputs_and_outputs() -> None:
    def nbytes(*tensors: Tensor) -> int:
        return sum(x.nbytes for x in tensors)

    H, W, K, J = 8, 16, 5, 2
    image, flow, label = torch.zeros(3, H, W), torch.zeros(2, H, W), torch.zeros(H, W, dtype=torch.uint8)
    half = torch.zeros(H, W).half()
    assert work.warp(3, H, W).nbytes == nbytes(image, flow, image)
    assert work.warp_backward(3, H, W).nbytes == nbytes(image, image, flow, image, flow)
    assert work.warp_occlusion(3, H, W).nbytes == nbytes(image, image, flow, image, label)
    assert work.apply_thresholds(H * W).nbytes == nbytes(label, half, label)
    assert work.consensus(H * W, False).nbytes == nbytes(label, label, flow, label)
    assert work.consensus(H * W, True).nbytes == nbytes(label, half, label, half, flow, label)
    assert work.class_thresholds(H * W, 2).nbytes == nbytes(label, half)
    frames, flows = [image] * (J + 1), [flow] * J
    probs = [torch.zeros(K, H, W)] * (J + 1)
    assert work.aggregate(K, J, H, W).nbytes == nbytes(*probs, *flows, *frames, probs[0])
    logits = [torch.zeros(K, 1, 2)] * (J + 1)
    assert work.aggregate_labels(K, J, 1, 2, H, W).nbytes == nbytes(*logits, *flows, *frames, label, half)
    frames_labels = [torch.zeros(2, K, 1, 2), torch.zeros(2, H, W, dtype=torch.uint8), torch.zeros(2, K, 1, 2)]
    assert work.segmentation_loss(K, 2, 1, 2, H, W).nbytes == nbytes(*frames_labels)
    assert work.transfer_spectrum(3, H, W).nbytes == nbytes(image, image, image)
    assert work.joint_histogram(H * W).nbytes == nbytes(label, label)
    assert work.dis(H, W).nbytes == nbytes(label, label, label, label, label, label, flow)
    assert work.cached_flow(H, W).nbytes == nbytes(flow.half(), flow)
    features, volume = torch.zeros(7, H, W), torch.zeros(441, H, W)
    assert work.correlation(1, 7, H, W).nbytes == nbytes(features, features, volume)
    assert work.correlation(1, 7, H, W, "float16 planes").nbytes == nbytes(features, features, volume) / 2
    assert work.correlation_backward(1, 7, H, W).nbytes == nbytes(*[features] * 4, volume)


def test_flop_of_networks() -> None:
    """FlowNet2 takes 1.06 T multiply-adds for a pair of 1024 x 2048, of which the correlation 3.7 G."""
    assert work.flow_network(VARIANTS["flownet2"], 1024, 2048).flop == pytest.approx(2.12e12, rel=0.005)
    assert work.correlation(1, work.FEATURES, 128, 256).flop == pytest.approx(7.4e9, rel=0.15)
    one, both = (work.flow_network(VARIANTS["flownet2-c"], 128, 256, both=both) for both in (False, True))
    assert 1.5 * one.flop < both.flop < 2 * one.flop  # the features of an image are computed once


def test_the_correlation_of_a_network_is_replaced_and_put_back() -> None:
    shapes = []

    def spy(f1: Tensor, f2: Tensor) -> Tensor:
        shapes.append(list(f1.shape))
        return compositions.correlation(f1, f2)

    network = VARIANTS["flownet2-c"](width=8).eval()
    image = torch.rand(1, 3, 64, 128)
    with torch.inference_mode():
        wanted = network(image, image)
        with compositions.in_flownet(spy):
            found = network(image, image)
        assert torch.equal(network(image, image), wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert shapes == [[1, 32, 8, 16]]


# ---- clocks, by their logic alone ----


class Event:
    """A CUDA event whose clock is counted in records."""

    records = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.records += 1
        self.at = Event.records

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1000.0 * (end.at - self.at)


def test_cuda_stamps_subtract_to_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    start, end = timing.CudaStamp(), timing.CudaStamp()
    assert end - start == 1.0
    assert timing.seconds(lambda: None, torch.device("cuda"), 3) == 1.0


def test_the_best_sample_of_a_ceiling_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    best = ceilings.Ceilings(torch.device("cpu"))
    best._probes = {"sgemm": (8.0, lambda: None), "copy": (4.0, lambda: None)}
    for seconds in (2.0, 1.0, 4.0):
        monkeypatch.setattr(timing, "seconds", lambda *_, s=seconds: s)
        best.sample()
    assert best.best == {"sgemm": 8.0, "copy": 4.0}


# ---- the table ----


def row(name: str, median: float | None, **more: Any) -> table.Row:
    known = {"gflop": 1.0, "mbyte": 10.0, "gemm": "sgemm"} | more
    return table.Row("correlation", "1×2", "float32", name, median=median, **known)


def results() -> table.Results:
    run = table.Results(dict(MACHINE), {"sgemm": 100e9, "copy": 10e9})
    run.rows = [
        row("ours", 0.02, spread=0.02),
        row("torch", 0.3, spread=0.5),
        row("torch.compile", 0.04),
        row("peer", None, note="peer is not installed"),
    ]
    run.finish()
    return run


def test_fractions_and_ratios() -> None:
    ours, composition, compiled, peer = results().rows
    assert (ours.bound, ours.fraction) == ("sgemm", pytest.approx(0.5))  # 1 GFLOP takes 10 ms, 10 MB 1 ms
    assert (ours.times_torch, composition.times_torch, compiled.times_torch) == pytest.approx((15, 1, 7.5))
    assert peer.times_torch is peer.fraction is None
    run = results()
    run.rows = [row("ours", 0.02, gemm=""), row("ours", 0.02, mbyte=200.0)]
    run.finish()
    assert [r.bound for r in run.rows] == ["copy", "copy"]


def test_markdown_is_one_table_between_the_machine_and_the_reasons() -> None:
    lines = table.markdown(results()).splitlines()
    assert lines[0].startswith("a CPU, 2 threads, load 0.1 before the run; torch 2,")
    assert lines[1] == "Ceilings: sgemm 100 GFLOP/s, copy 10.0 GB/s (bytes read plus bytes written)."
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0] == list(table.HEAD)
    assert cells[2] == ["correlation", "1×2 float32", "**ours**", "20.0 ms", "50.0 GFLOP/s", "50 % sgemm", "15.0"]
    assert cells[3][3] == "300 ms (±25 %)"
    assert cells[5][3:] == ["not measured", "", "", ""]
    assert lines[-1] == "- correlation peer: peer is not installed."
    assert len({len(line) for line in lines if line.startswith("|")}) == 1


@pytest.mark.parametrize(("seconds", "text"), [(2, "2.00 s"), (0.0123, "12.3 ms"), (4.56e-4, "456 µs"), (5e-9, "5 ns")])
def test_durations(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text


def test_a_document_keeps_all_but_the_table(tmp_path: Path) -> None:
    file, saved = tmp_path / "doc.md", tmp_path / "run.json"
    file.write_text("a\n<!-- bench: cuda -->\nG\n<!-- end -->\nb\n<!-- bench: cpu -->\nold\n<!-- end -->\nc\n")
    table.write_json(saved, {"steps": [], "bench": results().to_json()})  # as bench/gpu.py writes it
    assert main(["--show", str(saved), "--markdown", str(file)]) == 0
    text = file.read_text()
    assert text.startswith("a\n<!-- bench: cuda -->\nG\n<!-- end -->\nb\n<!-- bench: cpu -->\n\na CPU")
    assert text.endswith("not installed.\n\n<!-- end -->\nc\n")
    assert "old" not in text
    with pytest.raises(ValueError, match=r"wanted the lines <!-- bench: tpu -->"):
        table.rewrite(file, "tpu", "")


def test_show_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert main(["--show", str(tmp_path / "x.json")]) == 2
    assert "wanted a file of --json or bench/gpu.py" in capsys.readouterr().err


def test_documentation_has_a_place_for_each_device() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert text.count("<!-- bench: cpu -->") == text.count("<!-- bench: cuda -->") == 1


def test_rows_of_a_gpu_are_listed_without_one(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    command = [sys.executable, "-m", "bench", "--list", "--device", "cuda", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    ops = [r for r in rows if r["op"].partition(" ")[0] in OPS]
    assert {(r["op"], r["shape"], r["kind"]) for r in ops if r["row"] == "naive"} == {
        (r["op"], r["shape"], r["kind"]) for r in ops
    }
    others = {"FlowNet2-C", "FlowNet2-C both", "FlowNet2", "transfer_spectrum"}
    assert {r["op"] for r in rows if r not in ops} == others  # no row of a CPU
    assert ("correlation", "256×128×256", "float16") in {(r["op"], r["shape"], r["kind"]) for r in rows}
