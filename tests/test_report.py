"""The report page: valid, complete, escaped, small; and its pictures by hand-worked values."""

from __future__ import annotations

import base64
import io
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from vda.curves import curve_svg, curves

from vda import report as module_under_test
from vda.pictures import data_uri
from vda.report import Panel, colour_label, overlay, score_table, write_report

CLASSES = ["road", "sky", "person"]
PALETTE = np.array([[128, 64, 128], [70, 130, 180], [220, 20, 60]], np.uint8)
VOID_ELEMENTS = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Text and sources of a page; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.images, self.tags, self.links = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for key, value in attributes:
            assert value is not None or key == "checked"
            if key in ("src", "href"):
                (self.images if tag == "img" else self.links).append(value)
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def scores(iou, miou, vpq, classes=CLASSES):
    return {
        "classes": list(classes),
        "iou": iou,
        "miou": miou,
        "pixel_accuracy": 0.9,
        "vpq": vpq,
        "vpq_k": [vpq, 0.2, 0.1, None],
        "vpq_per_class": [0.111, None, 0.333],
        "frames": 12,
        "clips": 1,
        "size": [30, 50],
        "ignore": 255,
        "dataset": "camvid/dusk",
        "rule": "last",
        "seed": 3,
    }


STAGES = {
    "source_only": scores([0.5012, 0.25, None], 0.375, 0.301),
    "vst": scores([0.7512, 0.2, 0.125], 0.4321, 0.4, CLASSES),
    "oracle": scores([0.99, 0.98, 0.97], 0.98, 0.97),
}


def written(tmp_path, **changes):
    arguments = {
        "title": "embedded: a to b",
        "settings": {"seed": 3, "vat": {"lr": 0.00025, "name": None}, "empty": {}},
        "scores": STAGES,
        "classes": CLASSES,
        "palette": PALETTE,
        "panels": [],
    }
    write_report(tmp_path / "report.html", **arguments | changes)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return text, Page(text)


def decoded(uri):
    kind, data = uri.removeprefix("data:image/").split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert image.format.lower() == kind
    return np.asarray(image.convert("RGB"))


# --- the page


def test_page_holds_the_numbers(tmp_path):
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (30, 50)).astype(np.uint8)
    panels = [
        Panel("clip0/000004", {"frame": frame, "truth": overlay(frame, label, PALETTE), "vst": frame}),
        Panel("clip1/000007", {"pseudo label": colour_label(label, PALETTE)}),
    ]
    log = [{"phase": "vat", "iteration": i, "dice": 1 / (1 + i), "seconds": 0.1} for i in range(40)]
    pseudo = {"coverage": [0.815, 0.5, float("nan")], "iou": [0.9, None, 0.1], "miou": 0.55, "total_coverage": 0.623}
    text, page = written(tmp_path, panels=panels, log=log, pseudo=pseudo)
    words = page.words()
    assert text.startswith("<!DOCTYPE html>")
    for wanted in (
        "embedded: a to b", "source-only", "VST", "oracle", "50.1", "75.1", "+25.0", "-5.0", "37.5", "43.2", "+5.7",
        "30.1", "40.0", "+9.9", "11.1", "33.3", "81.5", "62.3", "clip0/000004", "clip1/000007", "pseudo label",
        "none (255)", "vat.lr", "0.00025", "dice", "VAT",
        "12 labelled frames in 1 clip of 30 × 50 pixels (H × W), label 255 ignored, dataset camvid/dusk",
        "rule last, seed 3.",
    ):  # fmt: skip
        assert wanted in words, wanted
    assert not re.search(r"\bnan\b", text)
    assert "svg" in page.tags
    assert "seconds" not in words
    # Best in bold: never the ceiling, and not the lone value of a lower row.
    bold = re.findall(r"<td[^>]*><b>([^<]*)</b>", text)
    assert bold[:5] == ["25.0", "75.1", "12.5", "43.2", "40.0"]
    assert "rgb(70,130,180)" in text


def test_page_needs_nothing_from_outside(tmp_path):
    frame = np.zeros((4, 4, 3), np.uint8)
    text, page = written(tmp_path, panels=[Panel("p", {"frame": frame})])
    assert all(source.startswith("data:image/") for source in page.images)
    assert page.images
    assert not page.links
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import|javascript:", text)


def test_every_string_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    frame = np.zeros((4, 4, 3), np.uint8)
    stage = scores([0.5, 0.5, 0.5], 0.5, 0.5, classes=[evil, "sky", "person"]) | {"dataset": evil}
    text, page = written(
        tmp_path,
        title=evil,
        settings={evil: evil},
        scores={evil: stage, "vst": stage},
        classes=[evil, "sky", "person"],
        panels=[Panel(evil, {evil: frame})],
        log=[{"phase": evil, "iteration": 0, evil: 1.0}],
        pseudo={"coverage": [0.1, 0.2, 0.3]},
    )
    assert "script" not in page.tags
    assert "<script" not in text.lower()
    assert unescape(text).count(evil) >= 12
    assert evil in page.words()


def test_page_of_nothing(tmp_path):
    _, page = written(tmp_path, scores={}, settings={})
    assert "0 settings" in page.words()
    unscored = scores([None] * 3, None, None) | {"vpq_k": [None] * 4, "size": None, "frames": 0, "clips": 0}
    _, page = written(tmp_path, scores={"source_only": unscored, "vst": unscored}, log=[])
    assert "0 labelled frames in 0 clips" in page.words()


def test_stages_measured_differently_are_told_apart(tmp_path):
    other = scores([0.1, 0.2, 0.3], 0.2, 0.2) | {"seed": 4}
    _, page = written(tmp_path, scores={"source_only": STAGES["source_only"], "vat": other})
    assert re.search(r"source-only: 12 labelled frames.*seed 3\..*VAT: 12 labelled frames.*seed 4\.", page.words())


