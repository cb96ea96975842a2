"""`vda data check`: every problem with its file and remedy, histograms, and the manifest that training reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from shared import shared_data

from vda.__main__ import main
from vda.data import DATASETS, open_dataset
from vda.data.camvid import CLASSES
from vda.data.check import check, shares
from vda.data.manifest import manifest_file, read_manifest
from vda.data.problems import REMEDIES
from vda.errors import UsageError

H, W = 20, 30
Capture = pytest.CaptureFixture[str]


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def label(*values: int) -> np.ndarray:
    """[H, W] with equally many pixels of each."""
    return np.resize(np.array(values, np.uint8), (H, W))


def town(folder: Path, **entry: object) -> Path:
    """town.yaml, split train: frames 1 to 4, half of each label is road, a quarter sky, a quarter ignored."""
    for n in range(1, 5):
        save(folder / f"rgb/{n}.png", picture(n))
        save(folder / f"mask/{n}.png", label(0, 0, 1, 255))
    splits = {"train": {"frames": "rgb/*.png", "labels": "mask/*.png"} | entry, "bare": {"frames": "rgb/*.png"}}
    (folder / "town.yaml").write_text(yaml.safe_dump({"classes": ["road", "sky", "tram"], "splits": splits}))
    return folder / "town.yaml"


def kinds(name: str, root: Path | None = None) -> dict[str, str]:
    """What is wrong: kind -> the sentences, one a line."""
    found: dict[str, str] = {}
    for problem in check(name, root).problems.values():
        found[problem.kind] = f"{found.get(problem.kind, '')}{problem.message}\n"
    return found


# ---- what is right


def test_what_is_right_is_counted(tmp_path: Path) -> None:
    found = check(f"{town(tmp_path)}/train", None)
    assert (found.clips, found.frames, found.labels, len(found.files)) == (1, 4, 4, 8)
    assert not found.problems
    assert found.notes == ["no pixel is of tram"]
    assert found.sizes == {(H, W): 4}
    assert shares(found).tolist() == [50, 25, 0, 25]
    bare = check(f"{tmp_path}/town.yaml/bare", None)
    assert (bare.labels, len(bare.files), bare.notes) == (0, 4, [])
    assert np.isnan(shares(bare)).all()


def test_command_prints_two_domains_side_by_side(tmp_path: Path, capsys: Capture) -> None:
    path = town(tmp_path)
    assert main(["data", "check", f"{path}/train", f"{path}/bare"]) == 0
    out = capsys.readouterr().out
    assert f"{path}/train: 1 clips, 4 frames of 30 x 20, 4 labels, 8 files" in out
    rows = {line.split()[0]: line.split()[1:] for line in out[out.index("percent") :].splitlines()[1:]}
    assert rows == {"road": ["50.000", "-"], "sky": ["25.000", "-"], "tram": ["0.000", "-"], "ignored": ["25.000", "-"]}
    assert (tmp_path / "town-train.manifest.json").is_file()


# ---- what is wrong


def break_everything(folder: Path) -> Path:
    """Seven frames, of which one thing each is wrong."""
    path = town(folder)
    for n in range(5, 12):
        save(folder / f"rgb/{n}.png", picture(n))
        save(folder / f"mask/{n}.png", label(0, 1))
    (folder / "mask/2.png").unlink()
    (folder / "rgb/3.png").unlink()
    save(folder / "mask/4.png", label(0, 9, 7))
    save(folder / "mask/5.png", label(0, 1), "P")
    save(folder / "mask/6.png", np.zeros((H, W + 1), np.uint8))
    whole = (folder / "rgb/7.png").read_bytes()
    (folder / "rgb/7.png").write_bytes(whole[: len(whole) // 2])
    (folder / "mask/8.png").write_text("no image")
    save(folder / "rgb/09.png", picture(9))
    save(folder / "mask/09.png", label(0))
    save(folder / "rgb/10.png", np.zeros((H + 1, W, 3), np.uint8))
    save(folder / "mask/10.png", np.zeros((H + 1, W), np.uint8))
    return path


def test_every_problem_is_listed(tmp_path: Path, capsys: Capture) -> None:
    path = break_everything(tmp_path)
    found = kinds(f"{path}/train")
    expected = {
        "pair": [r"rgb/2.png: wanted its label", r"mask/3.png: wanted its frame"],
        "values": [r"mask/4.png: wanted label values 0, 1, 2, 255, found 7, 9"],
        "label": [
            r"mask/5.png: wanted a label PNG of grey with 8 bits, found 8-bit palette",
            r"mask/8.png: wanted a PNG",
        ],
        "size": [r"mask/6.png: wanted the size of 6.png, 30 x 20", r"rgb/10.png: wanted the size of its clip, 30 x 20"],
        "image": [r"rgb/7.png: wanted a whole image, found a damaged file"],
        "name": [r"rgb/9.png: wanted one file of this frame, found rgb/09.png too"],
    }
    assert {kind: text.count("\n") for kind, text in found.items()} == {k: len(v) for k, v in expected.items()}
    for kind, sentences in expected.items():
        for sentence in sentences:
            assert sentence in found[kind]
    assert main(["data", "check", f"{path}/train"]) == 2
    captured = capsys.readouterr()
    for kind, sentences in expected.items():
        assert REMEDIES[kind] in captured.out  # type: ignore[index]
        assert all(sentence in captured.out for sentence in sentences)
    assert f"error: 9 problems in {path}/train" in captured.err
    assert not (tmp_path / "town-train.manifest.json").exists()


def test_gaps_and_copies_are_notes(tmp_path: Path) -> None:
    path = town(tmp_path)
    for n in (7, 8, 20):
        shutil.copy(tmp_path / "rgb/1.png", tmp_path / f"rgb/{n}.png")
        save(tmp_path / f"mask/{n}.png", label(2))
    found = check(f"{path}/train", None)
    assert not found.problems
    assert found.notes == [
        f"{tmp_path}/rgb: 2 gaps in the numbers, the first after {tmp_path}/rgb/4.png; clips end there",
        f"3 frames are a copy of another; {tmp_path}/rgb/7.png of {tmp_path}/rgb/1.png",
    ]


def test_class_lists_must_be_one(tmp_path: Path, capsys: Capture) -> None:
    path = town(tmp_path)
    other = yaml.safe_load(path.read_text()) | {"classes": ["road", "sky", "bus"]}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    assert main(["data", "check", f"{path}/train", f"{tmp_path}/other.yaml/train"]) == 2
    assert "wanted one class list, " in capsys.readouterr().out


def test_layouts_that_cannot_be_opened(tmp_path: Path, capsys: Capture) -> None:
    path = town(tmp_path, frames="img/*.png")
    assert list(kinds(f"{path}/train")) == ["layout"]
    assert list(kinds("viper/train", tmp_path / "none")) == ["layout"]
    assert main(["data", "check", f"{path}/trian"]) == 2
    assert "perhaps you meant train" in capsys.readouterr().out
    assert main(["data", "check", "embedded/camera"]) == 2
    assert "wanted one of files, found one that is made on the spot" in capsys.readouterr().err
    for words in (["data"], ["data", "chek"], ["data", "check"], ["data", "check", "a/b", "--root", "x", "y"]):
        assert main(words) == 2
        assert "error: vda data" in capsys.readouterr().err


def test_video_and_labels(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (W, H))
    for _ in range(5):
        writer.write(np.full((H, W, 3), 90, np.uint8))
    writer.release()
    (tmp_path / "b.avi").write_bytes((tmp_path / "a.avi").read_bytes()[:600])
    content = {"classes": ["road"], "splits": {"all": {"video": "*.avi"}, "one": {"video": "a.avi"}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    found = check(f"{tmp_path}/own.yaml/all", None)
    assert [p.kind for p in found.problems.values()] == ["image"]
    assert "b.avi: wanted" in next(iter(found.problems))
    assert (found.frames, list(found.files)) == (5, [str(tmp_path / "a.avi")])
    assert main(["data", "check", f"{tmp_path}/own.yaml/one"]) == 0
    (tmp_path / "a.avi").write_bytes((tmp_path / "a.avi").read_bytes() + b"\0")
    with pytest.raises(UsageError, match=r"a\.avi: wanted the \d+ bytes of .*own-one\.manifest\.json"):
        open_dataset(f"{tmp_path}/own.yaml/one", None, None)


# ---- the other data sets


def camvid(root: Path) -> str:
    names = ["0016E5_15Hz_1", "0016E5_15Hz_2", "0016E5_15Hz_3"]
    for k, name in enumerate(names):
        save(root / f"0016E5_15Hz/frames/{name}.jpg", picture(k))
        save(root / f"0016E5_15Hz/labels/{name}.png", label(0, 5))
    sequence = {"frames": names, "contiguous_runs": [{"start": 0, "stop": 3}]}
    (root / "splits.json").write_text(json.dumps({"classes": CLASSES, "sequences": {"0016E5_15Hz": sequence}}))
    return "camvid/sunny-15hz"


def viper(root: Path) -> str:
    for n in (2, 3, 4):  # one of the downloads
        save(root / f"train/img/001/001_{n:05d}.png", picture(n))
        image = Image.frombytes("P", (W, H), label(3, 24).tobytes())
        image.putpalette([0, 80, 100] * 256)
        (root / "train/cls/001").mkdir(parents=True, exist_ok=True)
        image.save(root / f"train/cls/001/001_{n:05d}.png")
    return "viper/train"


def synthia(root: Path) -> str:
    for n in (1, 2, 3):
        save(root / f"SEQS-04-DAWN/rgb/{n:06d}.png", picture(n))
        path = root / f"SEQS-04-DAWN/label/{n:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.stack([label(3)] * 3, -1).astype(np.uint16))
    return "synthia-seq/04-DAWN"


def vps(root: Path) -> str:
    for k, number in enumerate(range(4, 34, 5), 1):
        name = f"0001_{k:04d}_frankfurt_000000_{number:06d}"
        save(root / f"val/img/{name}_newImg8bit.png", picture(k))
        save(root / f"val/labelmap/{name}_final_mask.png", label(0, 13))
    return "cityscapes-vps/val:labelled"


def pairs(root: Path) -> str:
    for k in (0, 1):
        save(root / f"a_img{k}.png", picture(k))
    (root / "a_flow.flo").write_bytes(b"PIEH" + np.array([W, H], np.int32).tobytes() + bytes(8 * W * H))
    return "pairs/all"


FIXTURES: dict[str, Callable[[Path], str]] = {
    "camvid": camvid,
    "viper": viper,
    "synthia-seq": synthia,
    "cityscapes-vps": vps,
    "pairs": pairs,
}


@pytest.mark.parametrize("dataset", FIXTURES)
def test_data_sets_are_checked_and_vouched_for(tmp_path: Path, dataset: str) -> None:
    name = FIXTURES[dataset](tmp_path)
    assert name.split("/")[0] in DATASETS
    assert main(["data", "check", name, "--root", str(tmp_path)]) == 0
    assert open_dataset(name, tmp_path, (H, W)).clips
    images = [path for path in sorted(tmp_path.rglob("*.*g")) if path.suffix in (".png", ".jpg")]
    broken = images[-1]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    with pytest.raises(UsageError, match=rf"{broken.name}: wanted the \d+ bytes of"):
        open_dataset(name, tmp_path, (H, W))
    found = kinds(name, tmp_path)
    assert len(found) == 1
    assert broken.name in next(iter(found.values()))


@pytest.mark.parametrize("dataset", ["viper", "synthia-seq", "camvid"])
def test_data_sets_list_all_their_problems(tmp_path: Path, dataset: str) -> None:
    name = FIXTURES[dataset](tmp_path)
    images = [path for path in sorted(tmp_path.rglob("*.*g")) if path.suffix in (".png", ".jpg")]
    labels = [path for path in images if {"cls", "label", "labels"} & {*path.parts}]
    frames = [path for path in images if path not in labels]
    labels[0].unlink()
    frames[1].write_bytes(b"no image")
    labels[2].write_bytes(b"no image")
    found = kinds(name, tmp_path)
    assert set(found) >= {"pair", "image", "label"}
    assert labels[0].name in found["pair"]
    assert frames[1].name in found["image"]
    assert labels[2].name in found["label"]


# ---- the manifest


@pytest.fixture
def checked(tmp_path: Path) -> Path:
    path = town(tmp_path)
    assert main(["data", "check", f"{path}/train"]) == 0
    return path


def edit_keeping_size_and_time(path: Path) -> None:
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_unchanged_copied_and_moved_files_are_trusted(checked: Path, tmp_path: Path) -> None:
    for n in range(1, 5):
        os.utime(tmp_path / f"rgb/{n}.png", (n, n))
    assert open_dataset(f"{checked}/train", None, None).num_frames == 4
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.copytree(tmp_path, moved)
    assert open_dataset(f"{moved}/town.yaml/train", None, None).num_frames == 4


def test_a_smaller_split_needs_no_new_check(checked: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(checked.read_text())
    content["splits"]["train"]["every"] = 2
    checked.write_text(yaml.safe_dump(content))
    assert open_dataset(f"{checked}/train", None, None).num_frames == 2


def test_changed_new_and_missing_files_are_refused(checked: Path, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            open_dataset(f"{checked}/train", None, None)
        assert "`vda data check" in str(caught.value)

    save(tmp_path / "rgb/5.png", picture(5))
    save(tmp_path / "mask/5.png", label(0))
    refused(r"rgb/5\.png: wanted a file that is in .*town-train\.manifest\.json, found a new one")
    (tmp_path / "rgb/5.png").unlink()
    (tmp_path / "mask/5.png").unlink()
    edit_keeping_size_and_time(tmp_path / "rgb/2.png")
    os.utime(tmp_path / "rgb/2.png", (5, 5))
    refused(r"rgb/2\.png: wanted the content that is in .*, found another")
    save(tmp_path / "rgb/2.png", np.zeros((H, W, 3), np.uint8))
    refused(r"rgb/2\.png: wanted the \d+ bytes of .*, found \d+")
    (tmp_path / "rgb/2.png").unlink()
    (tmp_path / "mask/2.png").unlink()
    refused(r"(rgb|mask)/2\.png: wanted the file that is in .*, found none")


def test_decay_of_the_disk_is_found_by_the_next_check(checked: Path, tmp_path: Path) -> None:
    path = tmp_path / "mask/3.png"
    Image.fromarray(label(0, 0, 1, 255)).save(path, compress_level=0)  # so that one bit less is still an image
    assert main(["data", "check", f"{checked}/train"]) == 0
    edit_keeping_size_and_time(tmp_path / "rgb/3.png")
    found = kinds(f"{checked}/train")
    assert "rgb/3.png: wanted the content of the last check" in found["changed"]


def test_damaged_manifests(checked: Path, tmp_path: Path, capsys: Capture) -> None:
    path = manifest_file(f"{checked}/train", None)
    assert path is not None
    assert len(read_manifest(path)) == 8
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(120):
        broken = bytearray(whole)
        if trial < 20:
            del broken[len(whole) * trial // 20 :]
        else:
            broken[int(rng.integers(len(whole)))] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(broken))
        if broken.split() == whole.split():
            continue
        with pytest.raises(UsageError, match=r"town-train\.manifest\.json: wanted a manifest, found a damaged file"):
            read_manifest(path)
    with pytest.raises(UsageError, match="`vda data check` writes it anew"):
        open_dataset(f"{checked}/train", None, None)
    capsys.readouterr()
    assert main(["data", "check", f"{checked}/train"]) == 0
    assert "is damaged; it is written anew" in capsys.readouterr().out
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: Capture) -> None:
    path = town(tmp_path)
    (tmp_path / "town-train.manifest.json").mkdir()
    assert main(["data", "check", f"{path}/train"]) == 0
    assert "no manifest, since" in capsys.readouterr().out


# ---- bytes that were changed


def test_images_and_labels_with_changed_bytes_are_read_or_named(tmp_path: Path) -> None:
    path = town(tmp_path)
    save(tmp_path / "rgb/1.png", picture(1))
    (tmp_path / "rgb/2.png").write_bytes(_jpeg(picture(2)))
    rng = np.random.default_rng(0)
    files = [tmp_path / "rgb/1.png", tmp_path / "rgb/2.png", tmp_path / "mask/1.png"]
    whole = {file: file.read_bytes() for file in files}
    found = 0
    for _ in range(60):
        for file in files:
            broken = bytearray(whole[file])
            for place in rng.integers(0, len(broken), 3):
                broken[place] = rng.integers(0, 256)
            file.write_bytes(bytes(broken))
        for problem in check(f"{path}/train", None).problems.values():
            assert "/1.png: " in problem.message or "/2.png: " in problem.message  # or the partner, of another size
            assert "\n" not in problem.message
            found += 1
    assert found > 60


def test_other_formats_under_the_name_of_an_image(tmp_path: Path) -> None:
    path = town(tmp_path)
    (tmp_path / "rgb/1.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EOF\n")
    Image.fromarray(picture(2)).save(tmp_path / "rgb/2.png", format="GIF")
    assert kinds(f"{path}/train")["image"].count("wanted an image, found an unreadable file") == 2


def _jpeg(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def test_real_camvid_is_right(tmp_path: Path) -> None:
    real = shared_data("camvid")
    for sequence in ("0016E5_15Hz",):
        (tmp_path / sequence).symlink_to(real / sequence)
    (tmp_path / "splits.json").write_bytes((real / "splits.json").read_bytes())
    found = check("camvid/sunny-15hz", tmp_path)
    assert (found.frames, len(found.files), found.problems) == (101, 202, {})
    assert shares(found).sum() == pytest.approx(100)
    label_files = sorted((real / "0016E5_15Hz/labels").iterdir())
    road = sum(int((np.array(Image.open(f)) == 3).sum()) for f in label_files)
    assert shares(found)[3] == pytest.approx(100 * road / (101 * 360 * 480))
