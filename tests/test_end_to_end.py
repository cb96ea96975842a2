"""As a user goes: from own folders and video, and from VIPER and Cityscapes-VPS, to a model, predictions, pages."""

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


# a few steps of a small network
SMALL = ["--data.size", "48", "64", "--network.width", "8", "--snapshots", "1"]
SMALL += [
    word
    for method in ("source-only", "vat", "vst")
    for setting in ("iterations 4", "batch 1")
    for word in f"--{method}.optimiser.{setting}".split()
]


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
    data = ["--data.source", "town.yaml/train", "--data.target", "drive.yaml/all", "--data.validation", "town.yaml/val"]
    run(ROOT / "train.py", "recipe", "ours", *data, *SMALL, "--flow.provider", "dis", "--out", "runs/town", cwd=world)
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


# ---- VIPER to Cityscapes-VPS, as unpacked


def save(path: Path, pixels: np.ndarray, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = Image.frombytes("P", pixels.shape[::-1], pixels.tobytes())
        image.putpalette([0, 80, 100] * 256)
    image.save(path)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Roots viper and cityscapes_vps: two clips of VIPER, one of each part of the other; road, vegetation and sky."""
    folder = tmp_path_factory.mktemp("unpacked")
    for sequence in ("001", "002"):
        for number in range(10, 14):
            image, label = scene(int(sequence), 2 * number - 20, 10)
            stem = f"{sequence}/{sequence}_{number:05d}"
            save(folder / f"viper/train/img/{stem}.jpg", image)
            save(folder / f"viper/train/cls/{stem}.png", np.array([3, 8, 2], np.uint8)[label], palette=True)
    (folder / "viper/day.txt").write_text("001\n002\n")
    root = folder / "cityscapes_vps"
    for part, video, place in (("train", 1, "munster_000173"), ("val", 5, "frankfurt_000000")):
        for number in range(30):
            image, label = scene(video, number, 30)
            frames = folder / "leftImg8bit_sequence/val/munster" if part == "train" else root / part / "img_all"
            save(frames / f"{place}_{number:06d}_leftImg8bit.png", image // 2)
            if number % 5 == 4:
                k = number // 5
                stem = f"{video:04d}_{6 * (video - 1) + k + 1:04d}_{place}_{number:06d}"
                own = k == 3  # Cityscapes' own label
                save(root / part / "img" / f"{stem}_{'leftImg8bit' if own else 'newImg8bit'}.png", image // 2)
                mask = f"{stem}_{'gtFine_color' if own else 'final_mask'}.png"
                save(root / part / "labelmap" / mask, np.array([0, 8, 10], np.uint8)[label])
    return folder


def test_from_viper_to_cityscapes_vps(unpacked: Path) -> None:
    roots = ["--data.source-root", "viper", "--data.target-root", "cityscapes_vps"]
    network = ["--network.name", "deeplab-resnet18", "--network.batch-norm", "train"]
    argv = ["recipe", "ours", "--data", "viper-cityscapes-vps", *roots, *network, *SMALL, "--out", "runs/ours"]
    run(ROOT / "train.py", *argv, cwd=unpacked)
    scores = json.loads((unpacked / "runs/ours/scores.json").read_text())
    assert len(scores["vst"]["classes"]) == 15
    assert (scores["vst"]["frames"], scores["vst"]["clips"]) == (6, 1)
    run("-m", "vda", "predict", "runs/ours/vst", "cityscapes_vps/val/img_all", "-o", "predicted", cwd=unpacked)
    assert len([*(unpacked / "predicted/labels/img_all").glob("*.png")]) == 30
    assert (unpacked / "predicted/overlay/img_all.webm").stat().st_size > 0
    argv = ["runs/ours/vat", "runs/ours/vst", "--data", "cityscapes-vps/val", "--root", "cityscapes_vps"]
    out = run(ROOT / "evaluate.py", *argv, "--flow", "dis", "--out", "compared", cwd=unpacked)
    assert "TC" in out
    page = (unpacked / "compared/scores.html").read_text()
    assert "runs/ours/vst" in page