def test_pictures_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (31, 47)).astype(np.uint8)
    label[:3] = 255
    coloured = colour_label(label, PALETTE)
    smooth = np.stack([*np.mgrid[:64, :96], np.full((64, 96), 90)], axis=-1).astype(np.uint8)
    _, page = written(tmp_path, panels=[Panel("p", {"labels": coloured, "frame": smooth})])
    assert len(page.images) == 2
    np.testing.assert_array_equal(decoded(page.images[0]), coloured)
    assert np.abs(decoded(page.images[1]).astype(int) - smooth).mean() < 3


def test_pictures_are_scaled_down_and_then_left_out(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    panels = [Panel(f"p{i}", {"frame": rng.integers(0, 256, (30, 1200, 3), dtype=np.uint8)}) for i in range(5)]
    text, page = written(tmp_path, panels=panels)
    assert [decoded(source).shape for source in page.images] == [(24, 960, 3)] * 5
    monkeypatch.setattr(module_under_test, "MAX_BYTES", len(text) // 2)
    smaller, page = written(tmp_path, panels=panels)
    assert len(smaller) < len(text) // 2
    assert [decoded(source).shape[1] for source in page.images] == [640] * 5
    bare = len(written(tmp_path)[0])
    monkeypatch.setattr(module_under_test, "MAX_BYTES", bare + 8_000)
    least, page = written(tmp_path, panels=panels)
    assert len(least.encode()) < bare + 8_000
    assert 1 <= len(page.images) < 5
    assert f"{5 - len(page.images)} more frames left out" in page.words()


def test_bad_pictures_are_refused():
    for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="image: wanted uint8"):
            data_uri(bad, 100)


# --- the table for the terminal


def test_score_table_by_hand():
    assert score_table({k: STAGES[k] for k in ("source_only", "vst")}) == (
        "|             | road |  sky | person | mIoU | VPQ^s |\n"
        "| ----------- | ---: | ---: | -----: | ---: | ----: |\n"
        "| source-only | 50.1 | 25.0 |      - | 37.5 |  30.1 |\n"
        "| VST         | 75.1 | 20.0 |   12.5 | 43.2 |  40.0 |"
    )


def test_score_table_of_unlike_classes_and_odd_names():
    a = scores([0.1, 0.2, float("nan")], 0.15, None)
    b = scores([0.3], 0.3, 0.3, classes=["a|b"])
    lines = score_table({"x": a, "y": b}).splitlines()
    assert [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[0])[1:-1]] == [
        "", "road", "sky", "person", r"a\|b", "mIoU", "VPQ^s",
    ]  # fmt: skip
    assert lines[2].split("|")[2:-1] == [" 10.0 ", " 20.0 ", "      - ", "    - ", " 15.0 ", "     - "]
    assert lines[3].split() == ["|", "y", "|", "-", "|", "-", "|", "-", "|", "30.0", "|", "30.0", "|", "30.0", "|"]


# --- curves


def test_curves_take_the_last_value_and_drop_what_is_no_number():
    log = [
        {"phase": "vat", "iteration": 0, "dice": 1.0, "gan": float("nan"), "seconds": 9},
        {"phase": "vat", "iteration": 1, "dice": 2.0, "gan": 0.5, "note": "text"},
        {"phase": "vst", "iteration": 0, "dice": 7.0},
        {"phase": "vat", "iteration": 0, "dice": 3.0},
    ]
    assert curves(log) == {"vat": {"dice": [(0, 3.0), (1, 2.0)], "gan": [(1, 0.5)]}, "vst": {"dice": [(0, 7.0)]}}


def test_curve_by_hand():
    svg = curve_svg("loss", [(0, 4.0), (10, 2.0), (20, 0.0)])
    Page(svg)
    points = [tuple(map(float, p.split(","))) for p in re.search(r'class="line" points="([^"]*)"', svg)[1].split()]
    # Even steps across, and the middle value half way up; the first is at the top, cut at the 99.5 %
    # quantile.
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.11)
    assert points[0][1] == 8
    assert points[2][1] == 102
    assert points[1][1] == pytest.approx((8 + 102) / 2, abs=1)
    assert ">0</text>" in svg
    assert ">20</text>" in svg


@pytest.mark.parametrize("curve", [[(5, 1.0)], [(0, 2.0), (1, 2.0)], [(i, -1e9 * i) for i in range(1000)]])
def test_odd_curves_are_drawn(curve):
    svg = curve_svg("x", curve)
    Page(svg)
    assert "nan" not in svg
    assert "inf" not in svg
    numbers = re.search(r'class="band" points="([^"]*)"', svg)[1].replace(",", " ").split()
    assert all(0 <= float(number) <= 300 for number in numbers)
    assert len(numbers) == 4 * min(120, len(curve))


# --- pictures


def test_overlay_by_hand():
    frame = np.array([[[100, 100, 100], [10, 20, 30]]], np.uint8)
    label = np.array([[1, 255]], np.uint8)
    assert overlay(frame, label, PALETTE, 0.5).tolist() == [[[85, 115, 140], [10, 20, 30]]]
    assert overlay(frame, label, PALETTE, 1.0)[0, 0].tolist() == [70, 130, 180]
    assert overlay(frame, label, PALETTE, 0.0).tolist() == frame.tolist()
    assert colour_label(label, PALETTE).tolist() == [[[70, 130, 180], [0, 0, 0]]]
    with pytest.raises(ValueError, match="label: wanted the size"):
        overlay(frame, label[:, :1], PALETTE)
    with pytest.raises(ValueError, match=r"label: wanted 0 \.\. 2 or 255, got 3"):
        colour_label(np.array([[3]], np.uint8), PALETTE)
