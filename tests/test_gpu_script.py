"""bench/gpu.py without a GPU: how it judges, stops and records steps; and that its canary compiles."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu

ROOT = Path(__file__).resolve().parents[1]
TOOLS = gpu.Tools("nvcc", "compute-sanitizer", "sm_90")
MEMCHECK = "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: {} error{}"
RACECHECK = "========= RACECHECK SUMMARY: {} hazard{} displayed ({} error{}, 0 warnings)"


def python(name: str, code: str, limit: float = 60, **more: object) -> gpu.Step:
    return gpu.Step(name, [sys.executable, "-c", code], limit, gpu.exited_well, **more)  # type: ignore[arg-type]


# ---- judging ----


@pytest.mark.parametrize(
    ("tool", "output", "found"),
    [
        ("memcheck", MEMCHECK.format(0, "s"), 0),
        ("memcheck", MEMCHECK.format(1, ""), 1),
        ("memcheck", MEMCHECK.format(12, "s"), 12),
        ("memcheck", "no summary", None),
        ("racecheck", RACECHECK.format(0, "s", 0, "s"), 0),
        ("racecheck", RACECHECK.format(1, "", 1, ""), 1),
        ("racecheck", MEMCHECK.format(0, "s"), None),
    ],
)
def test_findings(tool: str, output: str, found: int | None) -> None:
    assert gpu.findings(tool, output) == found


@pytest.mark.parametrize(
    ("status", "output", "reason"),
    [
        (0, "every op checked\n" + MEMCHECK.format(0, "s"), ""),
        (99, "every op checked\n" + MEMCHECK.format(3, "s"), "memcheck found 3 faults"),
        (0, MEMCHECK.format(0, "s"), "the program did not print 'every op checked'"),
        (0, "every op checked", "memcheck printed no summary (exit status 0)"),
        (1, "every op checked\n" + MEMCHECK.format(0, "s"), "exit status 1"),
    ],
)
def test_a_clean_report_needs_kernels_that_ran(status: int, output: str, reason: str) -> None:
    assert gpu.clean("memcheck", "every op checked")(status, output) == reason


def test_a_canary_that_sings_on_is_a_failure() -> None:
    judge = gpu.caught("racecheck")
    assert judge(99, RACECHECK.format(1, "", 1, "")) == ""
    assert "DID NOT CATCH" in judge(0, RACECHECK.format(0, "s", 0, "s"))
    assert "DID NOT CATCH" in judge(99, "Device not supported")


@pytest.mark.parametrize(
    ("status", "output", "reason"),
    [
        (0, "....\n12 passed, 3 deselected in 1.2s", ""),
        (0, "3 skipped, 400 deselected in 1.2s", "no test has passed"),
        (0, "", "no test has passed"),
        (1, "1 failed, 12 passed in 1.2s", "exit status 1"),
    ],
)
def test_tests_have_to_pass_not_only_not_to_fail(status: int, output: str, reason: str) -> None:
    assert gpu.tests_passed(status, output) == reason


# ---- running ----


def test_a_step_is_recorded_with_the_end_of_its_output_if_it_fails() -> None:
    good = gpu.run(python("good", "print('a'); print('the last line')"), 60)
    assert (good.status, good.reason, good.tail) == ("passed", "", "the last line")
    bad = gpu.run(python("bad", "print('x' * 9000); raise SystemExit(3)"), 60)
    assert (bad.status, bad.reason, len(bad.tail)) == ("failed", "exit status 3", gpu.TAIL)
    missing = gpu.run(gpu.Step("missing", ["/no/such/program"], 60, gpu.exited_well), 60)
    assert missing.status == "failed"
    assert "does not start" in missing.reason


def test_a_step_that_hangs_is_interrupted_then_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    heard = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also in the background
    polite = gpu.run(python("polite", f"{heard}try: time.sleep(99)\nexcept KeyboardInterrupt: print('saved')"), 2)
    assert (polite.status, polite.reason, polite.tail) == ("timed out", "longer than 2 s", "saved")
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(99)"
    assert gpu.run(python("stubborn", code), 1).status == "timed out"


def test_steps_in_order_and_what_they_need() -> None:
    steps = [
        python("a", "raise SystemExit(1)"),
        python("b", "raise SystemExit(0)", needs=["a"]),
        python("c", "raise SystemExit(0)"),
        python("d", "raise SystemExit(0)", needs=["not planned"]),
    ]
    seen: list[int] = []
    outcomes = gpu.run_all(steps, 60, lambda so_far: seen.append(len(so_far)))
    assert [o.status for o in outcomes] == ["failed", "not run", "passed", "passed"]
    assert outcomes[1].reason == "needs a"
    assert seen == [1, 2, 3, 4]
    assert [o.reason for o in gpu.run_all(steps[2:], 0, lambda _: None)] == ["no time left"] * 2


def test_the_document_holds_steps_and_rows(tmp_path: Path) -> None:
    outcome = gpu.run(python("build", "print('ok')"), 60)
    without = gpu.document({"gpu": {"name": "G"}}, "13.0", [outcome], tmp_path / "bench.json")
    assert without["bench"] is None
    (tmp_path / "bench.json").write_text('{"rows": [1]}')
    found = json.loads(json.dumps(gpu.document({"gpu": {"name": "G"}}, "13.0", [outcome], tmp_path / "bench.json")))
    assert found["machine"]["gpu"]["name"] == "G"
    assert found["steps"][0]["status"] == "passed"
    assert found["bench"] == {"rows": [1]}


# ---- the plan ----


def test_plan(tmp_path: Path) -> None:
    steps = {step.name: step for step in gpu.plan(TOOLS, tmp_path)}
    first, *_, last = steps
    assert (first, last) == ("build", "bench")
    for tool in gpu.SANITIZERS:
        planted, ops = steps[f"{tool}: planted fault"], steps[f"{tool}: every op"]
        assert planted.command[-1] == tool
        assert {f"{tool}: planted fault", f"{tool}: sound kernel"} <= set(ops.needs)
        same = planted.command.index(gpu.SELFCHECK)  # the canary sits in the very cage of the ops
        assert planted.command[:same] == ops.command[:same]
    for op in ("warp", "correlation", "consensus", "aggregate_labels", "lib"):
        assert f"tests/test_{op}.py" in steps["tests"].command


def test_only_some_steps(tmp_path: Path) -> None:
    steps = gpu.plan(TOOLS, tmp_path)
    assert [s.name for s in gpu.selected(steps, ["bench"])] == ["bench"]
    names = [s.name for s in gpu.selected(steps, ["memcheck: every"])]
    assert names == ["canary", "memcheck: planted fault", "memcheck: sound kernel", "memcheck: every op"]
    assert gpu.selected(steps, None) == steps


def test_dry_run_prints_every_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu.main(["--dry-run"]) == 0
    text = capsys.readouterr().out
    assert all(f"{step.name} (at most" in text for step in gpu.plan(TOOLS, tmp_path))
    assert "VDA_CUDA=on" in text


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="may have a GPU")
def test_without_a_gpu_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu.main(["--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench/gpu.py: no GPU: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("program", ["nvcc", "compute-sanitizer"])
def test_without_a_tool_one_sentence(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu, "find", lambda name: None if name == program else f"/bin/{name}")
    with pytest.raises(gpu.Missing, match=f"no {program}: install the CUDA toolkit"):
        gpu.tools()
    monkeypatch.setattr(gpu, "find", lambda name: f"/bin/{name}")
    assert gpu.tools() == gpu.Tools("/bin/nvcc", "/bin/compute-sanitizer", "sm_90")


# ---- the canary ----


@pytest.mark.skipif(gpu.find("nvcc") is None, reason="no nvcc")
def test_canary_compiles_and_is_what_the_filter_looks_at(tmp_path: Path) -> None:
    tools = gpu.Tools(str(gpu.find("nvcc")), "compute-sanitizer", "sm_90")
    step = next(step for step in gpu.plan(tools, tmp_path) if step.name == "canary")
    outcome = gpu.run(step, 120)
    assert outcome.status == "passed", outcome.tail
    library = tmp_path / "canary.so"
    strings = library.read_bytes()
    for kernel in (b"writes_past_the_end", b"reverseILb0E", b"reverseILb1E"):
        assert b"_ZN10vda_canary" in strings
        assert kernel in strings
    run = [sys.executable, str(ROOT / gpu.SELFCHECK), str(library), "sound"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:  # no GPU: the library loads, and CUDA says so
        assert "canary sound: error " in done.stdout, done.stderr


def test_the_sanitizers_look_at_every_kernel() -> None:
    """They are told to look at kernels with "vda" in their mangled names: those of namespace vda."""
    for source in (ROOT / "csrc").glob("*.cu"):
        text = source.read_text()
        assert "__global__" not in text or "\nnamespace vda {" in text, source
