"""Forks the writers of the package and kills them with SIGKILL: `python tests/killing.py FOLDER` (see test_kills.py).

Each case is a function that goes on from what lies in its folder. It is killed at a random moment and started again,
until it comes to its end; after every kill, every file under its final name must be that of the uninterrupted work.
A process of its own, with one thread, so that a fork takes no lock of another thread with it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoints import CLASSES, small_checkpoint
from clips import dataset, scrolling_clip
from PIL import Image
from torch import Tensor, nn

from vda import pseudo
from vda.__main__ import main
from vda.checkpoint import latest, load_checkpoint, prune, save_checkpoint
from vda.files import alone
from vda.flow.cache import precompute
from vda.flow.providers import ExactFlow
from vda.options import Occlusion, Pseudo
from vda.predict.command import Predict, predict
from vda.predictions import NetworkPredictor
from vda.report import write_report
from vda.run import network_of
from vda.scoring import score_predictions, write_scores

CPU = torch.device("cpu")
STEPS, EVERY = 12, 5
Files = dict[str, bytes]


class ColourNet(nn.Module):
    """Logits that are a fixed function of the colour."""

    def forward(self, images: Tensor) -> Tensor:
        return 6 * images - 3


CLIPS = dataset(*(scrolling_clip(f"clip{n}", length=3 + n, seed=n) for n in range(4)))


# --- the cases


def save(folder: Path) -> None:
    """Every step is saved twice, so that checkpoints are also replaced; every fifth stays."""
    newest = latest(folder)
    for step in range(load_checkpoint(newest).step if newest else 0, STEPS + 1):
        for _ in range(2):
            save_step(folder, step)
            prune(folder, 2, spare=range(0, STEPS, EVERY))
            (folder / "reported").write_text(str(step))


def save_step(folder: Path, step: int) -> None:
    """A checkpoint whose whole content says which step it is of."""
    network = nn.Linear(16, 16)
    nn.init.constant_(network.weight, step)
    nn.init.zeros_(network.bias)
    state = {"step": step, "moments": torch.full((64,), float(step))}
    save_checkpoint(folder, step=step, modules={"network": network}, state=state, meta={"iteration": step})


def label(folder: Path) -> None:
    generator = pseudo.Generator(ColourNet(), ExactFlow(), Pseudo(aggregate=True), Occlusion(), CPU)
    pseudo.generate(generator, CLIPS, folder / "pseudo", model="m", flow_name="exact", seed=4)


def cache_flow(folder: Path) -> None:
    precompute(ExactFlow(), CLIPS, folder, steps=(1, 2), workers=2)


def evaluate(folder: Path) -> None:
    network = network_of(load_checkpoint(MODEL), CPU)
    classes = dataset(*CLIPS.clips, classes=len(CLASSES))
    scores = {"net": score_predictions(NetworkPredictor(network, CPU), classes)}
    write_scores(folder / "scores.json", scores)
    about = {"classes": classes.classes, "palette": classes.palette, "settings": {}, "clips": []}
    write_report(folder / "scores.html", title="Scores", scores=scores, **about)


def predict_frames(folder: Path) -> None:
    predict(Predict(MODEL, FOOTAGE, folder / "out", write=("labels", "colour"), size=(32, 32), device="cpu"))


def unpack(folder: Path) -> None:
    assert main(["data", "extract", str(FOOTAGE.with_suffix(".zip")), "--out", str(folder / "out")]) == 0


def write_footage() -> None:
    """Three short clips as folders of images, and as an archive."""
    with zipfile.ZipFile(FOOTAGE.with_suffix(".zip"), "w") as archive:
        for clip in CLIPS.clips[:3]:
            (FOOTAGE / clip.name).mkdir(parents=True)
            for i, name in enumerate(clip.frame_names):
                path = FOOTAGE / clip.name / f"{name}.png"
                Image.fromarray(clip.frame(i)).save(path)
                for copy in range(20):
                    archive.write(path, f"{clip.name}/{name}-{copy}.png")


CASES: dict[str, tuple[Callable[[Path], None], int]] = {  # and how many kills
    "save": (save, 45),
    "pseudo labels": (label, 30),
    "flow": (cache_flow, 30),
    "evaluation": (evaluate, 20),
    "predict": (predict_frames, 12),
    "extract": (unpack, 12),
}


# --- killing


def files(folder: Path) -> Files:
    """All files under final names."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".") and "/." not in name}


def check(folder: Path, whole: Files) -> None:
    """Every file is that of the uninterrupted work, a manifest of pseudo labels the beginning of it."""
    for name, content in files(folder).items():
        if name.startswith("step-"):
            continue  # below
        if name == "pseudo/manifest.jsonl":
            assert whole[name].startswith(content), name
            assert content.endswith(b"\n"), name
        elif name == "out/predict.json":
            assert json.loads(content)["clips"].items() <= json.loads(whole[name])["clips"].items()
        elif name != "reported":
            assert whole[name] == content, name
    # one that was replaced counts no more, and may be half removed
    steps = [
        path for path in sorted(folder.glob("step-*")) if path.suffix != ".old" or not path.with_suffix("").exists()
    ]
    for path in steps:
        loaded = load_checkpoint(path)
        assert loaded.state["step"] == loaded.meta["iteration"] == loaded.step
        assert (loaded.modules["network"]["weight"] == loaded.step).all()
        assert (loaded.state["moments"] == loaded.step).all()
    reported = folder / "reported"
    if reported.exists() and (text := reported.read_text()):
        newest, step = latest(folder), int(text)
        assert newest is not None
        assert load_checkpoint(newest).step in (step, step + 1), "a step that was reported is on the disk"
        kept = {load_checkpoint(path).step for path in steps}
        assert kept >= set(range(0, step, EVERY)), "every fifth stays"


def is_replaced(path: Path) -> bool:
    """A checkpoint that counts no more, since its successor is there; it may be half removed."""
    return path.suffix == ".old" and path.with_suffix("").exists()


def forked(work: Callable[[Path], None], folder: Path) -> int:
    """The process id of a child that works in `folder`, alone there as a training is."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with alone(folder):
            work(folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def kill_repeatedly(work: Callable[[Path], None], folder: Path, kills: int, rng: random.Random) -> int:
    """How many of the children were killed; each went on where the one before it was."""
    began = time.monotonic()
    child = forked(work, folder / "whole")
    assert os.waitpid(child, 0)[1] == 0
    span, whole = time.monotonic() - began, files(folder / "whole")
    done = ended = 0
    while done < kills or not ended:
        part = folder / f"part{ended}"
        child = forked(work, part)
        if done < kills:
            time.sleep(span * rng.random() ** 0.5)  # later there is more to lose
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            done += 1
            span *= 1.05
            check(part, whole)
        else:
            assert status == 0, "a child that goes on ends well"
            ended += 1
            span *= 0.8  # faster than the first one, or than on a machine that had more to do
            assert files(part) == whole, "the end is that of the uninterrupted work"
    return done


def run(folder: Path) -> None:
    global MODEL, FOOTAGE
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # no checkpoint is ever passed over
    MODEL, FOOTAGE = small_checkpoint(folder / "model") / "step-000001", folder / "footage"
    write_footage()
    rng = random.Random(7)
    done = {}
    for name, (work, kills) in CASES.items():
        done[name] = kill_repeatedly(work, folder / name, kills, rng)
    print(json.dumps(done))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
