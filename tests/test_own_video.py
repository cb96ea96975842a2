"""What README says of your own video: from labelled folders and a video to an adapted model, predictions, pages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COLOURS = np.array([[90, 90, 90], [60, 160, 60], [120, 170, 230]], np.uint8)
DESCRIPTION = """
classes: {{road: [128, 64, 128], grass: [152, 251, 152], sky: [70, 130, 180]}}
splits:
{splits}
"""


def scene(seed: int, shift: int, noise: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB [48, 64, 3] and labels of a road that moves to the right by `shift`."""
    y, x = np.mgrid[:48, :64]
    label = np.where(y < 16, 2, np.where(np.abs(x - 20 - shift) < (y - 10) // 2, 0, 1)).astype(np.uint8)
    grain = np.random.default_rng([seed, shift]).integers(-noise, noise + 1, (48, 64, 3))
    return (COLOURS[label] + grain).clip(0, 255).astype(np.uint8), label


def run(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, argv)], cwd=cwd, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for part in ("train", "val"):
        for kind in ("rgb", "mask"):
            (folder / kind / part).mkdir(parents=True)
        for i in range(6):
            image, label = scene(len(part), 2 * i, 10)
            Image.fromarray(image).save(folder / "rgb" / part / f"{i:03d}.png")
            Image.fromarray(label).save(folder / "mask" / part / f"{i:03d}.png")
    splits = "".join(
        f"  {part}: {{frames: 'rgb/{part}/*.png', labels: 'mask/{part}/*.png'}}\n" for part in ("train", "val")
    )
    (folder / "town.yaml").write_text(DESCRIPTION.format(splits=splits))
    writer = cv2.VideoWriter(str(folder / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for i in range(8):
        writer.write(np.ascontiguousarray(scene(9, 2 * i, 30)[0][..., ::-1] // 2))
    writer.release()
    (folder / "drive.yaml").write_text(DESCRIPTION.format(splits="  all: {video: drive.avi}\n"))
    return folder


def test_from_folders_to_predictions(world: Path) -> None:
    out = run("-m", "vda", "data", "check", "town.yaml/train", "drive.yaml/all", "town.yaml/val", cwd=world)
    assert "town-train.manifest.json" in out
    steps = "iterations 4", "batch 1"
    settings = [
        word
        for method in ("source-only", "vat", "vst")
        for step in steps
        for word in f"--{method}.optimiser.{step}".split()
    ]
    data = ["--data.source", "town.yaml/train", "--data.target", "drive.yaml/all", "--data.validation", "town.yaml/val"]
    small = ["--data.size", "48", "64", "--network.width", "8", "--snapshots", "1", "--flow.provider", "dis"]
    run(ROOT / "train.py", "recipe", "ours", *data, *small, *settings, "--out", "runs/town", cwd=world)
    scores = json.loads((world / "runs/town/scores.json").read_text())
    assert list(scores) == ["source_only", "vat", "vst"]
    assert scores["vst"]["classes"] == ["road", "grass", "sky"]
    assert scores["vst"]["frames"] == 6
    report = (world / "runs/town/report.html").read_text()
    assert "drive.yaml/all" in report

    run("-m", "vda", "predict", "runs/town/vst", "drive.avi", "-o", "predicted", cwd=world)
    video = cv2.VideoCapture(str(world / "predicted/overlay/drive.webm"))
    shown = [video.read()[1] for _ in range(8)]
    assert all(frame.shape == (48, 64, 3) for frame in shown)
    assert not video.read()[0]
    labels = sorted((world / "predicted/labels/drive").glob("*.png"))
    assert [path.stem for path in labels] == [f"{i:06d}" for i in range(8)]

    (world / "theirs").mkdir()
    run("-m", "vda", "predict", "runs/town/vst", "rgb/val", "-o", "again", "--write", "labels", cwd=world)
    clip = scores["vst"]["per_clip"][0]["clip"]
    (world / "again/labels/val").rename(world / "theirs" / clip)
    argv = ["runs/town/vst", "theirs", "--data", "town.yaml/val", "--out", "compared"]
    run(ROOT / "evaluate.py", *argv, cwd=world)
    compared = json.loads((world / "compared/scores.json").read_text())
    assert compared["theirs"]["iou"] == compared["runs/town/vst"]["iou"] == scores["vst"]["iou"]
    assert {path.name for path in (world / "compared").iterdir()} == {"scores.json", "scores.md", "scores.html"}


def test_a_changed_file_stops_the_training(world: Path) -> None:
    """Last: after the check above, the manifest knows every file."""
    label = world / "mask/train/002.png"
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(label)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "recipe", "source-only", "--data.source", "town.yaml/train"],
        cwd=world,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "002.png" in done.stderr
