"""The report page in a headless Chromium: it plays, it can be used by mouse and keyboard, it fits the window.

Needs PySide6 with Qt WebEngine: `pip install -e ".[browser]"`, or VDA_BROWSER_PYTHON names the interpreter of another
environment that has it. VDA_SCREENSHOTS names a folder that keeps the pictures, to be looked at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vda.report import Group, Row, Strip, write_report

PYTHON = os.environ.get("VDA_BROWSER_PYTHON", sys.executable)
DRIVER = Path(__file__).with_name("browser.py")
CLASSES = [
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "<b>bicycle</b> with a long name",
]  # fmt: skip
SIZES = {"wide": (1280, 900), "narrow": (375, 800)}


def installed() -> bool:
    try:
        found = subprocess.run([PYTHON, "-c", "import PySide6.QtWebEngineWidgets"], capture_output=True, timeout=120)
    except OSError:
        return False
    return found.returncode == 0


pytestmark = pytest.mark.skipif(
    not installed(), reason="no PySide6 with Qt WebEngine: pip install -e '.[browser]', or set VDA_BROWSER_PYTHON"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two clips of six frames: frame i is grey 40 i; the map is class i, and none in frame 3."""
    rng = np.random.default_rng(0)
    frames = np.repeat(40 * np.arange(6, dtype=np.uint8), 60 * 120 * 3).reshape(6, 60, 120, 3)
    maps = [None if i == 3 else np.full((60, 120), i, np.uint8) for i in range(6)]
    rows = [Row("truth", maps), Row("vst", maps), Row("errors of VST", maps)]
    strips = [Strip(f"clip-{c}", [f"name-{i}" for i in range(6)], frames, rows, "mIoU 12.3") for c in "ab"]
    strips.append(Strip("single", ["only"], frames[:1], [Row("truth", maps[:1])]))
    values = rng.uniform(0, 1, 19).tolist()
    scores = {
        name: {
            "classes": CLASSES,
            "iou": values,
            "vpq_per_class": [None, *values[1:]],
            "miou": 0.5,
            "pixel_accuracy": 0.8,
            "vpq": 0.4,
            "vpq_k": [0.4, 0.3, 0.2, 0.1],
            "frames": 30,
            "clips": 6,
            "size": [60, 120],
            "ignore": 255,
            "confusion": (rng.integers(0, 1000, (20, 20)) + 90000 * np.eye(20, dtype=int)).tolist(),
            "interval": {"level": 0.95, "samples": 1000, "miou": [0.45, 0.55], "vpq": [0.35, 0.45]},
        }
        for name in ("source_only", "runs/a-rather-long-folder-name/with/parts", "vst", "oracle")
    }
    path = tmp_path_factory.mktemp("page") / "report.html"
    palette = rng.integers(0, 256, (19, 3), dtype=np.uint8)
    palette[:6] = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
    log = [{"phase": "vst", "iteration": i, "seg": 1 / (1 + i), "reg": 0.1} for i in range(50)]
    write_report(
        path,
        title="a: b to c",
        settings={"seed": 3},
        scores=scores,
        classes=CLASSES,
        palette=palette,
        clips=[Group("Worst clips", strips)],
        log=log,
    )
    return path


