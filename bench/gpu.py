"""Everything that needs a GPU, in one command and under ten minutes: `python bench/gpu.py --out results.json`.

Builds the kernels for the GPU that is there, runs the tests that need it, runs compute-sanitizer's memcheck and
racecheck over every operator, after showing that they catch a planted fault, and runs the benchmarks. One JSON file
holds the machine, every step with its duration and, where it failed, the end of its output, and all rows of the
benchmarks; it is written after every step. `python -m bench --show results.json` prints its table.

Exit status: 0 all steps passed, 1 a step failed, 2 something is missing (no GPU, no compute-sanitizer, no nvcc).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BUDGET = 570  # seconds for everything
TAIL = 6000  # characters of output that are kept of a step that failed
GRACE = 20  # seconds between asking a step to stop and killing it
SANITIZERS = ("memcheck", "racecheck")
SELFCHECK = "tests/gpu/selfcheck.py"


class Missing(Exception):
    """What this machine lacks, in one sentence."""


@dataclass
class Step:
    """A command and what its output has to say. judge(status, output) -> why it failed, or ""."""

    name: str
    command: list[str]
    limit: float  # seconds
    judge: Callable[[int, str], str]
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: Sequence[str] = ()  # steps without which its result would mean nothing


@dataclass
class Outcome:
    """What is written of a step."""

    name: str
    command: str
    status: str = "not run"  # passed, failed, timed out, not run
    seconds: float = 0.0
    reason: str = ""
    tail: str = ""  # of the output, where the step did not pass; else its last line


# ---- judging output ----


def exited_well(status: int, output: str) -> str:
    """The command says so itself."""
    return "" if status == 0 else f"exit status {status}"


def tests_passed(status: int, output: str) -> str:
    """The last line of pytest's output; a run in which nothing passed is no success."""
    if status != 0:
        return f"exit status {status}"
    return "" if re.search(r"\b[1-9]\d* passed", output.rpartition("\n")[2]) else "no test has passed"


def findings(tool: str, output: str) -> int | None:
    """How much a sanitizer has found, by its own summary; None if there is no summary."""
    pattern = r"RACECHECK SUMMARY: (\d+) hazard" if tool == "racecheck" else r"ERROR SUMMARY: (\d+) error"
    found = re.findall(pattern, output)
    return sum(map(int, found)) if found else None


def clean(tool: str, wanted: str) -> Callable[[int, str], str]:
    """Nothing found, and the program has printed `wanted`: it did run its kernels."""

    def judge(status: int, output: str) -> str:
        found = findings(tool, output)
        if found is None:
            return f"{tool} printed no summary (exit status {status})"
        if found:
            return f"{tool} found {found} faults"
        if wanted not in output:
            return f"the program did not print {wanted!r}"
        return exited_well(status, output)

    return judge


def caught(tool: str) -> Callable[[int, str], str]:
    """The planted fault was found."""

    def judge(status: int, output: str) -> str:
        if findings(tool, output):
            return ""
        return f"{tool} DID NOT CATCH the planted fault: nothing it says about the other kernels can be believed"

    return judge


# ---- steps ----


@dataclass(frozen=True)
class Tools:
    """Programs that the steps call."""

    nvcc: str
    sanitizer: str
    arch: str  # e.g. sm_90


