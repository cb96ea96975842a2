"""Video files: exact frames, the cache and its restarts, scene cuts, labels of frames, damaged files."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from shared import shared_data

from vda.data import open_dataset, scene_cuts
from vda.data.video_files import INDEX, cached_video, decoded, frame_file
from vda.errors import UsageError

H, W = 48, 64
CODECS = {"mp4": "mp4v", "avi": "MJPG", "webm": "VP80"}


def scene(seed: int, length: int, first: int = 0) -> list[np.ndarray]:
    """Smooth colours under white bars that count the frames in binary, RGB; the picture moves slowly."""
    rng = np.random.default_rng(seed)
    wide = cv2.resize(rng.integers(0, 200, (4, 8, 3)).astype(np.uint8), (W + length, H), interpolation=cv2.INTER_CUBIC)
    frames = []
    for i in range(length):
        frame = np.minimum(wide[:, i : i + W], 200)
        for bit in range(8):
            frame[-8:, 8 * bit : 8 * bit + 8] = 255 if (first + i) >> bit & 1 else 0
        frames.append(frame.copy())
    return frames


def number_in(frame: np.ndarray) -> int:
    """The number that `scene` has drawn."""
    return sum((frame[-6:-2, 8 * bit + 2 : 8 * bit + 6].mean() > 127) << bit for bit in range(8))


def write(path: Path, frames: list[np.ndarray]) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*CODECS[path.suffix[1:]]), 10, (W, H))
    assert writer.isOpened(), f"OpenCV has no encoder for {path.suffix}"
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
    return path


def describe(folder: Path, name: str = "own.yaml", **entry: Any) -> Path:
    content = {"classes": ["road", "sky"], "splits": {"all": {"video": "*.*"} | entry}}
    (folder / name).write_text(yaml.safe_dump(content))
    return folder / name


def clips(path: Path) -> dict[str, list[int]]:
    """Clip -> the numbers that its frames show, each of which is also the frame's name."""
    data = open_dataset(f"{path}/all", None, None)
    for clip in data.clips:
        assert [int(name) for name in clip.frame_names] == [number_in(clip.frame(i)) for i in range(len(clip))]
    return {clip.name: [*map(int, clip.frame_names)] for clip in data.clips}


@pytest.mark.parametrize("suffix", CODECS)
def test_every_container_gives_exact_frames_and_cuts(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"drive.{suffix}", scene(0, 13) + scene(1, 9, first=13))
    path = describe(tmp_path, video=f"*.{suffix}")
    assert clips(path) == {"drive-000000": [*range(13)], "drive-000013": [*range(13, 22)]}
    assert clips(describe(tmp_path, video=f"*.{suffix}", cuts=False)) == {"drive": [*range(22)]}
    assert clips(describe(tmp_path, video=f"*.{suffix}", cuts=[0, 4])) == {
        "drive-000000": [*range(4)],
        "drive-000004": [*range(4, 22)],
    }
    # every third frame, none of which is the first of the second shot
    assert clips(describe(tmp_path, video=f"*.{suffix}", every=3)) == {
        "drive-000000": [0, 3, 6, 9, 12],
        "drive-000013": [15, 18, 21],
    }


