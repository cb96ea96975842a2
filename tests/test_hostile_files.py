"""Frames and labels that are damaged, of another kind or made to harm, in every data set that is read from files.

Each ends in one sentence that names the file, or, where only bytes without a pixel were changed, in the right pixels.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

from vda.data import DATASETS, open_dataset
from vda.data.camvid import CLASSES
from vda.data.flow_files import write_flow
from vda.errors import UsageError

H, W = 8, 12
MADE = {"embedded", "motion"}  # data sets without files
PICTURE = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
IDS = np.random.default_rng(1).integers(1, 9, (H, W), dtype=np.uint8)
COLOURS = np.array([[0, 0, 0], [128, 64, 128], [64, 0, 128]], np.uint8)[IDS % 3]
DEEP = np.stack([IDS, IDS + np.uint16(300), 0 * IDS], -1).astype(np.uint16)


class Case(NamedTuple):
    """A data set of two frames or so below a root; one of its frames, and the label of that frame."""

    name: str
    image: Path
    label: Path | None


# ---- one small data set in every layout


def save(pixels: np.ndarray, *paths: Path) -> Path:
    """The same image in several files; the last of them."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels.dtype == np.uint16:
            assert cv2.imwrite(str(path), pixels[..., ::-1])
        else:
            Image.fromarray(pixels).save(path)
    return paths[-1]


NAMES = ("0001TP_006690", "0001TP_006720")


def camvid_by_sequence(root: Path) -> Case:
    sequence = {"frames": NAMES, "contiguous_runs": [{"start": 0, "stop": 2}]}
    (root / "splits.json").write_text(json.dumps({"classes": CLASSES, "sequences": {"0001TP": sequence}}))
    image = save(PICTURE, *(root / "0001TP/frames" / f"{name}.jpg" for name in NAMES))
    return Case("camvid/dusk", image, save(IDS, *(root / "0001TP/labels" / f"{name}.png" for name in NAMES)))


def camvid_of_segnet(root: Path) -> Case:
    for part in ("val", "valannot", "test", "testannot"):
        (root / part).mkdir()
    image = save(PICTURE, *(root / "train" / f"{name}.png" for name in NAMES))
    return Case("camvid/dusk", image, save(IDS, *(root / "trainannot" / f"{name}.png" for name in NAMES)))


def camvid_published(root: Path) -> Case:
    image = save(PICTURE, *(root / "701_StillsRaw_full" / f"{name}.png" for name in NAMES))
    return Case("camvid/dusk", image, save(COLOURS, *(root / "LabeledApproved_full" / f"{n}_L.png" for n in NAMES)))


def cityscapes(root: Path) -> Case:
    names = [f"ulm_000001_{number:06d}" for number in (41, 42)]
    image = save(PICTURE, *(root / "leftImg8bit_sequence/train/ulm" / f"{n}_leftImg8bit.png" for n in names))
    return Case(
        "cityscapes/train:pairs", image, save(IDS, root / "gtFine/train/ulm" / f"{names[1]}_gtFine_labelIds.png")
    )


def cityscapes_vps(root: Path) -> Case:
    names = [f"0007_{37 + k:04d}_lindau_000003_{4 + 5 * k:06d}" for k in (0, 1, 2, 4, 5, 3)]
    kinds = [("newImg8bit", "final_mask")] * 5 + [("leftImg8bit", "gtFine_color")]
    image = save(PICTURE, *(root / "val/img" / f"{n}_{k[0]}.png" for n, k in zip(names, kinds, strict=True)))
    label = save(IDS, *(root / "val/labelmap" / f"{n}_{k[1]}.png" for n, k in zip(names, kinds, strict=True)))
    return Case("cityscapes-vps/val:labelled", image, label)


def pairs(root: Path) -> Case:
    write_flow(root / "a_flow.flo", np.zeros((2, H, W), np.float32))
    return Case("pairs/all", save(PICTURE, root / "a_img1.png", root / "a_img2.png"), None)


def synthia_seq(root: Path) -> Case:
    image = save(PICTURE, *(root / "SEQS-04-DAWN/rgb" / f"00000{k}.png" for k in (1, 2)))
    label = save(DEEP, *(root / "SEQS-04-DAWN/label" / f"00000{k}.png" for k in (1, 2)))
    return Case("synthia-seq/04-DAWN:bonnet", image, label)


