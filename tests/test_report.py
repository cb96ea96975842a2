"""The report page: valid, complete, escaped, small. What it does in a browser: test_report_browser.py."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vda.report import Group, Row, Strip, page, score_table, write_report

CLASSES = ["road", "sky", "person"]
PALETTE = np.array([[128, 64, 128], [70, 130, 180], [220, 20, 60]], np.uint8)
VOID_ELEMENTS = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Text, sources and the data of the strips of a page; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags, self.links, self.titles, self.data = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for key, value in attributes:
            assert value is not None or key in ("checked", "selected", "hidden", "open")
            if key in ("src", "href"):
                self.links.append(value)
            if key == "title":
                self.titles.append(value)
        if tag not in VOID_ELEMENTS:
            self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        inside, attributes = self.open[-1] if self.open else ("", {})
        if inside == "script" and "type" in attributes:
            self.data.append(json.loads(data))
        elif inside not in ("script", "style"):
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
    }
    write_report(tmp_path / "report.html", **arguments | changes)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return text, Page(text)


def decoded(uri):
    """The picture of a data URI: RGB, or with its transparency."""
    kind, data = uri.removeprefix("data:image/").split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert image.format.lower() == kind
    return np.asarray(image.convert("RGBA" if kind == "png" else "RGB"))


def strip(frames=3, size=(30, 50), title="clip0", seed=0, **rows):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    rows = rows or {"truth": list(rng.integers(0, 3, (frames, *size), dtype=np.uint8))}
    return Strip(title, [f"{i:06d}" for i in range(frames)], pictures, [Row(*row) for row in rows.items()])


# --- the page


def test_page_holds_the_numbers(tmp_path):
    clips = [Group("Worst clips", [strip(), strip(title="clip1")], "a note"), Group("Pseudo labels", [strip(1)])]
    log = [{"phase": "vat", "iteration": i, "dice": 1 / (1 + i), "seconds": 0.1} for i in range(40)]
    pseudo = {"coverage": [0.815, 0.5, float("nan")], "iou": [0.9, None, 0.1], "miou": 0.55, "total_coverage": 0.623}
    text, page = written(tmp_path, clips=clips, log=log, pseudo=pseudo)
    words = page.words()
    assert text.startswith("<!DOCTYPE html>")
    for wanted in (
        "embedded: a to b", "source-only", "VST", "oracle", "50.1", "75.1", "+25.0", "-5.0", "37.5", "43.2", "+5.7",
        "30.1", "40.0", "+9.9", "11.1", "33.3", "81.5", "62.3", "Worst clips", "a note", "clip0", "clip1", "truth",
        "none (255)", "vat.lr", "0.00025", "dice", "VAT",
        "12 labelled frames in 1 clip of 30 × 50 pixels (H × W), mean over 3 classes (road, sky, person), label 255 "
        "ignored, data set camvid/dusk, checkpoint rule last, seed 3.",
    ):  # fmt: skip
        assert wanted in words, wanted
    assert not re.search(r"\bnan\b", text)
    assert "svg" in page.tags
    assert "seconds" not in words.split("Learning curves")[-1]
    assert words.count("Percent.") == 1
    # Best in bold: never the ceiling, and not where all are alike.
    bold = re.findall(r"<td[^>]*><b>([^<]*)</b>", text)
    assert bold[:7] == ["43.2", "40.0", "25.0", "75.1", "43.2", "40.0", "40.0"]
    assert "rgb(70,130,180)" in text


def test_page_needs_nothing_from_outside(tmp_path):
    text, page = written(tmp_path, clips=[Group("g", [strip()])], log=[{"phase": "x", "iteration": 0, "y": 1.0}])
    assert all(re.fullmatch(r"#part-\d", link) for link in page.links)
    assert all(f'id="{link[1:]}"' in text for link in page.links)
    assert not {"link", "iframe", "object", "img"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import|javascript:", text)
    # The one script that may run is the page's own, told by its hash; a browser refuses all others.
    policy = unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1])
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


EVIL = "</script><script>alert(1)</script><!--\"'&"


def test_every_string_is_escaped(tmp_path):
    stage = scores([0.5, 0.5, 0.5], 0.5, 0.5, classes=[EVIL, "sky", "person"])
    stage |= {"dataset": EVIL, "confusion": np.ones((4, 4), int).tolist(), "rules": {EVIL: stage, "x": stage}}
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    clip = Strip(EVIL, [EVIL, "b"], frames, [Row(EVIL, frames)], EVIL)
    text, page = written(
        tmp_path,
        title=EVIL,
        settings={EVIL: EVIL},
        scores={EVIL: stage, "vst": stage},
        classes=[EVIL, "sky", "person"],
        clips=[Group(EVIL, [clip], EVIL)],
        log=[{"phase": EVIL, "iteration": 0, EVIL: 1.0}],
        pseudo={"coverage": [0.1, 0.2, 0.3]},
    )
    assert page.tags.count("script") == 2  # the data of the strip, and the page's own
    assert page.data[0]["names"] == [EVIL, "b"]
    assert "alert(1)</script>" not in text
    assert unescape(text).count(EVIL) >= 30
    assert EVIL in page.words()


def test_page_of_nothing(tmp_path):
    _, page = written(tmp_path, scores={}, settings={})
    assert "0 settings" in page.words()
    unscored = scores([None] * 3, None, None) | {"vpq_k": [None] * 4, "size": None, "frames": 0, "clips": 0}
    unscored |= {"confusion": np.zeros((4, 4), int).tolist(), "interval": None, "mvc": {"8": None}, "tc": None}
    _, page = written(tmp_path, scores={"source_only": unscored, "vst": unscored}, log=[], clips=[Group("empty", [])])
    assert "0 labelled frames in 0 clips of ? × ? pixels" in page.words()
    assert "Clips" not in page.words()
    assert {"road: no pixels"} <= set(page.titles)
    assert "TC" not in page.words()


def test_stages_measured_differently_are_told_apart(tmp_path):
    """What all share is said once."""
    other = scores([0.1, 0.2, 0.3], 0.2, 0.2) | {"seed": 4, "frames": 11}
    _, page = written(tmp_path, scores={"source_only": STAGES["source_only"], "vat": other})
    words = page.words()
    assert (
        "Percent. mean over 3 classes (road, sky, person), label 255 ignored, data set camvid/dusk, checkpoint" in words
    )
    assert re.search(r"source-only: 12 labelled frames[^.]*, seed 3\. VAT: 11 labelled frames[^.]*, seed 4\.", words)
    assert words.count("camvid/dusk") == 1


def test_intervals_and_steadiness_stand_beside_the_means(tmp_path):
    interval = {"level": 0.9, "samples": 500, "miou": [0.3011, 0.4419], "vpq": [float("nan"), 0.4]}
    first = scores([0.5, 0.2, 0.1], 0.4, 0.3) | {"interval": interval, "tc": 0.777, "mvc": {"16": 0.512, "8": 0.625}}
    first |= {"coverage": 1.0, "tc_unmasked": 0.611, "flow": "dis"}
    second = scores([0.5, 0.2, 0.1], 0.5, 0.3) | {"tc": None, "mvc": {"8": float("nan")}, "coverage": 1.0}
    text, page = written(tmp_path, scores={"source_only": first, "vst": second})
    words = page.words()
    assert "mIoU pixel accuracy VPQˢ TC TC, occluded too mVC8 mVC16 source-only" in words
    assert "source-only 40.0 30.1 to 44.2 90.0 30.0 77.7 61.1 62.5 51.2" in words
    assert "VST 50.0 +10.0 90.0 ±0.0 30.0 ±0.0 - - - -" in words
    assert "optical flow of TC dis" in words
    assert words.count("30.1 to 44.2") == 3  # the card, and two tables
    assert "intervals of 90 % from 500 bootstrap samples of the clips" in words
    assert "nan" not in text
    _, page = written(tmp_path, scores={"source_only": first, "vst": second | {"coverage": 0.876}})
    assert "mIoU pixel accuracy covered VPQˢ" in page.words()
    assert "87.6 -12.4" in page.words()


def test_rules_of_the_choice_are_shown_where_there_are_several(tmp_path):
    stage = STAGES["vst"]
    rules = {"last": stage, "oracle": stage | {"miou": 0.6543}}
    _, page = written(tmp_path, scores={"vst": stage | {"rules": rules}, "vat": stage})
    assert "Checkpoint rules last oracle VST 43.2 65.4 VAT - -" in page.words()
    _, page = written(tmp_path, scores={"vst": stage | {"rules": {"last": stage}}})
    assert "Checkpoint rules" not in page.words()


# --- the confusion matrix


def test_confusion_matrix_by_hand(tmp_path):
    """Rows add up to their own pixels; void is left out; a column "none" stands where something was not predicted."""
    counts = [[1500, 499, 0, 1], [0, 0, 0, 0], [1, 0, 199, 0], [70, 7, 7, 7]]
    text, page = written(tmp_path, scores={"vst": STAGES["vst"] | {"confusion": counts}})
    assert page.titles == [
        "road recognised: 1,500 of 2,000 pixels, 75.00 %",
        "road taken for sky: 499 of 2,000 pixels, 24.95 %",
        "road taken for person: 0 of 2,000 pixels, 0.00 %",
        "road taken for none: 1 of 2,000 pixels, 0.05 %",
        *["sky: no pixels"] * 4,
        "person taken for road: 1 of 200 pixels, 0.50 %",
        "person taken for sky: 0 of 200 pixels, 0.00 %",
        "person recognised: 199 of 200 pixels, 99.50 %",
        "person taken for none: 0 of 200 pixels, 0.00 %",
    ]
    assert "road sky person none share of pixels road 75 25 90.9 sky 0.0 person 0 100 9.1" in page.words()
    assert '<td class="right deep" style="--share:0.750"' in text
    counts[0][3] = 0
    _, page = written(tmp_path, scores={"vst": STAGES["vst"] | {"confusion": counts}})
    assert len(page.titles) == 9
    with pytest.raises(ValueError, match=r"confusion: wanted \[4, 4\] counts of 3 classes, got \[3, 3\]"):
        written(tmp_path, scores={"vst": STAGES["vst"] | {"confusion": np.eye(3)}})


def test_confusion_of_nineteen_classes_opens_the_last_stage_that_is_no_ceiling(tmp_path):
    names = [f"class {k}" for k in range(19)]
    rng = np.random.default_rng(0)
    stage = scores([0.5] * 19, 0.5, 0.5, classes=names) | {"vpq_per_class": [0.5] * 19}
    stage |= {"confusion": rng.integers(0, 10**12, (20, 20)).tolist()}
    text, page = written(
        tmp_path,
        scores={"vat": stage, "vst": stage, "oracle": stage},
        classes=names,
        palette=rng.integers(0, 256, (19, 3), dtype=np.uint8),
    )
    assert re.findall(r"<details class=\"confusion\"( open)?><summary>([^<]*)", text) == [
        ("", "VAT"), (" open", "VST"), ("", "oracle"),
    ]  # fmt: skip
    assert len(page.titles) == 3 * 19 * 20


# --- the clips


def test_pictures_come_back_as_they_were(tmp_path):
    """Maps are exact and transparent where there is no label; photographs lose a little."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (31, 47)).astype(np.uint8)
    label[:3] = 255
    smooth = np.stack([*np.mgrid[:31, :47], np.full((31, 47), 90)], axis=-1).astype(np.uint8)
    own = np.array([[9, 8, 7]], np.uint8)
    rows = [
        Row("labels", [label, None]),
        Row("own colours", [np.where(label == 255, 255, 0).astype(np.uint8)] * 2, own),
        Row("photo", [smooth, smooth]),
    ]
    clip = Strip("c", ["a", "b"], [smooth, smooth], rows)
    _, page = written(tmp_path, clips=[Group("g", [clip])])
    (data,) = page.data
    assert (data["size"], data["names"]) == ([47, 31], ["a", "b"])
    assert [row["over"] for row in data["rows"]] == [False, True, True, False]
    found = decoded(data["rows"][1]["pictures"][0])
    np.testing.assert_array_equal(found[3:, :, :3], PALETTE[label[3:]])
    np.testing.assert_array_equal(found[..., 3], np.where(label == 255, 0, 255))
    assert data["rows"][1]["pictures"][1] is None
    found = decoded(data["rows"][2]["pictures"][0])
    assert np.unique(found[3:].reshape(-1, 4), axis=0).tolist() == [[9, 8, 7, 255]]
    for row in (0, 3):
        assert np.abs(decoded(data["rows"][row]["pictures"][1]).astype(int) - smooth).mean() < 3


