"""What ends a long run from outside: a full disk, a folder that may not be written, another process, lost files.

Each ends in one sentence with status 2 that names the file and says how to go on, and the last good state goes on to
the same end. Damage to what is there is in test_damage.py, kills are in test_kills.py and test_train.py.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
import yaml
from checkpoints import small_checkpoint
from clips import dataset, scrolling_clip
from PIL import Image
from test_pseudo import clips as noisy_clips
from test_pseudo import files, run

import evaluate
import train
from vda.__main__ import main
from vda.checkpoint import latest, load_checkpoint
from vda.cli import create_folder, resumable, run_command
from vda.config import Config, to_dict
from vda.data import open_dataset
from vda.data.labels import write_label
from vda.data.transforms import Augment
from vda.data.tubes import Tubes, loader
from vda.errors import UsageError
from vda.files import alone
from vda.flow.cache import precompute
from vda.flow.providers import ExactFlow
from vda.methods.supervised import SupervisedSettings
from vda.options import Data, Flow, Network, Optimiser

ROOT = Path(__file__).parents[1]
FULL, READ_ONLY = errno.ENOSPC, errno.EROFS


def small(**changes: Any) -> Config:
    steps = Optimiser(iterations=4, batch=1, name="adam", lr=1e-3)
    return Config(
        device="cpu",
        recipe="small",
        checkpoint_every=1,
        snapshots=1,
        flow=Flow(provider="exact"),
        data=Data("embedded/simulator:2", "embedded/camera:2", None, "embedded/camera-val:2", size=(64, 96)),
        network=Network(name="deeplab-resnet18", width=8, batch_norm="train"),
        methods={"source_only": SupervisedSettings(optimiser=steps)},
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A settings file and beside it "whole", a finished run of it."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "small.yaml").write_text(yaml.safe_dump(to_dict(small()), sort_keys=False))
    assert trained(folder / "small.yaml", "--out", folder / "whole") == 0
    return folder / "small.yaml"


def trained(*words: object) -> int:
    """`python train.py WORDS` in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return run_command(train.train, [str(word) for word in words])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def failing(monkeypatch: pytest.MonkeyPatch, reason: int, part: str, after: int = 0) -> Callable[..., Any]:
    """From the `after`-th time on, files with `part` in their path cannot be written, as the system would have it."""
    context = monkeypatch.context
    seen = 0

    def guard(real: Callable[..., Any], path_of: Callable[..., str]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            if part in path_of(*arguments):
                seen += 1
                if seen > after:
                    raise OSError(reason, os.strerror(reason))
            return real(*arguments, **options)

        return call

    class Failing:
        def __enter__(self) -> None:
            self.patches = context()
            patch = self.patches.__enter__()
            if reason == READ_ONLY:

                def opened(path: Any, flags: int, *_: Any, **__: Any) -> str:
                    return os.fspath(path) if flags & (os.O_WRONLY | os.O_CREAT) else ""

                patch.setattr(os, "open", guard(os.open, opened))
            else:  # a full disk is noticed when what was written is flushed
                patch.setattr(os, "fsync", guard(os.fsync, lambda file: os.readlink(f"/proc/self/fd/{file}")))

        def __exit__(self, *error: Any) -> None:
            self.patches.__exit__(*error)

    return Failing()


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on standard error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "it/s" not in line and "%|" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


# --- training


@pytest.mark.parametrize(
    ("file", "reason"), [("network.safetensors", FULL), ("state.pt", READ_ONLY), ("manifest.json", FULL)]
)
def test_no_room_for_a_checkpoint(
    settings: Path,
    tmp_path: Path,
    file: str,
    reason: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The third checkpoint cannot be written: the second one stays, and the printed command goes on from it."""
    out = tmp_path / "out"
    with failing(monkeypatch, reason, file, after=2):
        assert trained(settings, "--out", out) == 2
    sentence = told(capsys)
    assert f"error: {out}/source_only/step-000003: {os.strerror(reason)}" in sentence
    assert ("; make room there;" in sentence) == (reason == FULL)
    newest = latest(out / "source_only")
    assert newest is not None
    assert newest.name == "step-000002"
    assert not list(out.rglob("*.tmp"))
    goes_on(sentence, out, settings)


def goes_on(sentence: str, out: Path, settings: Path) -> None:
    """The command that a sentence ends in comes to the end of the run that nothing happened to."""
    words = sentence.split("continue with `python train.py ")[1].removesuffix("`").split()
    assert trained(*words) == 0
    for name in ("network.safetensors", "state.pt"):
        one, other = (folder / "source_only/step-000004" / name for folder in (settings.parent / "whole", out))
        assert one.read_bytes() == other.read_bytes()


def test_no_room_for_the_log(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, out = train.Live.step, tmp_path / "out"

    def step(self: Any, iteration: int, *rest: Any) -> None:
        if iteration == 2:
            self._log.close()
            self._log = open("/dev/full", "w", buffering=1)  # noqa: SIM115
        real(self, iteration, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train.Live, "step", step)
        assert trained(settings, "--out", out) == 2
    sentence = told(capsys)
    assert f"error: {out}/source_only/log.jsonl: No space left on device; make room there; continue with" in sentence
    goes_on(sentence, out, settings)


def test_a_real_limit_on_the_size_of_files(settings: Path, tmp_path: Path) -> None:
    """The system's own refusal, in a process of its own."""
    limit = 50_000  # below a checkpoint's file, above all others
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), str(settings), "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: out/source_only/step-000001: File too large; make room there; "
        "continue with `python train.py out/config.yaml --resume --out out`"
    )
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        ".lock",
        "config.yaml",
        "log.jsonl",
    ]