def drive(page, *steps, size="wide", dark=False):
    """The values of the steps; the page may not have complained."""
    command = [PYTHON, DRIVER, page, "--size", *map(str, SIZES[size]), *(["--dark"] if dark else [])]
    done = subprocess.run(command, input=json.dumps(steps), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["console"] == []
    return found["results"]


def answers(page, *steps, **window):
    """The values of the steps that have one."""
    return [value for value in drive(page, *steps, **window) if value is not None]


def until(condition):
    """Waits until what was done has arrived at the page, however long a busy machine takes."""
    return {"until": condition}


SHOWN = {"until": "strips.every((strip) => strip.element.dataset.shown === String(strip.at))"}
STATE = {
    "run": "(({at, element}) => [at, Number(element.dataset.shown), element.querySelector('input').value, "
    "element.querySelector('output').textContent])(strips[0])"
}
# The colour in the middle of each picture of the first clip.
COLOURS = {
    "run": "strips[0].figures.map((f) => { const c = new OffscreenCanvas(1, 1).getContext('2d'); "
    "c.drawImage(f.querySelector('canvas'), -60, -30); return [...c.getImageData(0, 0, 1, 1).data]; })"
}


def shown(frame):
    return [frame, frame, str(frame), f"{frame + 1}/6 name-{frame}"]


def test_rows_show_one_frame_and_switch_together(page):
    """By mouse and by keyboard; the slider and the text tell the same frame; the end leads to the beginning."""
    forth, back, slider = ('.strip [data-do="forth"]', '.strip [data-do="back"]', ".strip input")
    acts = [([], 0), ([{"click": forth}], 1), ([{"click": back}], 0), ([{"click": back}], 5)]
    acts += [([{"press": key}], frame) for key, frame in (("Right", 0), ("End", 5), ("Left", 4), ("Home", 0))]
    steps = [step for act, frame in acts for step in (*act, until(f"strips[0].at === {frame}"), SHOWN, STATE)]
    # a click on the middle of a slider 0 .. 5 is 2 or 3; the arrow key goes one on, as in the rest of the clip
    steps += [{"click": slider}, until("strips[0].at >= 2"), {"run": "strips[0].at"}, {"press": "Right"}]
    steps += [until("strips[0].at >= 3"), SHOWN, STATE, {"run": "strips[1].at"}]
    *found, clicked, last, other = answers(page, *steps)
    assert found == [shown(frame) for _, frame in acts]
    assert clicked in (2, 3)
    assert last in (shown(3), shown(4))
    assert other == 0


def test_maps_are_drawn_over_the_frame(page):
    """Frame 2 is grey 80 under blue at 60 %, then at 0 % and 100 %; frame 3 has no map."""
    strength = "Object.assign(strength, {value: %d}).dispatchEvent(new Event('input'))"
    go = "strips[0].show(%d)"
    steps = [SHOWN, {"run": go % 2}, SHOWN, COLOURS, {"run": strength % 0}, SHOWN, COLOURS]
    steps += [{"run": strength % 100}, SHOWN, COLOURS, {"run": go % 3}, SHOWN, COLOURS]
    steps += [{"run": "strips[0].figures.map((f) => f.classList.contains('missing'))"}]
    *_, missing = found = drive(page, *steps)
    mixed, bare, full, none = (found[i] for i in (3, 6, 9, 12))
    grey = [80, 80, 80, 255]
    np.testing.assert_allclose(mixed, [grey] + [[32, 32, 185, 255]] * 3, atol=3)
    np.testing.assert_allclose(bare, [grey] * 4, atol=3)
    np.testing.assert_allclose(full, [grey] + [[0, 0, 255, 255]] * 3, atol=3)
    np.testing.assert_allclose(none, [[120, 120, 120, 255]] + [[0, 0, 0, 0]] * 3, atol=3)
    assert missing == [False, True, True, True]


def test_clip_plays_and_stops(page):
    """By mouse and by the space bar; all frames come by, and another clip stands still throughout."""
    play = '.strip [data-do="play"]'
    label = f"document.querySelector('{play}').ariaLabel"
    watch = "setInterval(() => strips[0].seen.add(Number(strips[0].element.dataset.shown)), 1)"
    at = {"run": "strips[0].at"}
    steps = [SHOWN, {"run": label}, {"run": f"[speed.value = '25', strips[0].seen = new Set(), {watch}].length"}]
    steps += [{"click": play}, until(f"{label} === 'pause'"), until("strips[0].seen.size === 6")]
    steps += [{"click": play}, until(f"{label} === 'play'"), SHOWN, at, {"pause": 0.5}, at]
    steps += [{"click": ".strip h3"}, {"press": "Space"}, until("strips[0].timer !== 0"), {"run": label}]
    steps += [{"press": "Space"}, until("strips[0].timer === 0"), {"run": "[strips[1].at, strips[1].timer]"}]
    first, _, stopped, still, playing, other = answers(page, *steps)
    assert first == "play"
    assert stopped == still
    assert playing == "pause"
    assert other == [0, 0]


def test_pictures_grow_and_rows_can_be_hidden(page):
    width = {"run": "document.querySelector('.strip figure').offsetWidth"}
    pressed = "document.querySelector('.strip .picture').ariaPressed"
    box = "[data-shows='errors of VST']"
    count = "[...document.querySelectorAll('figure[data-row]')].filter((f) => f.offsetWidth).length"
    steps = [SHOWN, width, {"click": ".strip .picture"}, until(f"{pressed} === 'true'"), width]
    steps += [{"press": "Space"}, until(f"{pressed} === 'false'"), width, {"run": count}]
    steps += [{"click": box}, until(f"{count} < 10"), {"run": count}, {"click": box}, until(f"{count} === 10")]
    small, large, again, *counts = answers(page, *steps)
    assert large > 3 * small
    assert again == small
    assert counts == [10, 8]


def test_confusion_cells_tell_their_counts(page):
    """By pointer and by arrow keys: one row down, one column back."""
    cell = ".confusion[open] tbody tr:nth-child(4) td:nth-of-type(8)"
    readout = "document.querySelector('.confusion[open] .readout').textContent"
    title = f"document.querySelector({json.dumps(cell)}).title"
    steps = [{"run": readout}, {"point": cell}, until(f"{readout} === {title}"), {"run": readout}, {"click": cell}]
    steps += [{"press": "Down"}, {"press": "Left"}, until(f"{readout}.includes('light')"), {"run": readout}]
    before, pointed, moved = answers(page, *steps)
    assert before.startswith("Point at a cell")
    assert pointed.startswith("wall taken for traffic sign: ")
    assert moved.startswith("fence taken for traffic light: ")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_page_fits_the_window_and_its_colours_follow_the_system(page, tmp_path, size, dark):
    """Only tables scroll sideways; every control has a name; the picture of the page is bright or dark."""
    folder = Path(os.environ.get("VDA_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    shots = [folder / f"{size}-{'dark' if dark else 'light'}-{part}.png" for part in ("top", "confusion", "clips")]
    nameless = (
        "[...document.querySelectorAll('button, input, select')].filter((e) => "
        "!(e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)"
    )
    outside = (
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.wide') && e.offsetWidth && "
        "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 200))"
    )
    heads = "[...document.querySelectorAll('tbody th')].map((e) => e.offsetWidth).filter(Boolean)"
    steps = [
        SHOWN,
        {"run": f"Math.min(...{heads})"},
        {"run": "[document.documentElement.scrollWidth, innerWidth]"},
        {"run": outside},
        {"run": nameless},
    ]
    steps += [{"shot": str(shots[0])}, {"point": ".confusion[open] .matrix"}, {"shot": str(shots[1])}]
    steps += [{"point": ".strip .pictures"}, {"shot": str(shots[2])}]
    narrowest, (wide, window), clipped, unnamed = answers(page, *steps, size=size, dark=dark)
    assert narrowest >= 80  # pixels, of the names of rows
    assert wide <= window
    assert clipped == []
    assert unnamed == []
    for shot in shots:
        picture = np.asarray(Image.open(shot).convert("L"))
        assert (np.median(picture) < 60) == dark
        assert picture.std() > 5