@pytest.mark.parametrize("K", [1, 2, 3, 15, 16, 19, 255])
def test_maps_of_any_number_of_classes_are_exact(tmp_path, K):
    label = np.concatenate([np.arange(K), [255]]).astype(np.uint8)[None]
    palette = np.random.default_rng(K).integers(0, 256, (K, 3), dtype=np.uint8)
    clip = Strip("c", ["a"], np.zeros((1, 1, K + 1, 3), np.uint8), [Row("m", [label])])
    _, page = written(
        tmp_path, scores={}, classes=[str(k) for k in range(K)], palette=palette, clips=[Group("g", [clip])]
    )
    found = decoded(page.data[0]["rows"][1]["pictures"][0])
    np.testing.assert_array_equal(found[0, :K, :3], palette)
    assert found[0, :, 3].tolist() == [255] * K + [0]


def test_one_frame_has_no_controls(tmp_path):
    text, page = written(tmp_path, clips=[Group("g", [strip(1)])])
    assert '<div class="controls" hidden>' in text
    assert page.data[0]["names"] == ["000000"]
    text, _ = written(tmp_path, clips=[Group("g", [strip(2)])])
    assert '<div class="controls">' in text


def test_strips_of_unlike_lengths_are_refused():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="m: wanted a picture for each of 2 frames, got 1"):
        Strip("c", ["a", "b"], frames, [Row("m", [None])])
    with pytest.raises(ValueError, match="frames: wanted a picture for each of 3 frames, got 2"):
        Strip("c", ["a", "b", "c"], frames)
    with pytest.raises(ValueError, match="frames: wanted"):
        Strip("c", [], [])


