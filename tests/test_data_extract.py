"""`vda data extract`: which members, resuming, and archives that mean harm."""

from __future__ import annotations

import copy
import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vda.__main__ import main
from vda.data import extract as module
from vda.data.extract import extract
from vda.errors import UsageError

quiet = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def noise(seed: int, size: int = 300) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


def make(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def raw(path: Path, name: str, content: bytes = b"x") -> Path:
    """An archive with one member of a name that `zipfile` would not write."""
    placeholder = "p" * len(name.encode())
    make(path, {placeholder: content}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), name.encode()))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """train/img/001/1 to 12.jpg, their labels in cls, a readme."""
    kinds = (("img", "jpg"), ("cls", "png"))
    members = {f"train/{kind}/001/{n}.{suffix}": noise(n) for n in range(1, 13) for kind, suffix in kinds}
    return make(tmp_path / "a.zip", members | {"train/": b"", "README.md": b"read me"})


# ---- which members


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {f"train/{k}" for n in range(1, 13) for k in (f"img/001/{n}.jpg", f"cls/001/{n}.png")} | {"README.md"}),
        ({"match": ["*0.jpg"]}, {"train/img/001/10.jpg"}),
        ({"match": ["train/**/1.*", "README.*"]}, {"train/img/001/1.jpg", "train/cls/001/1.png", "README.md"}),
        ({"match": ["*.jpg"], "every": 5}, {f"train/img/001/{n}.jpg" for n in (1, 6, 11)}),
    ],
)
def test_members_that_fit(tmp_path: Path, archive: Path, options: dict, expected: set[str]) -> None:
    assert extract(archive, tmp_path / "out", **options) == (len(expected), 0)
    written = files(tmp_path / "out")
    assert set(written) == expected
    with zipfile.ZipFile(archive) as opened:
        assert all(written[name] == opened.read(name) for name in expected)


def describe(folder: Path, **entry: object) -> str:
    frames = {"frames": "img/*/*.jpg", "labels": "cls/*/*.png"} | entry
    content = {"root": "data/train", "classes": ["road"], "splits": {"train": frames, "clips": {"video": "**/*.mp4"}}}
    (folder / "town.yaml").write_text(yaml.safe_dump(content))
    return f"{folder}/town.yaml/train"


def test_what_a_split_needs(tmp_path: Path, archive: Path) -> None:
    split = describe(tmp_path, every=4)
    extract(archive, tmp_path / "data", split=split)
    assert set(files(tmp_path / "data")) == {
        f"train/{k}" for n in (1, 5, 9) for k in (f"img/001/{n}.jpg", f"cls/001/{n}.png")
    }
    with pytest.raises(UsageError, match=r"a\.zip: wanted files to extract, none of its 25 fits"):
        extract(archive, tmp_path / "elsewhere", split=split)
    with pytest.raises(UsageError, match=r"--split viper/day: wanted FILE\.yaml/SPLIT"):
        extract(archive, tmp_path / "data", split="viper/day")


def test_frames_and_labels_in_two_archives(tmp_path: Path) -> None:
    images = make(tmp_path / "images.zip", {f"img/a/{n}.jpg": noise(n) for n in range(4)})
    labels = make(tmp_path / "labels.zip", {f"cls/a/{n}.png": noise(n) for n in range(9)})
    split = describe(tmp_path)
    assert extract(images, tmp_path / "data/train", split=split) == (4, 0)
    assert extract(labels, tmp_path / "data/train", split=split) == (9, 0)
    videos = make(tmp_path / "v.zip", {"a.mp4": noise(0), "b/c.mp4": noise(1), "d.txt": b""})
    assert extract(videos, tmp_path / "data/train", split=split.replace("train", "clips", 1)[:-5] + "clips") == (2, 0)


