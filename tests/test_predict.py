"""`python -m vda predict`: what is written is what the network says of every frame, whole or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from checkpoints import CLASSES, small_checkpoint
from PIL import Image as Pillow
from shared import shared_data

from vda.__main__ import main
from vda.data.labels import read_label
from vda.data.transforms import resize_image
from vda.errors import UsageError
from vda.models import upsample
from vda.pictures import overlay
from vda.plan import memory
from vda.predict.colours import palette_of
from vda.predict.footage import open_footage
from vda.predict.pipeline import ahead
from vda.predict.writer import RECORD, VP9Writer
from vda.run import network_of, open_checkpoint

H, W = 49, 71  # odd, and not the training size


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def picture(k: int, height: int = H, width: int = W) -> np.ndarray:
    rng = np.random.default_rng(k)
    return cv2.resize(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def write_images(folder: Path, names: list[str], **size: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        Pillow.fromarray(picture(k, **size)).save(folder / name)
    return folder


def write_video(
    path: Path, frames: int, code: str = "MJPG", rate: float = 12.5, height: int = 48, width: int = 64
) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), rate, (width, height))
    assert writer.isOpened()
    for k in range(frames):
        writer.write(picture(k, height, width)[..., ::-1])
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float, str]:
    """RGB frames, frames per second and codec, by OpenCV."""
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while (item := video.read())[0]:
        frames.append(item[1][..., ::-1])
    return frames, video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode()


def wanted(checkpoint: Path, frame: np.ndarray, size: tuple[int, int] = (64, 96)) -> tuple[np.ndarray, np.ndarray]:
    """Label and confidence of one frame, by plain torch."""
    network = network_of(open_checkpoint(checkpoint), torch.device("cpu"))
    images = torch.from_numpy(resize_image(frame, size)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        probs = upsample(network(images), frame.shape[:2]).softmax(1)[0]
    return probs.argmax(0).numpy().astype(np.uint8), np.rint(255 * probs.amax(0).numpy()).astype(np.uint8)


def test_folders_of_images_with_everything(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = {"a": ["f_2.png", "f_10.png", "f_1.bmp"], "b": ["0.png"]}
    for clip, names in clips.items():
        write_images(tmp_path / "in" / clip, names)
    (tmp_path / "in" / "empty").mkdir()
    (tmp_path / "in" / "a" / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    arguments = ["predict", str(checkpoint), str(tmp_path / "in"), "-o", str(out)]
    assert main([*arguments, "--write", "overlay", "labels", "confidence", "colour", "--rate", "10"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: overlay, labels, confidence, colour of 2 clips, 4 frames\n"
    assert "OpenCV" not in said.err
    assert "frame/s" in said.err or "s/frame" in said.err
    palette = palette_of(open_checkpoint(checkpoint))
    orders = {"a": ["f_1.bmp", "f_2.png", "f_10.png"], "b": ["0.png"]}
    for clip, names in orders.items():
        frames, rate, codec = read_video(out / "overlay" / f"{clip}.webm")
        assert (len(frames), rate, codec) == (len(names), 10.0, "VP90")
        for shown, name in zip(frames, names, strict=True):
            frame = np.array(Pillow.open(tmp_path / "in" / clip / name))
            label, confidence = wanted(checkpoint, frame)
            stem = Path(name).stem
            found = read_label(out / "labels" / clip / f"{stem}.png")
            assert found.shape == (H, W)
            assert np.array_equal(found, label)
            assert np.abs(read_label(out / "confidence" / clip / f"{stem}.png").astype(int) - confidence).max() <= 1
            assert np.array_equal(np.array(Pillow.open(out / "colour" / clip / f"{stem}.png")), palette[label])
            assert shown.shape == (H + 1, W + 1, 3)  # VP9 by OpenCV has even sizes
            assert cv2.PSNR(np.ascontiguousarray(shown[:H, :W]), overlay(frame, label, palette)) > 28
    assert len({tuple(np.unique(wanted(checkpoint, picture(k))[0])) for k in range(3)} - {(0,)}) > 0
    assert sorted(p.name for p in out.iterdir()) == ["colour", "confidence", "labels", "overlay", RECORD]
    record = json.loads((out / RECORD).read_text())
    assert record["classes"] == list(CLASSES)
    assert record["clips"]["a"] | {"source": ""} == {"source": "", "frames": 3, "rate": 10.0, "size": [H, W]}


@pytest.mark.parametrize(("suffix", "code"), [("mp4", "mp4v"), ("avi", "MJPG"), ("webm", "VP90")])
def test_a_video_keeps_size_and_rate(checkpoint: Path, tmp_path: Path, suffix: str, code: str) -> None:
    video = write_video(tmp_path / f"drive.{suffix}", 5, code)
    decoded, _, _ = read_video(video)
    out = tmp_path / "out"
    assert main(["predict", str(checkpoint), str(video), "-o", str(out), "--size", "40", "64"]) == 0
    frames, rate, codec = read_video(out / "overlay" / "drive.webm")
    assert [f.shape for f in frames] == [(48, 64, 3)] * 5
    assert (rate, codec) == (12.5, "VP90")
    for k, frame in enumerate(decoded):
        label, _ = wanted(checkpoint, frame, (40, 64))
        assert np.array_equal(read_label(out / "labels" / "drive" / f"{k:06d}.png"), label)


def test_one_image_and_an_input_that_was_done(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        write_images(tmp_path / name, ["street.jpg"])
    out = tmp_path / "out"
    arguments = ["predict", str(checkpoint), str(tmp_path / "one" / "street.jpg"), "-o", str(out)]
    assert main(arguments) == 0
    picture_file = out / "overlay" / "street.png"
    assert np.array(Pillow.open(picture_file)).shape == (H, W, 3)
    before = picture_file.stat().st_mtime_ns
    capsys.readouterr()
    assert main(arguments) == 0
    assert "1 were done before" in capsys.readouterr().out
    assert picture_file.stat().st_mtime_ns == before
    for change, sentence in (
        (["--opacity", "0.3"], "holds predictions with opacity 0.55, wanted 0.3; choose another folder"),
        (["--size", "64", "64"], "holds predictions with size [64, 96], wanted [64, 64]"),
        (["--write", "labels"], 'holds predictions with write ["labels", "overlay"], wanted ["labels"]'),
    ):
        assert main([*arguments, *change]) == 2
        assert sentence in capsys.readouterr().err
    arguments[2] = str(tmp_path / "two" / "street.jpg")
    assert main(arguments) == 2
    assert "holds a clip street of another source" in capsys.readouterr().err
    arguments[2] = str(tmp_path / "one" / "street.jpg")
    write_images(tmp_path / "one", ["street.jpg"])  # the same file, written anew
    assert main(arguments) == 2
    assert f"wanted that of {arguments[2]} as it is" in capsys.readouterr().err


# --- damage


def test_a_video_that_breaks_off_names_the_frame(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_video(tmp_path / "whole.avi", 60)
    content = whole.read_bytes()
    (tmp_path / "broken.avi").write_bytes(content[: len(content) // 2])
    left = len(read_video(tmp_path / "broken.avi")[0])
    assert 10 < left < 45
    out = tmp_path / "out"
    assert main(["predict", str(checkpoint), str(tmp_path / "broken.avi"), "-o", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == (
        f"error: {tmp_path / 'broken.avi'}: wanted 60 frames as its header says, "
        f"frame {left} is damaged, {left} can be read"
    )
    assert [p.name for p in out.iterdir()] == [RECORD]  # nothing looks whole
    assert main(["predict", str(checkpoint), str(whole), "-o", str(out)]) == 0  # and the folder can be used


def test_real_video_with_a_hole_names_the_frame(tmp_path: Path) -> None:
    content = bytearray(shared_data("video", "solidWhiteRight.mp4").read_bytes())
    half = len(content) // 2
    content[half : half + 20_000] = bytes(20_000)
    (tmp_path / "hole.mp4").write_bytes(content)
    (clip,) = open_footage(tmp_path / "hole.mp4")
    assert (clip.size, clip.rate, clip.count) == ((540, 960), 25.0, 221)
    names = []

    def read() -> None:
        for name, _ in clip.frames():
            names.append(name)

    with pytest.raises(UsageError, match=r"wanted 221 frames as its header says, frame (\d+) is damaged") as error:
        read()
    count = len(names)
    assert f"frame {count} is damaged, {count} can be read" in str(error.value)
    assert 90 < count < 130


def test_a_damaged_image_stops_its_clip_and_keeps_those_before(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for clip in ("a", "b"):
        write_images(tmp_path / "in" / clip, ["0.png", "1.png", "2.png"])
    bad = tmp_path / "in" / "b" / "1.png"
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    out = tmp_path / "out"
    arguments = ["predict", str(checkpoint), str(tmp_path / "in"), "-o", str(out)]
    assert main(arguments) == 2
    assert f"{bad}: wanted a whole image, found a damaged file" in capsys.readouterr().err
    assert [p.name for p in (out / "labels").iterdir()] == ["a"]
    assert [p.name for p in (out / "overlay").iterdir()] == ["a.webm"]
    assert not list(out.glob(".*"))
    done = (out / "overlay" / "a.webm").stat().st_mtime_ns
    bad.write_bytes(content)
    (out / ".b.tmp").mkdir()  # of a run that was killed
    (out / ".b.tmp" / "overlay.webm").write_bytes(b"half")
    assert main(arguments) == 0
    assert "2 clips, 6 frames, 1 were done before" in capsys.readouterr().out
    assert (out / "overlay" / "a.webm").stat().st_mtime_ns == done
    assert len(read_video(out / "overlay" / "b.webm")[0]) == 3
    assert not list(out.glob(".*"))


def test_a_network_without_finite_logits_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_checkpoint(tmp_path / "good")
    network = network_of(open_checkpoint(folder), torch.device("cpu"))
    with torch.no_grad():
        next(network.head.parameters()).fill_(float("nan"))  # type: ignore[union-attr, operator]
    from vda.checkpoint import save_checkpoint

    meta = open_checkpoint(folder).meta
    save_checkpoint(tmp_path / "bad", step=1, modules={"network": network}, state={}, meta=meta)
    write_images(tmp_path / "in", ["7.png"])
    assert main(["predict", str(tmp_path / "bad"), str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 2
    assert "frame 7: wanted finite logits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        ({"none": None}, "none: wanted a video, an image or a folder of images, found nothing there"),
        ({"a.txt": b"text"}, "a.txt: wanted a folder or a file of .mp4, .m4v"),
        ({"a.mp4": b"#EXTM3U\n/etc/passwd"}, "a.mp4: wanted an MP4, AVI, WebM or Matroska file, found something else"),
        ({"a.avi": b"RIFF\x04\x00\x00\x00AVI "}, "a.avi: wanted a video, found a damaged file or a codec"),
        ({"a.webm": b""}, "a.webm: wanted an MP4, AVI, WebM or Matroska file, found something else"),
        ({"a.png": b"text"}, "a.png: wanted an image, found an unreadable file"),
        ({"in/": None}, "in: wanted videos, images (.png, .jpg, .jpeg, .bmp, .webp) or folders of images"),
        ({"in/a.png": (8, 9), "in/b/c.png": (8, 9)}, "found both: a.png and b/"),
        ({"in/a.png": (8, 9), "in/a.jpg": (8, 9)}, "wanted every name of an image once, found 2 of a"),
        ({"in/a.png": (8, 9), "in/b.png": (9, 8)}, "b.png: wanted the size of the first frame, 9 x 8, found 8 x 9"),
    ],
)
def test_bad_input_is_one_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: dict[str, Any], sentence: str
) -> None:
    for name, content in make.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif isinstance(content, tuple):
            Pillow.fromarray(picture(0, *content)).save(path)
        elif content is not None:
            path.write_bytes(content)
    source = tmp_path / next(iter(make)).split("/")[0]
    _refused(["predict", str(checkpoint), str(source), "-o", str(tmp_path / "out")], sentence, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--write", "labels", "labels"], "--write: wanted each kind once, found"),
        (["--size", "31", "64"], "--size: wanted at least 32 x 32, found (31, 64)"),
        (["--rate", "0"], "--rate: wanted between 0 and 1000, found 0.0"),
        (["--rate", "nan"], "--rate: wanted between 0 and 1000, found nan"),
        (["--opacity", "1.5"], "--opacity: wanted 0 to 1, found 1.5"),
        (["-o", "FULL"], "FULL: wanted a new or empty folder, or one of earlier predictions, found other files"),
        (["-o", "FILE"], "FILE: wanted a folder for the predictions, found a file"),
        (["-o", "BROKEN"], "predict.json: wanted the record of earlier predictions, the file is damaged"),
    ],
)
def test_bad_settings_are_one_sentence(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "in", ["0.png"])
    write_images(tmp_path / "FULL", ["0.png"])
    (tmp_path / "FILE").write_text("")
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / RECORD).write_text('{"clips": 3')
    out = [] if "-o" in arguments else ["-o", "out"]
    _refused(["predict", str(checkpoint), "in", *out, *arguments], sentence, capsys)
    assert not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "FULL").iterdir()] == ["0.png"]


def _refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.strip().splitlines() if not line.startswith("[")]  # FFmpeg's own
    assert sentence in lines[-1]
    assert lines[-1].startswith("error: ")
    assert not out


def test_a_palette_that_the_checkpoint_carries(tmp_path: Path) -> None:
    colours = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [250, 251, 252]]
    carried = small_checkpoint(tmp_path / "carried", palette=colours)
    assert palette_of(open_checkpoint(carried)).tolist() == colours
    named = palette_of(open_checkpoint(small_checkpoint(tmp_path / "named")))
    assert named[:3].tolist() == [[128, 64, 128], [70, 130, 180], [0, 0, 142]]  # Cityscapes
    assert len({tuple(colour) for colour in named.tolist()}) == len(CLASSES)
    for wrong in ([[1, 2, 3]], [[1, 2, 256]] * 4, "red"):
        bad = small_checkpoint(tmp_path / "bad", palette=wrong)
        with pytest.raises(UsageError, match="wanted a palette of 4 RGB colours"):
            palette_of(open_checkpoint(bad))


def test_a_truncated_overlay_is_noticed(tmp_path: Path) -> None:
    writer = VP9Writer(tmp_path / "a.webm", (48, 64), 25)
    for k in range(8):
        writer.write(picture(k, 48, 64))
    writer.frames += 1  # as if the last write had come to nothing
    with pytest.raises(OSError, match="wrote 9 frames, the file has 8"):
        writer.close(whole=True)


# --- the pipeline


def test_ahead_is_bounded_ordered_and_ends_its_thread() -> None:
    made = []
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            for k in range(1000):
                made.append(k)
                yield k
        finally:
            closed.set()

    threads = threading.active_count()
    stream = ahead(items(), depth=3)
    for k in range(20):
        assert next(stream) == k
        assert len(made) <= k + 1 + 3 + 1  # taken, in the queue, and the one in hand
    stream.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert threading.active_count() == threads
    assert len(made) < 30
    assert list(ahead(range(100), depth=1)) == list(range(100))


def test_ahead_raises_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise UsageError("frame 2 is damaged")

    stream = ahead(ahead(items()))
    assert next(stream) == 1
    with pytest.raises(UsageError, match="frame 2 is damaged"):
        next(stream)


def test_memory_does_not_grow_with_the_length(checkpoint: Path, tmp_path: Path) -> None:
    """The resident peak of the process over 10 frames, and over ten times as many: 47 MB more of frames alone."""
    if not memory._CLEAR.exists():
        pytest.skip("the peak of a part of a program is read from Linux's /proc")
    device = torch.device("cpu")
    arguments = ["predict", str(checkpoint), "-o", str(tmp_path / "out"), "--size", "32", "32", "--write", "labels"]
    peaks = []
    for frames in (10, 10, 100):  # the first call warms up
        video = write_video(tmp_path / f"{len(peaks)}.avi", frames, height=360, width=480)
        memory.reset(device)
        assert main([*arguments, str(video)]) == 0
        peaks.append(memory.peak(device))
    assert peaks[2] - peaks[1] < 15e6
