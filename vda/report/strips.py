"""Clips to play: rows of pictures of the same frames, which `page.js` switches together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

import numpy as np
from numpy.typing import NDArray

from vda.data.clip import Image, LabelMap
from vda.pictures import map_uri, photo_uri, shrink
from vda.report.tables import stage_title

MAX_WIDTH = 960  # of the pictures of a page, pixels; whoever makes strips of large frames may shrink them at once
# What is tried until the pictures fit: (largest width, every n-th frame).
_LEVELS = ((MAX_WIDTH, 1), (640, 1), (480, 1), (320, 1), (320, 2), (240, 4), (240, 8))


@dataclass(frozen=True)
class Row:
    """A picture of each frame of a clip: an image [H, W, 3], or a map [H, W] that is drawn over the frame.

    A map holds indices of colours: those of the classes, or `colours` [n, 3] where given; 255 leaves the frame as it
    is. None where a frame has no picture.
    """

    caption: str
    pictures: Sequence[Image | LabelMap | None]
    colours: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Strip:
    """A clip: its frames [H, W, 3] with their names, and what else there is to see of each of them."""

    title: str
    names: Sequence[str]
    frames: Sequence[Image]
    rows: Sequence[Row] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for what, found in (("frames", self.frames), *((row.caption, row.pictures) for row in self.rows)):
            if len(found) != len(self.names) or not self.names:
                raise ValueError(f"{what}: wanted a picture for each of {len(self.names)} frames, got {len(found)}")


@dataclass(frozen=True)
class Group:
    """Strips under one heading."""

    title: str
    strips: Sequence[Strip]
    note: str = ""


def groups_html(groups: Sequence[Group], palette: NDArray[np.uint8], room: int) -> tuple[list[tuple[str, str]], str]:
    """(title, HTML) of each group in at most `room` bytes, and a sentence on what was left out or thinned.

    Pictures get narrower first, then frames fewer; strips are left out from the end only where that does not do.
    """
    strips = [strip for group in groups for strip in group.strips]
    for width, step in _LEVELS:
        encode = partial(strip_html, palette=palette, width=width, step=step)
        if sum(_estimate(strip, palette, width, step) for strip in strips) > 1.1 * room:
            continue  # spares the work of encoding what cannot fit
        parts = [encode(strip, number=number) for number, strip in enumerate(strips)]
        if sum(len(part.encode()) for part in parts) <= room:
            return _grouped(groups, parts), _thinned(step)
    parts, used = [], 0
    for number, strip in enumerate(strips):
        part = encode(strip, number=number)
        used += len(part.encode())
        if used > room:
            break
        parts.append(part)
    left = len(strips) - len(parts)
    return _grouped(groups, parts), f"{_thinned(step)} {left} of {len(strips)} clips left out to keep the file small."


def _thinned(step: int) -> str:
    return "" if step == 1 else f"One frame in {step} is shown, to keep the file small."


def _grouped(groups: Sequence[Group], parts: Sequence[str]) -> list[tuple[str, str]]:
    """The parts under the heads of their groups; a group of which nothing is left is left out."""
    rest = iter(parts)
    found = []
    for group in groups:
        own = "".join(part for _, part in zip(group.strips, rest, strict=False))
        if own:
            note = f'<p class="note">{escape(group.note)}</p>' if group.note else ""
            found.append((group.title, note + own))
    return found


def _estimate(strip: Strip, palette: NDArray[np.uint8], width: int, step: int) -> int:
    """Bytes of a strip, from its middle frame."""
    middle = len(strip.names) // 2
    pictures = [(strip.frames[middle], None), *((row.pictures[middle], row.colours) for row in strip.rows)]
    one = sum(len(_uri(picture, palette if own is None else own, width) or "") for picture, own in pictures)
    return one * -(-len(strip.names) // step)


def strip_html(strip: Strip, *, palette: NDArray[np.uint8], width: int, step: int, number: int) -> str:
    """The player of one clip, of every `step`-th frame, in pictures of at most `width` pixels."""
    kept = range(0, len(strip.names), step)
    rows = [Row("frame", strip.frames), *strip.rows]
    data = {
        "size": list(shrink(strip.frames[0], width).shape[1::-1]),
        "names": [strip.names[i] for i in kept],
        "rows": [
            {
                "over": any(picture is not None and picture.ndim == 2 for picture in row.pictures),
                "pictures": [
                    _uri(row.pictures[i], palette if row.colours is None else row.colours, width) for i in kept
                ],
            }
            for row in rows
        ],
    }
    # "<" as an escape: nothing in a name can end the script element, which holds data and is never run
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    w, h = data["size"]
    figures = "".join(
        f'<figure data-row="{escape(caption)}"><button type="button" class="picture" aria-pressed="false" '
        f'aria-label="{escape(caption)}: full width"><canvas width="{w}" height="{h}"></canvas></button>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption in (stage_title(row.caption) for row in rows)
    )
    return (
        f'<article class="strip" role="group" tabindex="0" aria-labelledby="strip-{number}">'
        f'<h3 id="strip-{number}">{escape(strip.title)} <small>{escape(strip.note)}</small></h3>'
        f"{_controls(len(data['names']))}"
        f'<div class="pictures">{figures}</div><script type="application/json">{text}</script></article>\n'
    )


def _controls(frames: int) -> str:
    hidden = "" if frames > 1 else " hidden"
    return (
        f'<div class="controls"{hidden}>'
        '<button type="button" data-do="play" aria-label="play">▶</button>'
        '<button type="button" data-do="back" aria-label="previous frame">‹</button>'
        '<button type="button" data-do="forth" aria-label="next frame">›</button>'
        f'<input type="range" min="0" max="{frames - 1}" value="0" aria-label="frame"><output></output></div>'
    )


def _uri(picture: Image | LabelMap | None, colours: NDArray[np.uint8], width: int) -> str | None:
    if picture is None:
        return None
    small = shrink(picture, width)
    return map_uri(small, colours) if small.ndim == 2 else photo_uri(small)


def viewer_html(groups: Sequence[Group]) -> str:
    """What all strips share: which rows are shown, speed, and how strongly maps cover the frame."""
    captions = dict.fromkeys(
        stage_title(caption)
        for group in groups
        for strip in group.strips
        for caption in ("frame", *(row.caption for row in strip.rows))
    )
    boxes = "".join(
        f'<label><input type="checkbox" checked data-shows="{escape(caption)}"> {escape(caption)}</label>'
        for caption in captions
    )
    speeds = "".join(
        f"<option{' selected' if fps == 5 else ''} value='{fps}'>{fps}</option>" for fps in (1, 2, 5, 10, 25)
    )
    return (
        f'<div class="viewer"><label>frames per second <select id="speed">{speeds}</select></label>'
        '<label>strength of colours <input id="strength" type="range" min="0" max="100" value="60"></label>'
        f"<fieldset><legend>rows</legend>{boxes}</fieldset>"
        '<p class="note">Click a picture for its full width. In a clip: space plays, the arrow keys step, Home and End '
        "go to the first and the last frame.</p><noscript><p>The clips need JavaScript; all else on this page does "
        "not.</p></noscript></div>"
    )