def test_command(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "extract", str(archive), "-o", str(out), "--match", "*.jpg", "--every", "6"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 files of {archive} written, 0 were there\n"
    assert main(["data", "extract", str(archive), "-o", str(out), "--match", "*.gif"]) == 2
    assert "error: " in capsys.readouterr().err
    assert main(["data", "extract", str(archive), "-o", str(out), "--every", "0"]) == 2


# ---- resuming, and what is there already


def test_a_second_call_writes_what_is_missing(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, atomic_write, left = tmp_path / "out", module.atomic_write, [5]

    def stops(path: Path, content: Callable[[io.BytesIO], None], **options: bool) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        atomic_write(path, content, **options)

    monkeypatch.setattr(module, "atomic_write", stops)
    with pytest.raises(KeyboardInterrupt):
        extract(archive, out)
    assert len(files(out)) == 5
    left[0] = 100
    assert extract(archive, out) == (20, 5)
    assert extract(archive, out) == (0, 25)


def test_other_files_are_not_overwritten(tmp_path: Path, archive: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("rEad me")  # the same size
    before = files(out)
    with pytest.raises(UsageError, match=r"README\.md: wanted nothing or the file of .*a\.zip, found another"):
        extract(archive, out)
    assert files(out) == before


@pytest.mark.parametrize("link", ["train", "README.md"])
def test_links_in_the_folder_are_not_followed(tmp_path: Path, archive: Path, link: str) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    (out / link).symlink_to(outside / "new" if link == "README.md" else outside)
    with pytest.raises(UsageError, match=r"found a link that leads out of it|found another"):
        extract(archive, out)
    assert files(outside) == {}


# ---- archives that mean harm


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/tmp/evil", "a//b", "./a", "C:/evil", "C:e", "a\\b", "..\\evil", "a\nb", "a/..", ".."],
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    archive = raw(tmp_path / "a.zip", name)
    with pytest.raises(UsageError, match=r"a\.zip: wanted names of files below one folder, found ") as caught:
        extract(archive, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def special(path: Path, kind: int) -> Path:
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return path


@pytest.mark.parametrize(("kind", "found"), [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "none"), (stat.S_IFCHR, "none")])
def test_links_and_devices(tmp_path: Path, kind: int, found: str) -> None:
    with pytest.raises(UsageError, match=rf"wanted plain files, link is {found}"):
        extract(special(tmp_path / "a.zip", kind), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bombs(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = make(tmp_path / "bomb.zip", {"zeros.png": bytes(4 << 20)})
    with pytest.raises(UsageError, match=r"zeros\.png would grow from \d+ to 4194304 bytes, more than 200 times"):
        extract(bomb, tmp_path / "out")
    assert extract(make(tmp_path / "small.zip", {"zeros.png": bytes(1 << 20)}), tmp_path / "small") == (1, 0)
    with pytest.raises(UsageError, match=r"wanted to write .* GiB to .*out, but --most-gb allows 0 GiB"):
        extract(archive, tmp_path / "out", most_bytes=1000)
    monkeypatch.setattr(module, "_room", lambda folder: 1000)
    with pytest.raises(UsageError, match=r"but the disk has 0 GiB"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_size_that_is_a_lie(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", {"a": bytes(5000)})
    content = archive.read_bytes().replace((5000).to_bytes(4, "little"), (9).to_bytes(4, "little"))
    archive.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.zip: a is damaged"):
        extract(archive, tmp_path / "out")
    assert files(tmp_path / "out") == {}


def test_members_that_share_their_content(tmp_path: Path) -> None:
    """Fifield's bomb: many entries of the directory that point to one file."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("m0", noise(0, 5000))
        for k in range(1, 9):
            info = copy.copy(opened.filelist[0])
            info.filename = f"m{k}"
            opened.filelist.append(info)
    with pytest.raises(UsageError, match=r"found some that share their content"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_stand_twice_and_in_the_way(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a", "1")
        archive.writestr("a", "2")
    with pytest.raises(UsageError, match="wanted every name once, found a twice"):
        extract(tmp_path / "twice.zip", tmp_path / "out")
    with pytest.raises(UsageError, match="wanted a to be a file or a folder, found both"):
        extract(make(tmp_path / "way.zip", {"a": b"1", "a/b": b"2"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_passwords(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", {"a": b"1"})
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # of the file's header
    content[content.index(b"PK\1\2") + 8] |= 1  # of the directory
    archive.write_bytes(content)
    with pytest.raises(UsageError, match="wanted files without a password, a has one"):
        extract(archive, tmp_path / "out")


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("no archive")
    for path in (tmp_path / "a.zip", tmp_path / "none.zip", tmp_path):
        with pytest.raises(UsageError, match=rf"{path}: wanted a zip archive, cannot read it"):
            extract(path, tmp_path / "out")


def test_changed_bytes_end_in_a_sentence_or_in_the_right_files(tmp_path: Path) -> None:
    members = {"img/a.png": noise(0), "img/b.png": noise(1), "labels/c.png": bytes(200)}
    whole = make(tmp_path / "whole.zip", members).read_bytes()
    archive, out, rng = tmp_path / "a.zip", tmp_path / "out" / "deep", np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        broken = bytearray(whole)
        if trial < 30:
            del broken[len(whole) * trial // 30 :]
        else:
            for place in rng.integers(0, len(whole), int(rng.integers(1, 5))):
                broken[place] = rng.integers(0, 256)
        archive.write_bytes(bytes(broken))
        try:
            extract(archive, out)
        except UsageError as error:
            refused += str(tmp_path) in str(error)
        assert {p.name for p in tmp_path.iterdir()} <= {"whole.zip", "a.zip", "out"}
        assert {p.name for p in (tmp_path / "out").iterdir()} <= {"deep"} if (tmp_path / "out").exists() else True
        for content in files(out).values() if out.exists() else ():
            assert content in members.values()  # the CRC saw to that
        for path in sorted(out.rglob("*"), reverse=True) if out.exists() else ():
            path.rmdir() if path.is_dir() else path.unlink()
    assert refused > 150


@quiet
@given(st.lists(st.text(st.sampled_from("ab./\\:\0é*"), min_size=1, max_size=9), max_size=4))
def test_any_names_stay_in_the_folder(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("names")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in dict.fromkeys(names):
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, name)
    (folder / "a.zip").write_bytes(buffer.getvalue())
    refused = False
    try:
        extract(folder / "a.zip", folder / "in" / "out")
    except UsageError:
        refused = True
    assert {p.name for p in folder.iterdir()} <= {"a.zip", "in"}
    assert {p.name for p in (folder / "in").glob("*")} <= {"out"}
    if any(part in ("", "..") for name in names for part in name.rstrip("/").split("/")):
        assert refused