def test_frames_are_those_of_the_decoder(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", scene(0, 5))
    for frame, i in zip(decoded(video), range(5), strict=True):
        clip = open_dataset(f"{describe(tmp_path, video='a.mp4')}/all", None, None).clips[0]
        assert np.abs(clip.frame(i).astype(int) - frame).mean() < 2  # what JPEG takes away
    small = open_dataset(f"{tmp_path}/own.yaml/all", None, (H // 2, W // 2)).clips[0]
    assert small.frame(4).shape == (H // 2, W // 2, 3)
    assert small.label(4) is None
    assert small.exact_flow(0, 1) is None


def test_two_videos_of_one_name(tmp_path: Path) -> None:
    for folder in ("day", "night"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "drive.mp4", scene(0, 3))
    write(tmp_path / "day/other.mp4", scene(0, 3))
    found = open_dataset(f"{describe(tmp_path, video='*/*.mp4')}/all", None, None)
    assert [clip.name for clip in found.clips] == ["day-drive.mp4", "other", "night-drive.mp4"]


def test_labels_of_video_frames(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", scene(0, 4))
    for i in (1, 3):
        (tmp_path / "labels/a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((H, W), i // 3, np.uint8)).save(tmp_path / f"labels/a/frame_{i:05d}.png")
    labels = {"video": "*.mp4", "labels": "labels/*/frame_*.png"}
    with pytest.raises(UsageError, match=r"a\.mp4: wanted a label like labels/\*/frame_\*\.png for frame 0, found no"):
        open_dataset(f"{describe(tmp_path, **labels)}/all", None, None)
    clip = open_dataset(f"{describe(tmp_path, **labels, sparse=True)}/all", None, None).clips[0]
    assert [None if (label := clip.label(i)) is None else label.max() for i in range(4)] == [None, 0, None, 1]
    Image.fromarray(np.zeros((H, W), np.uint8)).save(tmp_path / "labels/a/frame_00004.png")
    with pytest.raises(UsageError, match=r"frame_00004\.png: wanted the label of one of the 4 frames of .*a\.mp4"):
        open_dataset(f"{tmp_path}/own.yaml/all", None, None)
    (tmp_path / "labels/b").mkdir()
    (tmp_path / "labels/a/frame_00004.png").rename(tmp_path / "labels/b/frame_00004.png")
    with pytest.raises(UsageError, match=r"b/frame_00004\.png: wanted the label of a frame of a video, found no such"):
        open_dataset(f"{tmp_path}/own.yaml/all", None, None)


# ---- the cache


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    from vda.data import video_files

    calls: list[Path] = []
    before = video_files.decoded

    def counted(video: Path) -> Any:
        calls.append(video)
        return before(video)

    monkeypatch.setattr(video_files, "decoded", counted)
    return calls


def test_a_video_is_decoded_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write(tmp_path / "a.avi", scene(0, 4))
    calls = count_decoding(monkeypatch)
    folder, frames = cached_video(video, tmp_path / "cache", "a.avi")
    assert len(frames.changes) == 4
    assert cached_video(video, tmp_path / "cache", "a.avi") == (folder, frames)
    os.utime(video, (1, 1))  # the same content at another time, as a copy has
    assert cached_video(video, tmp_path / "cache", "a.avi")[1].mtime_ns == 10**9
    assert len(calls) == 1
    capsys.readouterr()
    write(video, scene(5, 6))
    assert len(cached_video(video, tmp_path / "cache", "a.avi")[1].changes) == 6
    assert "a.avi: is not the video that" in capsys.readouterr().err
    assert len(calls) == 2
    assert sorted(p.name for p in folder.iterdir())[:3] == ["000000.jpg", "000001.jpg", "000002.jpg"]


@pytest.mark.parametrize("damage", ["short", "missing", "no index", "index of another format", "index is no JSON"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    video = write(tmp_path / "a.avi", scene(0, 4))
    folder, frames = cached_video(video, tmp_path / "cache", "a.avi")
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    match damage:
        case "short":
            frame_file(folder, 2).write_bytes(whole["000002.jpg"][:-5])
        case "missing":
            frame_file(folder, 0).unlink()
        case "no index":
            (folder / INDEX).unlink()
        case "index of another format":
            (folder / INDEX).write_text(json.dumps(json.loads(whole[INDEX]) | {"format": 0}))
        case _:
            (folder / INDEX).write_text("[")
    assert cached_video(video, tmp_path / "cache", "a.avi") == (folder, frames)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole


def test_decoding_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vda.data import video_files

    video, cache = write(tmp_path / "a.avi", scene(0, 6)), tmp_path / "cache"
    whole, frames = cached_video(video, tmp_path / "other", "a.avi")
    written: list[str] = []
    atomic_write = video_files.atomic_write

    def stops(path: Path, *rest: Any, **options: Any) -> None:
        if path.name == "000003.jpg" and not (path.parent / "again").exists():
            raise KeyboardInterrupt
        written.append(path.name)
        atomic_write(path, *rest, **options)

    monkeypatch.setattr(video_files, "atomic_write", stops)
    with pytest.raises(KeyboardInterrupt):
        cached_video(video, cache, "a.avi")
    part = next(cache.glob("*.part"))
    assert sorted(p.name for p in part.glob("*.jpg")) == ["000000.jpg", "000001.jpg", "000002.jpg"]
    assert [p.name for p in cache.iterdir() if not p.name.startswith(".")] == [part.name]  # nothing looks complete
    (part / "again").touch()
    frame_file(part, 1).write_bytes(frame_file(part, 1).read_bytes()[:-1])  # a power cut
    written.clear()
    folder, resumed = cached_video(video, cache, "a.avi")
    assert written == ["000001.jpg", "000003.jpg", "000004.jpg", "000005.jpg", INDEX]
    assert resumed == frames
    assert all(frame_file(folder, i).read_bytes() == frame_file(whole, i).read_bytes() for i in range(6))


def test_what_was_left_of_another_video_is_not_taken(tmp_path: Path) -> None:
    video = write(tmp_path / "a.avi", scene(0, 3))
    folder, _ = cached_video(video, tmp_path / "cache", "a.avi")
    folder.rename(f"{folder}.part")
    write(video, scene(7, 3))
    folder, _ = cached_video(video, tmp_path / "cache", "a.avi")
    assert np.abs(np.array(Image.open(frame_file(folder, 0))).astype(int) - next(iter(decoded(video)))).mean() < 2


# ---- scene cuts


def test_cuts_stand_alone() -> None:
    assert scene_cuts.cuts([]) == []
    assert scene_cuts.cuts([0.0, 1, 1, 20, 1, 2]) == [3]
    assert scene_cuts.cuts([0.0, 1, 1, 8.9, 1, 2]) == []  # below the threshold
    assert scene_cuts.cuts([0.0, 10, 12, 20, 11, 12]) == []  # a fast pan
    assert scene_cuts.cuts([0.0, 1, 30, 29, 1]) == []  # a flash
    assert scene_cuts.cuts([0.0, 30]) == [1]
    assert scene_cuts.cuts([0.0, 0, 0, 40, 0, 0, 30, 0]) == [3, 6]


def test_synthetic_cuts_fades_and_flashes() -> None:
    scenes = [scene(seed, 12) for seed in range(4)]
    frames = [frame for part in scenes for frame in part]
    assert find(frames) == [12, 24, 36]
    flash = [*scenes[0][:6], np.full((H, W, 3), 255, np.uint8), *scenes[0][6:]]
    assert find(flash) == []
    a, b = scenes[0][0].astype(np.float64), scenes[1][0].astype(np.float64)
    fade = [((1 - t) * a + t * b).astype(np.uint8) for t in np.linspace(0, 1, 12)]
    assert find(fade) == []  # no two neighbours differ by much
    assert find([scenes[0][0]] * 9) == []


def find(frames: list[np.ndarray]) -> list[int]:
    small = [scene_cuts.small(frame) for frame in frames]
    return scene_cuts.cuts([0.0, *(scene_cuts.change(a, b) for a, b in pairwise(small))])


def test_real_video_has_no_cut_and_real_joins_are_found() -> None:
    drive = list(decoded(shared_data("video", "solidWhiteRight.mp4")))
    assert len(drive) == 221
    assert find(drive) == []
    camvid = shared_data("camvid")
    fast = [np.array(Image.open(p)) for p in sorted((camvid / "0016E5_15Hz/frames").iterdir())[:40]]
    assert find(fast) == []
    assert find([*fast[:20], *drive[:20], *fast[20:]]) == [20, 40]
    dark = [np.array(Image.open(sorted((camvid / "0001TP/frames").iterdir())[0]))] * 10
    assert find([*fast[:20], *dark, *drive[100:110]]) == [20, 30]


# ---- damaged and hostile files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mp4", b"", "wanted an MP4, AVI, WebM or Matroska file, found something else"),
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n", "wanted an MP4, AVI, WebM"),
        ("a.avi", b"ffconcat version 1.0\nfile /etc/passwd\n", "wanted an MP4, AVI, WebM"),
        ("a.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 200, "found a damaged file or a codec that OpenCV lacks"),
        ("a.webm", b"\x1aE\xdf\xa3" + b"\xff" * 200, "found a damaged file or a codec that OpenCV lacks"),
        ("a.avi", b"RIFF\xff\xff\xff\x7fAVI LIST" + b"\0" * 99, "found a damaged file or a codec|wanted some frames"),
        ("a.txt", b"text", r"wanted a video file \(\.mp4, .*\), found \.txt"),
    ],
)
def test_what_is_no_video(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        open_dataset(f"{describe(tmp_path, video=name)}/all", None, None)
    assert str(caught.value).startswith(str(tmp_path / name))
    with pytest.raises(UsageError, match=r"b\.mp4: wanted a video file, cannot read it"):
        cached_video(tmp_path / "b.mp4", tmp_path / "cache", "b.mp4")


@pytest.mark.parametrize("suffix", CODECS)
def test_cut_and_changed_bytes_never_end_in_anything_but_a_sentence(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"whole.{suffix}", scene(0, 8)).read_bytes()
    video, rng = tmp_path / f"a.{suffix}", np.random.default_rng(0)
    refused = 0
    for trial in range(40):
        broken = bytearray(whole)
        if trial < 12:
            del broken[len(whole) * trial // 12 :]
        else:
            for place in rng.integers(0, len(whole), 20):
                broken[place] = rng.integers(0, 256)
        video.write_bytes(bytes(broken))
        try:
            folder, frames = cached_video(video, tmp_path / "cache", video.name)
            assert [frame_file(folder, i).stat().st_size for i in frames.numbers] == frames.sizes
        except UsageError as error:
            assert str(video) in str(error)  # noqa: PT017
            refused += 1
    assert refused >= 8  # a cut one, at least


def test_cuts_beyond_the_end(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", scene(0, 4))
    with pytest.raises(UsageError, match=r"own\.yaml: splits: all: cuts wants frames of the 4 of .*a\.mp4, found 9"):
        open_dataset(f"{describe(tmp_path, video='a.mp4', cuts=[9])}/all", None, None)