def find(program: str) -> str | None:
    """A program of the CUDA toolkit: from PATH, CUDA_HOME or the usual place."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    places = (shutil.which(program), f"{home}/bin/{program}", f"{home}/{program}/{program}")
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def tools() -> Tools:
    """What is on this machine.

    Raises:
        Missing: there is no GPU, or no compute-sanitizer, or no nvcc.
    """
    import torch

    if not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "check nvidia-smi"
        raise Missing(f"no GPU: torch finds none ({why}); bench/gpu.py needs one, --dry-run shows what it would do")
    found = {program: find(program) for program in ("nvcc", "compute-sanitizer")}
    for program, path in found.items():
        if path is None:
            raise Missing(f"no {program}: install the CUDA toolkit, or set CUDA_HOME to the folder it is in")
    major, minor = torch.cuda.get_device_capability()
    return Tools(str(found["nvcc"]), str(found["compute-sanitizer"]), f"sm_{major}{minor}")


def gpu_tests() -> list[str]:
    """The test files that have anything to run on a GPU."""
    pattern = re.compile(r"\bbackend\b|mark\.gpu")
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if pattern.search(file.read_text())]


def plan(t: Tools, work: Path) -> list[Step]:
    """All steps, in order; scratch files go to work."""
    python = sys.executable
    canary = str(work / "canary.so")
    build = [python, "setup.py", "-q", "build_ext", "--inplace", "--build-temp", str(work / "build")]
    compile_canary = [t.nvcc, "-shared", "-Xcompiler", "-fPIC", "-lineinfo", f"-arch={t.arch}", "-o", canary]
    tests = [python, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *gpu_tests()]
    bench = [python, "-m", "bench", "--device", "cuda", "--benchmark-max-time=0.2", f"--json={work / 'bench.json'}"]
    # Every tensor in an allocation of its own: in the caching allocator's pools the next tensor hides an overrun.
    lone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

    def under(tool: str, *arguments: str) -> list[str]:
        options = ["--tool", tool, "--kernel-name", "kernel_substring=vda", "--error-exitcode", "99"]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []  # torch asks for what may be missing
        return [t.sanitizer, *options, python, SELFCHECK, *arguments]

    steps = [
        Step("build", build, 240, exited_well, {"VDA_CUDA": "on"}),
        Step("doctor", [python, "-m", "vda", "doctor"], 60, exited_well, needs=["build"]),
        Step("tests", tests, 180, tests_passed, needs=["build"]),
        Step("canary", [*compile_canary, "tests/gpu/canary.cu"], 90, exited_well),
    ]
    for tool in SANITIZERS:
        planted, sound = f"{tool}: planted fault", f"{tool}: sound kernel"
        steps += [
            Step(planted, under(tool, canary, tool), 60, caught(tool), needs=["canary"]),
            Step(sound, under(tool, canary, "sound"), 60, clean(tool, "canary sound: done"), needs=["canary"]),
            Step(
                f"{tool}: every op",
                under(tool, "ops"),
                150,
                clean(tool, "every op checked"),
                lone,
                needs=["build", planted, sound],
            ),
        ]
    training = [python, "-m", "bench.steps", "--size", "paper"]
    steps.append(Step("training steps", training, 120, exited_well, needs=["build"]))
    return [*steps, Step("bench", bench, 300, exited_well, needs=["build"])]


def selected(steps: Sequence[Step], only: Sequence[str] | None) -> list[Step]:
    """The steps whose names begin so and what they need, but the build, which lasts; all of them for None."""
    if only is None:
        return list(steps)
    wanted = [s for s in steps if s.name.startswith(tuple(only))]
    needed = {name for s in wanted for name in s.needs} | {s.name for s in wanted}
    needed |= {name for s in steps if s.name in needed for name in s.needs}
    return [s for s in steps if s.name in needed and (s.name != "build" or s in wanted)]


# ---- running ----


def run(step: Step, limit: float) -> Outcome:
    """Run a step for at most limit seconds. One that takes longer is interrupted, then killed."""
    outcome = Outcome(step.name, shlex.join(step.command))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **step.environment}
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            outcome.status, outcome.reason = "failed", f"{step.command[0]} does not start: {error}"
            return outcome
        in_time = _wait(process, limit)
        log.seek(0)
        output = log.read().decode(errors="replace").rstrip()
    outcome.seconds = round(time.monotonic() - start, 1)
    if in_time:
        outcome.reason = step.judge(process.returncode, output)
        outcome.status = "failed" if outcome.reason else "passed"
    else:
        outcome.status, outcome.reason = "timed out", f"longer than {limit:.0f} s"
    outcome.tail = output[-TAIL:] if outcome.status != "passed" else output.rpartition("\n")[2]
    return outcome


def _wait(process: subprocess.Popen[bytes], limit: float) -> bool:
    """Whether the process has ended by itself; its children end with it."""
    try:
        process.wait(limit)
        return True
    except subprocess.TimeoutExpired:
        for sign, grace in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
            os.killpg(process.pid, sign)
            try:
                process.wait(grace)
                break
            except subprocess.TimeoutExpired:
                continue
        return False


def run_all(steps: Sequence[Step], budget: float, report: Callable[[list[Outcome]], None]) -> list[Outcome]:
    """Run the steps in order within budget seconds; report what there is after each."""
    deadline = time.monotonic() + budget
    outcomes: list[Outcome] = []
    for step in steps:
        done = {o.name: o.status for o in outcomes}
        lacking = [name for name in step.needs if done.get(name, "passed") != "passed"]
        left = deadline - time.monotonic()
        if lacking:
            outcome = Outcome(step.name, shlex.join(step.command), reason=f"needs {', '.join(lacking)}")
        elif left < 1:
            outcome = Outcome(step.name, shlex.join(step.command), reason="no time left")
        else:
            outcome = run(step, min(step.limit, left))
        outcomes.append(outcome)
        line = f"{outcome.status:<10} {outcome.seconds:>6.1f} s  {outcome.name}"
        print(f"{line}: {outcome.reason}" if outcome.reason else line, flush=True)
        report(outcomes)
    return outcomes


def document(machine: dict[str, Any], nvcc: str, outcomes: Sequence[Outcome], bench: Path) -> dict[str, Any]:
    """What --out holds; the benchmarks as `python -m bench --json` writes them, None if there are none."""
    rows = json.loads(bench.read_text()) if bench.exists() else None
    return {"machine": machine, "nvcc": nvcc, "steps": [asdict(o) for o in outcomes], "bench": rows}


def main(arguments: list[str]) -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results.json"), help="the JSON file (default results.json)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only the steps whose names begin so")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for everything (default {BUDGET})")
    parser.add_argument("--dry-run", action="store_true", help="print the steps; needs no GPU")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        try:
            t = Tools("nvcc", "compute-sanitizer", "sm_XX") if given.dry_run else tools()
        except Missing as missing:
            print(f"bench/gpu.py: {missing}", file=sys.stderr)
            return 2
        steps = selected(plan(t, work), given.only)
        if given.dry_run:
            for step in steps:
                extra = "".join(f"{k}={v} " for k, v in step.environment.items())
                print(f"{step.name} (at most {step.limit:.0f} s)\n    {extra}{shlex.join(step.command)}")
            return 0
        return _measure(steps, t, given.out, given.budget, work)


def _measure(steps: Sequence[Step], t: Tools, out: Path, budget: float, work: Path) -> int:
    import torch

    from bench import machine, table

    here = machine.describe(torch.device("cuda"))
    version = subprocess.run([t.nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    nvcc = next(iter(re.findall(r"release ([\d.]+)", version)), "unknown")

    def report(outcomes: list[Outcome]) -> None:
        table.write_json(out, document(here, nvcc, outcomes, work / "bench.json"))

    outcomes = run_all(steps, budget, report)
    print(f"{machine.line(here)}\n{out}: {sum(o.status == 'passed' for o in outcomes)} of {len(outcomes)} steps passed")
    return int(any(o.status != "passed" for o in outcomes))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
