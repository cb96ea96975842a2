"""The two commands, as a user runs them: a whole tiny run, exact resume, and one sentence for bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]

TINY = """
recipe: tiny
flow: {provider: exact}
checkpoint_every: 2
device: cpu
data: {source: embedded/simulator, target: embedded/camera, validation: embedded/camera-val, size: [64, 96]}
network: {name: deeplab-resnet18, width: 8, batch_norm: train}
snapshots: 2
methods:
  source_only: {optimiser: {iterations: 4, batch: 1, name: adam, lr: 0.001}}
  vat: {optimiser: {iterations: 4, batch: 1, name: adam, lr: 0.001}}
  vst: {optimiser: {iterations: 4, batch: 1, name: adam, lr: 0.001}}
  oracle: {optimiser: {iterations: 4, batch: 1, name: adam, lr: 0.001}}
"""


def command(script: str, *argv: object, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / script), *map(str, argv)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a settings file and a finished run of it."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "tiny.yaml").write_text(TINY)
    done = command("train.py", "tiny.yaml", "--out", "whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_whole_path_leaves_checkpoints_scores_and_report(tiny: Path) -> None:
    run = tiny / "whole"
    scores = json.loads((run / "scores.json").read_text())
    assert list(scores) == ["source_only", "vat", "vst", "oracle"]
    for entry in scores.values():
        assert 0 <= entry["miou"] <= 1
        assert 0 <= entry["vpq"] <= 1
        assert entry["rule"] == "last"
        assert list(entry["rules"]) == ["last", "entropy", "agreement", "oracle"]
        assert entry["rules"]["last"]["iou"] == entry["iou"]
        assert entry["rules"]["oracle"]["miou"] >= entry["miou"]
        assert {rule["checkpoint"] for rule in entry["rules"].values()} <= {"step-000002", "step-000004"}
        assert entry["dataset"] == "embedded/camera-val"
        assert len(entry["iou"]) == len(entry["classes"])
    assert "</html>" in (run / "report.html").read_text()
    log = [json.loads(line) for line in (run / "vat" / "log.jsonl").read_text().splitlines()]
    assert [(e["phase"], e["iteration"]) for e in log] == [("vat", i) for i in range(4)]
    assert {"seg", "tube", "adv", "disc"} <= set(log[0])


def test_same_command_same_numbers(tiny: Path) -> None:
    other_ways = ("--deterministic", "--data.workers", 2, "--only", "source_only", "vat")
    done = command("train.py", "tiny.yaml", "--out", "again", *other_ways, cwd=tiny)
    assert done.returncode == 0, done.stderr
    for phase in ("source_only", "vat"):
        (a,), (b,) = ([*(tiny / r / phase).glob("*4/network.safetensors")] for r in ("whole", "again"))
        assert a.read_bytes() == b.read_bytes()


def test_stopped_run_resumes_bit_for_bit(tiny: Path) -> None:
    line = [
        sys.executable,
        str(ROOT / "train.py"),
        "tiny.yaml",
        "--out",
        "stopped",
        "--checkpoint-every",
        "1",
    ]
    process = subprocess.Popen(line, cwd=tiny, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log, deadline = tiny / "stopped" / "vat" / "log.jsonl", time.monotonic() + 120
    while not (tiny / "stopped" / "vat" / "step-000002").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    if process.returncode != 0:  # else it was already past its last step
        assert process.returncode in (130, -signal.SIGTERM), errors
        assert "Traceback" not in errors or process.returncode < 0
    done = command("train.py", "tiny.yaml", "--out", "stopped", "--resume", cwd=tiny)
    assert done.returncode == 0, done.stderr
    for phase in ("source_only", "vat", "vst", "oracle"):
        one, other = (load_file(next((tiny / r / phase).glob("*4/network.safetensors"))) for r in ("whole", "stopped"))
        assert one.keys() == other.keys()
        assert all((one[k] == other[k]).all() for k in one), phase
    whole, stopped = (
        {p.name: p.read_bytes() for p in sorted((tiny / r / "vst" / "pseudo").rglob("*.png"))}
        for r in ("whole", "stopped")
    )
    assert whole == stopped
    assert log.exists()


def test_evaluate_repeats_the_scores_of_the_run(tiny: Path) -> None:
    done = command(
        "evaluate.py", "whole/vst", "whole/vat", "--data", "embedded/camera-val", "--out", "s.json", cwd=tiny
    )
    assert done.returncode == 0, done.stderr
    again, run = (json.loads((tiny / f).read_text()) for f in ("s.json", "whole/scores.json"))
    assert again["whole/vst"]["iou"] == run["vst"]["iou"]
    assert again["whole/vat"]["vpq"] == run["vat"]["vpq"]


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_is_readable(script: str, tmp_path: Path) -> None:
    done = command(script, *(["embedded"] if script == "train.py" else []), "--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("--vat.lambda-adv", "Weight of the adversarial loss") if script == "train.py" else ("--data",):
        assert word in done.stdout
    if script == "train.py":
        assert "camvid" in command(script, "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train.py", "embedded", "--vat.lambda-avd", "1"], "--vat.lambda-adv"),
        (["train.py", "embeded"], "embedded"),
        (["train.py", "missing.yaml"], "missing.yaml"),
        (["train.py", "embedded", "--device", "cuda"], "wanted cuda"),
        (
            ["train.py", "embedded", "--data.source", "embeded/simulator"],
            "perhaps you meant embedded/simulator",
        ),
        (["train.py", "embedded", "--data.target", "embedded/camara"], "camara"),
        (["train.py", "camvid"], "camvid"),
        (["train.py", "camvid", "--data.source-root", "nowhere"], "nowhere"),
        (["train.py", "embedded", "--resume", "--out", "nowhere"], "nowhere: wanted a run to resume"),
        (["train.py", "embedded", "--only", "vat"], "vat: starts from source_only, which is neither trained before it"),
        (["train.py", "embedded", "--only", "vatt"], "only: wanted some of source_only, vat"),
        (["train.py", "recipe", "iasst"], "iast"),
        (["train.py", "recipe", "iast", "--data", "embeded"], "perhaps you meant embedded"),
        (["train.py", "recipe", "ours", "--data.tube-length", "1"], "vat: wanted data.tube_length of at least 2"),
        (["train.py", "recipe", "ours", "--vst.pseudo.policy", "clip"], "clip_adaptive"),
        (["train.py", "recipe", "ours", "--flow.provider", "precomputed"], "precomputed"),
        (["train.py", "recipe", "pspnet-videogan", "--data.tube-length", "3"], "videogan: wanted tubes of 2 frames"),
        (["train.py", "recipe", "intrada", "--intrada.easy", "0.001"], "intrada: wanted an easy and a hard part"),
        (["train.py", "recipe", "ccm", "--ccm.pool", "0.001"], "ccm: wanted a pool of at least one tube"),
        (["train.py", "table", "13"], "table: wanted one of 1, 2, 3"),
        (["train.py", "table", "1", "--rows", "vat"], "rows: wanted some of source-only"),
        (["train.py", "table", "1", "--seeds", "1", "1"], "seeds: wanted at least one, all different"),
        (["train.py", "embedded", "--network.batch-norm", "eval"], "network.weights: wanted a file"),
        (["train.py", "embedded", "--network.weights", "no.pth"], "no.pth: wanted a file of backbone weights"),
        (["train.py", "embedded", "--vst.optimiser.batch", "0"], "optimiser.batch: wanted at least 1, found 0"),
        (["train.py", "embedded", "--data.tube-length", "500"], "wants? clips of at least 500"),
        (["evaluate.py", "nowhere", "--data", "embedded/camera-val"], "nowhere: wanted a checkpoint folder"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(argv: list[str], message: str, tmp_path: Path) -> None:
    if "cuda" in argv and os.environ.get("CUDA_VISIBLE_DEVICES") != "" and __import__("torch").cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = command(argv[0], *argv[1:], cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    text = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert __import__("re").search(message, text), text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_resume_with_other_settings_is_refused(tiny: Path) -> None:
    done = command("train.py", "tiny.yaml", "--out", "whole", "--resume", "--seed", "9", cwd=tiny)
    assert done.returncode == 2
    assert "started with other settings" in done.stderr
    done = command("train.py", "tiny.yaml", "--out", "whole", cwd=tiny)
    assert done.returncode == 2
    assert "wanted a new or empty folder; pass --resume" in done.stderr
