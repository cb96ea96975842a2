"""Learning curves as they are drawn: by hand, and odd ones."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from vda.report.curves import curve_svg, curves


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
    HTMLParser().feed(svg)
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
    HTMLParser().feed(svg)
    assert "nan" not in svg
    assert "inf" not in svg
    numbers = re.search(r'class="band" points="([^"]*)"', svg)[1].replace(",", " ").split()
    assert all(0 <= float(number) <= 300 for number in numbers)
    assert len(numbers) == 4 * min(120, len(curve))
