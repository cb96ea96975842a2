"""The two commands, as a user runs them: a whole tiny run, exact resume, and one sentence for bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TINY = """
recipe: tiny
flow: {provider: exact}
checkpoint_every: 2
precision: fp16
frames_at_once: 1
device: cpu
data:
  source: embedded/simulator:4
  target: embedded/camera:4
  validation: embedded/camera-val:3
  size: [64, 96]
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


# Where a run is stopped, how, and what must be there first.
STOPS = (
    (signal.SIGINT, "source_only/step-000001", 130),
    (signal.SIGKILL, "vat/step-000001", -signal.SIGKILL),
    (signal.SIGKILL, "vst/pseudo/manifest.jsonl", -signal.SIGKILL),  # while labels are written
    (signal.SIGKILL, "vst/step-000002", -signal.SIGKILL),
)


def stopped_at(run: Path, argv: list[str], cwd: Path, number: signal.Signals, at: str) -> tuple[int, str]:
    """Status and errors of a run that gets a signal as soon as a file is there."""
    line = [sys.executable, str(ROOT / "train.py"), *argv]
    process = subprocess.Popen(
        line,
        cwd=cwd,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a background job ignores
    )
    deadline = time.monotonic() + 120
    while not (run / at).exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    errors = process.communicate(timeout=120)[1]
    return process.returncode, errors


def test_stopped_and_killed_in_every_phase_it_resumes_bit_for_bit(tiny: Path, tmp_path: Path) -> None:
    """Weights, state of optimisers, pseudo labels, thresholds, logs, scores. The command to go on is the printed one,
    also from another working directory."""
    run, out, begun = tiny / "stopped", "stopped", dict[str, str]()
    argv, cwd = ["tiny.yaml", "--out", out, "--checkpoint-every", "1"], tiny
    for number, at, wanted in STOPS:
        status, errors = stopped_at(run, argv, cwd, number, at)
        assert status == wanted, errors
        assert "Traceback" not in errors
        if "step" in at:
            begun[at] = (run / at).with_name("log.jsonl").read_text().splitlines()[0]
        if status == 130:
            (said,) = re.findall(r"continue with `python train\.py (.*)`", errors)
            assert said == f"{out}/config.yaml --resume --out {out}"
        out, cwd = str(run), tmp_path
        argv = [f"{out}/config.yaml", "--resume", "--out", out]
    done = command("train.py", *argv, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "passed over" not in done.stderr
    for at, line in begun.items():  # with the time that the step took then: it was not taken again
        assert (run / at).with_name("log.jsonl").read_text().startswith(f"{line}\n")
    same_run(tiny / "whole", run)


def same_run(whole: Path, other: Path) -> None:
    """Whether two runs are equal in all but times, paths and how often they saved."""
    for method in ("source_only", "vat", "vst", "oracle"):
        for step in ("step-000002", "step-000004"):  # the snapshots stay
            names = {path.name for path in (whole / method / step).iterdir()} - {"manifest.json"}
            assert names == {"network.safetensors", "discriminators.safetensors", "auxiliary.safetensors", "state.pt"}
            for name in names:
                found = [(run / method / step / name).read_bytes() for run in (whole, other)]
                assert found[0] == found[1], (method, step, name)
        logs = [[*map(json.loads, (run / method / "log.jsonl").read_text().splitlines())] for run in (whole, other)]
        for line in (*logs[0], *logs[1]):
            del line["seconds"], line["data_seconds"]
        assert logs[0] == logs[1]
        assert not list((other / method).rglob("*.tmp"))
    labels = [
        {path.relative_to(run): path.read_bytes() for path in (run / "vst" / "pseudo").rglob("*") if path.is_file()}
        for run in (whole, other)
    ]
    assert labels[0] == labels[1]
    scores = [(run / "scores.json").read_text() for run in (whole, other)]
    assert scores[0] == scores[1]


def test_evaluate_repeats_the_scores_of_the_run(tiny: Path) -> None:
    done = command(
        "evaluate.py", "whole/vst", "whole/vat", "--data", "embedded/camera-val:3", "--out", "s.json", cwd=tiny
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
    assert re.search(message, text), text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_resume_with_other_settings_is_refused(tiny: Path) -> None:
    done = command("train.py", "tiny.yaml", "--out", "whole", "--resume", "--seed", "9", cwd=tiny)
    assert done.returncode == 2
    assert "started with other settings" in done.stderr
    done = command("train.py", "tiny.yaml", "--out", "whole", cwd=tiny)
    assert done.returncode == 2
    assert "wanted a new or empty folder; pass --resume" in done.stderr