@pytest.mark.parametrize("bad", [np.zeros((4,), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_bad_pictures_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=r"picture: wanted uint8 \[H, W, 3\] or \[H, W\]"):
        written(tmp_path, clips=[Group("g", [Strip("c", ["a"], [bad])])])


def test_labels_without_a_colour_are_refused(tmp_path):
    clip = Strip("c", ["a"], np.zeros((1, 2, 2, 3), np.uint8), [Row("m", [np.full((2, 2), 3, np.uint8)])])
    with pytest.raises(ValueError, match=r"label: wanted 0 \.\. 2 or 255, got 3"):
        written(tmp_path, clips=[Group("g", [clip])])


def test_pictures_are_scaled_down_then_thinned_then_left_out(tmp_path, monkeypatch):
    one, two, three = (strip(6, (10, 1200), name, seed) for seed, name in enumerate("abc"))
    clips = [Group("one", [one, two]), Group("two", [three])]
    text, found = written(tmp_path, clips=clips)
    assert [(data["size"], len(data["names"])) for data in found.data] == [([960, 8], 6)] * 3
    bare = len(written(tmp_path)[0].encode())
    sizes, seen = len(text.encode()) - bare, set()
    for share in 0.6 ** np.arange(1, 12):
        monkeypatch.setattr(page, "MAX_BYTES", bare + int(share * sizes) + 5000)
        smaller, found = written(tmp_path, clips=clips)
        assert len(smaller.encode()) <= page.MAX_BYTES
        kinds = {(data["size"][0], len(data["names"])) for data in found.data}
        assert len(kinds) == 1
        seen |= kinds
        (_, frames) = kinds.pop()
        assert ("One frame in" in found.words()) == (frames < 6)
        for data in found.data:
            for row in data["rows"]:
                assert decoded(row["pictures"][-1]).shape[:2] == tuple(data["size"][::-1])
        if len(found.data) < 3:
            assert f"{3 - len(found.data)} of 3 clips left out" in found.words()
            assert " two " not in found.words()  # the head of a group of which nothing is left
    assert {width for width, _ in seen} >= {640, 480, 320, 240}
    assert len(found.data) < 3
    monkeypatch.setattr(page, "MAX_BYTES", 0)
    _, found = written(tmp_path, clips=clips)
    assert not found.data
    assert "3 of 3 clips left out" in found.words()


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