def viper(root: Path) -> Case:
    image = save(PICTURE, *(root / "train/img/001" / f"001_0001{k}.jpg" for k in (0, 1)))
    labels = [root / "train/cls/001" / f"001_0001{k}.png" for k in (0, 1)]
    labels[0].parent.mkdir(parents=True)
    for path in labels:
        mask = Image.frombytes("P", (W, H), IDS.tobytes())
        mask.putpalette([0, 80, 100] * 256)
        mask.save(path)
    return Case("viper/train", image, labels[-1])


LAYOUTS: dict[str, Callable[[Path], Case]] = {
    layout.__name__: layout
    for layout in (
        *(camvid_by_sequence, camvid_of_segnet, camvid_published, cityscapes, cityscapes_vps, pairs, synthia_seq),
        viper,
    )
}


@pytest.fixture(params=LAYOUTS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return LAYOUTS[request.param](tmp_path)


@pytest.fixture(params=[name for name in LAYOUTS if name != "pairs"])
def labelled(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return LAYOUTS[request.param](tmp_path)


def read(case: Case, root: Path) -> list[np.ndarray]:
    """Opens the data set and reads everything in it."""
    found = []
    for clip in open_dataset(case.name, root, (H, W)).clips:
        for i in range(len(clip)):
            found += [clip.frame(i), clip.label(i)]
    return [array for array in found if array is not None]


def refused(case: Case, root: Path, path: Path) -> str:
    with pytest.raises(UsageError) as error:
        read(case, root)
    sentence = str(error.value)
    assert path.name in sentence
    assert "wanted" in sentence
    assert "\n" not in sentence
    return sentence


def test_every_data_set_of_files_is_here(tmp_path: Path) -> None:
    names = set()
    for name, layout in LAYOUTS.items():
        (tmp_path / name).mkdir()
        made = layout(tmp_path / name)
        names.add(made.name.partition("/")[0])
        arrays = read(made, tmp_path / name)
        assert all(array.dtype == np.uint8 and array.shape[:2] == (H, W) for array in arrays)
        assert (made.label is None) == all(array.ndim == 3 for array in arrays)
    assert names == DATASETS.keys() - MADE


# ---- contents that are no frame and no label


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png(width: int, height: int, bits: int, kind: int, *more: bytes) -> bytes:
    """A PNG with right checksums whose pixels are a hundred million zeros, in a kilobyte or so a million."""
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, kind, 0, 0, 0])
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    first, second = Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)
    return encoded(first, kind, save_all=True, append_images=[second])


GREY = Image.fromarray(IDS)
JPEG = encoded(Image.fromarray(PICTURE), "JPEG")
FRAME = JPEG.index(b"\xff\xc0")  # the header with the size
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 8\n(touched) (w) file closefile\nshowpage\n"

NO_IMAGE = {
    "nothing": b"",
    "one byte": b"\x89",
    "text": b"this is no picture, but longer than any header of one would have to be",
    "zeros": bytes(4096),
    "a page": b"<!DOCTYPE html><html><body>404: not found</body></html>",
    "a drawing": b'<svg xmlns="http://www.w3.org/2000/svg" width="12" height="8"/>',
    "a program": POSTSCRIPT,
    "a pickle": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "a signature": b"\x89PNG\r\n\x1a\n",
    "a huge png": png(2**31 - 1, 2**31 - 1, 8, 2),
    "a large png": png(20_000, 20_000, 8, 0),
    "a png of no width": png(0, 8, 8, 0),
    "a huge jpeg": JPEG[: FRAME + 5] + b"\xff\xff\xff\xff" + JPEG[FRAME + 9 :],
    "an animated gif": animation("GIF"),
    "an animated png": animation("PNG"),
    "an animated webp": animation("WEBP"),
    "text that unpacks to gigabytes": png(W, H, 8, 2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))),
}
NO_FRAME = NO_IMAGE | {
    "16 bits a channel": cv2.imencode(".png", DEEP)[1].tobytes(),
    "16-bit grey": encoded(Image.fromarray(DEEP[..., 0]), "PNG"),
    "cmyk": encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"),
    "one bit": encoded(GREY.convert("1"), "PNG"),
    "another size": encoded(Image.fromarray(PICTURE[:, :-1]), "PNG"),
}
NO_LABEL = NO_IMAGE | {
    "a jpeg": JPEG,
    "16-bit grey": encoded(Image.fromarray(DEEP[..., 0]), "PNG"),
    "grey with alpha": encoded(GREY.convert("LA"), "PNG"),
    "colours with alpha": encoded(Image.fromarray(COLOURS).convert("RGBA"), "PNG"),
    "one bit": encoded(GREY.convert("1"), "PNG"),
    "another size of grey": encoded(Image.fromarray(IDS[:-1]), "PNG"),
    "another size of palette": encoded(Image.fromarray(IDS[:-1]).convert("P"), "PNG"),
    "another size of colours": encoded(Image.fromarray(COLOURS[:-1]), "PNG"),
}