@pytest.mark.parametrize(
    ("file", "reason"),
    [("config.yaml", READ_ONLY), ("finished.json", FULL), ("scores.json", READ_ONLY), ("report.html", FULL)],
)
def test_no_room_for_the_other_files_of_a_run(
    settings: Path,
    tmp_path: Path,
    file: str,
    reason: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    with failing(monkeypatch, reason, file):
        assert trained(settings, "--out", out) == 2
    assert f"{file}: {os.strerror(reason)}" in told(capsys)
    again = ["--resume"] if (out / "config.yaml").exists() else []
    assert trained(settings, "--out", out, *again) == 0
    assert (out / "report.html").exists()


def test_a_folder_below_a_file(settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert trained(settings, "--out", tmp_path / "file" / "out") == 2
    assert told(capsys) == f"error: {tmp_path}/file/out: Not a directory"


def test_losses_that_are_no_numbers(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights of the step that diverged are never saved."""
    out, real = tmp_path / "out", train.set_learning_rates

    def raised(optimisers: Any, optimiser: Any, iteration: int) -> None:
        real(optimisers, optimiser, iteration)
        if iteration == 1:
            for group in optimisers["network"].param_groups:
                group["lr"] = float("inf")

    monkeypatch.setattr(train, "set_learning_rates", raised)
    assert trained(settings, "--out", out) == 2
    assert "training diverged, losses {'seg': nan}: lower the learning rate" in told(capsys)
    for path in (out / "source_only").glob("step-*"):
        tensors = load_checkpoint(path).modules["network"].values()
        assert path.name != "step-000003"
        assert path.name == "step-000002" or all(x.isfinite().all() for x in tensors)


# --- other writers


def label(folder: Path) -> None:
    run(folder)


def cache_flow(folder: Path) -> None:
    precompute(ExactFlow(), noisy_clips(), folder, steps=(1, 2), workers=2)


@pytest.mark.parametrize("reason", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize(
    ("work", "part", "after"),
    [(label, "0001.png", 2), (label, "manifest.jsonl", 2), (cache_flow, "0001-0002.npy", 1), (cache_flow, ".json", 0)],
)
def test_no_room_for_pseudo_labels_and_flow(
    work: Callable[[Path], None], part: str, after: int, reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file; what is there is right, and the same call again comes to the same end."""
    work(tmp_path / "whole")
    out = tmp_path / "out"
    with failing(monkeypatch, reason, part, after), pytest.raises(OSError, match=os.strerror(reason)) as info:
        work(out)
    assert str(info.value.filename).startswith(str(out))
    assert str(info.value.filename).endswith(part)
    whole = files(tmp_path / "whole")
    for name, content in files(out).items():
        assert whole[name].startswith(content) if name == "manifest.jsonl" else whole[name] == content
    work(out)
    assert files(out) == whole


@pytest.mark.parametrize("reason", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("file", ["scores.json", "scores.md", "scores.html"])
def test_no_room_for_an_evaluation(
    file: str, reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The older scores stay."""
    data = dataset(scrolling_clip("a", 3))
    monkeypatch.setattr(evaluate, "open_dataset", lambda name, root, size: data)
    for i, name in enumerate(data.clips[0].frame_names):
        write_label(tmp_path / "theirs" / "a" / f"{name}.png", data.clips[0].label(i))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_text("older")
    words = [str(tmp_path / "theirs"), "--data", "arrays/all", "--out", str(tmp_path / "out")]
    with failing(monkeypatch, reason, file):
        assert run_command(evaluate_main, words) == 2
    assert f"{tmp_path}/out/{file}: {os.strerror(reason)}" in told(capsys)
    assert (tmp_path / "out" / file).read_text() == "older"
    assert run_command(evaluate_main, words) == 0
    assert (tmp_path / "out" / file).read_text() != "older"


def evaluate_main(argv: Any) -> None:
    evaluate.evaluate(tyro.cli(evaluate.Evaluate, args=argv))


@pytest.mark.parametrize("reason", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_no_room_for_predictions(
    reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clip before stays; the same command again does the rest."""
    model, footage, out = small_checkpoint(tmp_path / "model"), tmp_path / "footage", tmp_path / "out"
    for clip in ("a", "b"):
        (footage / clip).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((40, 56, 3), 60 * i, np.uint8)).save(footage / clip / f"{i}.png")
    words = ["predict", str(model), str(footage), "-o", str(out), "--write", "labels"]
    with failing(monkeypatch, reason, "/.b.tmp/labels"):
        assert main(words) == 2
    assert os.strerror(reason) in told(capsys)
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["a"]
    assert list(json.loads((out / "predict.json").read_text())["clips"]) == ["a"]
    assert main(words) == 0
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["a", "b"]


# --- other processes


def test_two_runs_in_one_folder(settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused at once, and the first goes on undisturbed."""
    out = tmp_path / "out"
    create_folder(small(), out)
    with alone(out / "source_only"):
        assert trained(settings, "--resume", "--out", out) == 2
        sentence = told(capsys)
        assert f"error: {out}/source_only: wanted it alone, found another process that writes there" in sentence
        assert not list((out / "source_only").glob("step-*"))
    goes_on(f"continue with `python train.py {settings} --resume --out {out}`", out, settings)


def test_two_runs_that_choose_the_same_folder(tmp_path: Path) -> None:
    """Both saw that it was free; the first to write its settings has it."""
    create_folder(small(), tmp_path / "runs")
    with pytest.raises(UsageError, match=r"runs: wanted a free folder, another run has just begun there"):
        create_folder(small(), tmp_path / "runs")


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    ours = [".step-000004.0123456789ab.tmp", "pseudo/clip/.0001.png.0123456789ab.tmp"]
    others = [".hidden", "note.tmp", "pseudo/.clip.tmp"]
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".step-000003.0123456789ab.tmp").mkdir()
    with alone(tmp_path):
        pass
    assert files(tmp_path).keys() == {*others, ".lock"}
    assert not list(tmp_path.glob(".step*"))


# --- data


@pytest.mark.parametrize("workers", [0, 2])
def test_a_frame_that_is_lost_in_mid_training(workers: int, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        for end in ("img1.png", "img2.png"):
            Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / f"{name}_{end}")
        (tmp_path / f"{name}_flow.flo").write_bytes(b"")
    data = open_dataset("pairs/all", tmp_path, (8, 12))
    tubes = Tubes(data, length=2, step=1, augment=Augment(), seed=0, labels=None)
    batches = loader(tubes, batch=1, start=0, stop=40, workers=workers)
    next(batches)
    (tmp_path / "b_img2.png").unlink()
    with pytest.raises(UsageError, match=r"b_img2\.png: wanted an image, found no file"):
        list(batches)


def test_a_loader_process_that_is_killed(tmp_path: Path) -> None:
    """As the system does when memory runs out; torch notices anywhere in the training step."""
    tubes = Tubes(dataset(scrolling_clip("a", 9)), length=2, step=1, augment=Augment(), seed=0, labels=None)

    def take() -> None:
        for _ in loader(tubes, batch=1, start=0, stop=100_000, workers=1):
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
            # torch hears of it by a signal, which may come at any time from here on; later it would be another test's
            os.waitid(os.P_PID, int(children[-1]), os.WEXITED | os.WNOWAIT)

    with pytest.raises(UsageError) as info, resumable(tmp_path):
        take()
    assert str(info.value) == (
        "data.workers: a loader process was killed, most often for want of memory; fewer of them want less; "
        f"continue with `python train.py {tmp_path}/config.yaml --resume --out {tmp_path}`"
    )
    with pytest.raises(RuntimeError, match="another"), resumable(tmp_path):  # a bug keeps its traceback
        raise RuntimeError("another")


def test_no_clock_decides_anything() -> None:
    """Nothing asks what time it is, so a clock that goes backwards changes no result; durations are monotonic."""
    banned = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "today"), ("date", "today")}
    for path in (*(ROOT / "vda").rglob("*.py"), ROOT / "train.py", ROOT / "evaluate.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in banned, f"{path}: {node.lineno}"
