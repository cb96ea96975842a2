"""Flow ahead of training: stored in tenths of a pixel, resumable, refused where it is of something else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clips import ArrayClip, dataset, scrolling_clip

from vda.data.clip import Clip, FlowField, VideoDataset
from vda.data.flow_files import UNKNOWN_TENTHS, from_tenths, in_tenths
from vda.errors import UsageError
from vda.flow.cache import MANIFEST, CachedFlow, pair_path, precompute
from vda.flow.providers import DISFlow, ExactFlow


def clips() -> VideoDataset:
    return dataset(scrolling_clip("a", length=4), scrolling_clip("b", length=2, shift=3))


class Counted:
    """A provider that counts its calls and fails from a given one on."""

    name = "exact"

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        self.calls += 1
        if self.fail_at is not None and self.calls >= self.fail_at:
            raise KeyboardInterrupt
        return ExactFlow()(clip, i, j)


def test_codec() -> None:
    flow = np.array([[0.0, 0.04, 0.06, -0.26, 3276.7, -3276.7, 3276.76, -1e9, np.nan, np.inf, -np.inf]] * 2, np.float32)
    stored = in_tenths(flow[:, None])
    assert stored.dtype == np.int16
    assert stored[0, 0].tolist() == [0, 0, 1, -3, 32767, -32767] + [UNKNOWN_TENTHS] * 5
    back = from_tenths(stored)[0, 0]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back[:6], np.array([0, 0, 0.1, -0.3, 3276.7, -3276.7], np.float32))
    assert np.isnan(back[6:]).all()
    random = np.random.default_rng(0).normal(scale=40, size=(2, 30, 40)).astype(np.float32)
    assert np.abs(from_tenths(in_tenths(random)) - random).max() <= 0.05 + 1e-5


@pytest.mark.parametrize("workers", [1, 3])
def test_every_pair_in_both_directions(tmp_path: Path, workers: int) -> None:
    data = clips()
    assert precompute(ExactFlow(), data, tmp_path, steps=(1, 2, 1), workers=workers) == 3 + 2 + 1
    cached = CachedFlow(tmp_path, data, "exact")
    assert cached.name == "exact-tenths"
    for clip in data.clips:
        for i in range(len(clip)):
            for j in range(len(clip)):
                if abs(i - j) in (1, 2):
                    np.testing.assert_array_equal(cached(clip, i, j), clip.exact_flow(i, j))
    with pytest.raises(UsageError, match=r"a/0000-0003.npy: not all there yet; run `python -m vda flow`"):
        cached(data.clips[0], 0, 3)


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data = clips()
    broken = Counted(fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        precompute(broken, data, tmp_path)
    again = Counted()
    assert precompute(again, data, tmp_path) == 3
    assert again.calls == 6
    assert precompute(again, data, tmp_path) == 0
    assert again.calls == 6
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".npy", ".json")]


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("provider", {}),
        ("size", {"size": (8, 8)}),
        ("dataset", {"name": "arrays/other"}),
    ],
)
def test_a_cache_of_something_else_is_refused(tmp_path: Path, key: str, change: dict[str, object]) -> None:
    precompute(ExactFlow(), clips(), tmp_path)
    other = replace(clips(), **change)
    source = DISFlow() if key == "provider" else ExactFlow()
    with pytest.raises(UsageError, match=f"this flow is of another {key}: wanted .*, found "):
        CachedFlow(tmp_path, other, source.name)
    with pytest.raises(UsageError, match=f"this flow is of another {key}"):
        precompute(source, other, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", json.dumps({"format": "vda-flow-cache-0"})])
def test_damaged_manifests(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="wanted a flow cache, found none; make it with"):
        CachedFlow(tmp_path, clips(), "exact")
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UsageError) as info:
        CachedFlow(tmp_path, clips(), "exact")
    assert "\n" not in str(info.value)


def test_damaged_files(tmp_path: Path) -> None:
    data = clips()
    precompute(ExactFlow(), data, tmp_path)
    cached, clip = CachedFlow(tmp_path, data, "exact"), data.clips[0]
    path = pair_path(tmp_path, clip, 0, 1)
    whole = path.read_bytes()
    for content in (b"", whole[:50], whole[:-7], b"x" * 200):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"0000-0001.npy: "):
            cached(clip, 0, 1)
    for wrong in (np.zeros((2, 24, 40), np.float32), np.zeros((2, 24, 41), np.int16), np.array([{}], object)):
        np.save(path, wrong)
        with pytest.raises(UsageError, match=r"0000-0001.npy: wanted"):
            cached(clip, 0, 1)


def test_both_directions_in_one_pass_where_the_provider_has_one(tmp_path: Path) -> None:
    class Both(Counted):
        def both(self, clip: Clip, i: int, j: int) -> tuple[FlowField, FlowField]:
            return ExactFlow()(clip, i, j), ExactFlow()(clip, j, i)

    source, data = Both(), clips()
    precompute(source, data, tmp_path)
    assert source.calls == 0
    np.testing.assert_array_equal(CachedFlow(tmp_path, data, "exact")(data.clips[1], 1, 0)[0], np.full((24, 40), 3.0))


def test_reading_flow_reads_no_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = clips()
    precompute(ExactFlow(), data, tmp_path)
    cached = CachedFlow(tmp_path, data, "exact")
    monkeypatch.setattr(ArrayClip, "frame", None)
    assert cached(data.clips[0], 0, 1).shape == (2, 24, 40)


def test_reading_copies_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is mapped: np.load is asked for a memory map, and the stored bytes are half those of the flow."""
    clip = ArrayClip("a", np.zeros((2, 64, 64, 3), np.uint8), flow=(1.5, -2.0))
    data = dataset(clip)
    precompute(ExactFlow(), data, tmp_path)
    assert pair_path(tmp_path, clip, 0, 1).stat().st_size == 128 + 2 * 64 * 64 * 2
    seen = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda *args, **options: seen.append(load(*args, **options)) or seen[-1])
    CachedFlow(tmp_path, data, "exact")(clip, 0, 1)
    assert isinstance(seen[0], np.memmap)


def test_all_that_a_run_needs_is_checked_at_its_start(tmp_path: Path) -> None:
    precompute(ExactFlow(), clips(), tmp_path, steps=(1,))
    cached = CachedFlow(tmp_path, clips(), "exact")
    cached.check(clips(), {1})
    with pytest.raises(UsageError, match=r"a/0000-0002.npy: not all there yet; run `python -m vda flow`"):
        cached.check(clips(), {1, 2})
    clip = clips().clips[1]
    pair_path(tmp_path, clip, 1, 0).unlink()
    with pytest.raises(UsageError, match=rf"{pair_path(tmp_path, clip, 1, 0)}: not all there yet"):
        cached.check(clips(), {1})