@pytest.mark.parametrize("content", NO_FRAME)
def test_no_frame(case: Case, tmp_path: Path, content: str) -> None:
    case.image.write_bytes(NO_FRAME[content])
    refused(case, tmp_path, case.image)
    assert not (Path.cwd() / "touched").exists()


@pytest.mark.parametrize("content", NO_LABEL)
def test_no_label(labelled: Case, tmp_path: Path, content: str) -> None:
    assert labelled.label is not None
    labelled.label.write_bytes(NO_LABEL[content])
    refused(labelled, tmp_path, labelled.label)


def test_a_folder_is_no_file(case: Case, tmp_path: Path) -> None:
    for path in filter(None, (case.label, case.image)):
        path.unlink()
        path.mkdir()
        refused(case, tmp_path, path)


def test_other_images_are_taken_for_what_they_show(case: Case, tmp_path: Path) -> None:
    """Transparency is left out and a palette looked up; the ending of a name says nothing."""
    before = read(case, tmp_path)
    for content in (
        encoded(Image.fromarray(np.dstack([PICTURE, PICTURE[..., 0]])), "PNG"),
        encoded(Image.fromarray(PICTURE), "BMP"),
        encoded(Image.fromarray(PICTURE), "WEBP", lossless=True),
        encoded(Image.fromarray(PICTURE).quantize(256), "PNG"),
    ):
        case.image.write_bytes(content)
        after = read(case, tmp_path)
        changed = [k for k, (a, b) in enumerate(zip(before, after, strict=True)) if not np.array_equal(a, b)]
        assert len(changed) <= 1
        assert all(np.array_equal(after[k], PICTURE) for k in changed)


# ---- bytes that are changed, lost, doubled and moved


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """`whole` with one small accident."""
    at, to = sorted(int(i) for i in rng.integers(0, len(whole) + 1, 2))
    return [
        lambda: whole[:at] + bytes([whole[at % len(whole)] ^ int(rng.integers(1, 256))]) + whole[at + 1 :],
        lambda: whole[:at],
        lambda: whole[:at] + whole[to:],
        lambda: whole[:to] + whole[at:],
        lambda: whole[:at] + rng.bytes(int(rng.integers(1, 9))) + whole[at:],
        lambda: whole[:at] + bytes(to - at) + whole[to:],
    ][int(rng.integers(6))]()


def check_accidents(case: Case, root: Path, path: Path, count: int, *, exact: bool) -> None:
    """exact: a file that is read although it was changed gives the pixels it gave before."""
    before, whole = read(case, root), path.read_bytes()
    rng, refusals = np.random.default_rng([*case.name.encode()]), 0
    for _ in range(count):
        path.write_bytes(mutated(whole, rng))
        after, sentence = [], ""
        try:
            after = read(case, root)
        except UsageError as error:
            sentence = str(error)
        if sentence:
            refusals += 1
            assert path.name in sentence
            assert "\n" not in sentence
            continue
        assert [a.shape for a in after] == [b.shape for b in before]
        if exact:
            assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))
    assert refusals > count / 4
    path.write_bytes(whole)


def accidents_of_both(case: Case, root: Path, count: int) -> None:
    # a JPEG has no checksums: a changed byte can be a changed picture, and the manifest of `vda data check` tells it
    check_accidents(case, root, case.image, count, exact=case.image.suffix == ".png")
    if case.label is not None:
        check_accidents(case, root, case.label, count, exact=True)


def test_accidents(case: Case, tmp_path: Path) -> None:
    accidents_of_both(case, tmp_path, 40)


@pytest.mark.slow
def test_many_accidents(case: Case, tmp_path: Path) -> None:
    accidents_of_both(case, tmp_path, 600)
