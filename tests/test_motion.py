"""motion: layers and drives, two frames each, with exact flow both ways."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from vda.data import open_dataset
from vda.data.clip import Clip
from vda.data.motion import motion
from vda.errors import UsageError
from vda.flow.scores import photometric_error

SIZE = (64, 112)
motion_module = importlib.import_module("vda.data.motion")  # the package has the function under this name


def arrays(clip: Clip) -> list[np.ndarray]:
    return [clip.frame(0), clip.frame(1), clip.exact_flow(0, 1), clip.exact_flow(1, 0)]


def forget() -> None:
    motion_module._render.cache_clear()


@pytest.mark.parametrize(("split", "count"), [("train", 20_000), ("val", 100)])
def test_splits(split: str, count: int) -> None:
    data = open_dataset(f"motion/{split}", None, SIZE)
    assert (data.name, data.size, data.num_classes) == (f"motion/{split}", SIZE, 0)
    assert len(data.clips) == count
    assert len({clip.name for clip in data.clips}) == count
    clip = data.clips[count - 1]
    assert len(clip) == len(clip.frame_names) == 2
    assert clip.label(0) is None


def test_splits_share_no_clip() -> None:
    for k in (0, 1):
        assert not np.array_equal(
            motion("train", size=SIZE).clips[k].frame(0), motion("val", size=SIZE).clips[k].frame(0)
        )


@pytest.mark.parametrize("k", [0, 1, 5])
def test_the_same_bytes_in_any_order(k: int) -> None:
    once = arrays(motion("val", size=SIZE).clips[k])
    forget()
    clip = motion("val", size=SIZE).clips[k]
    again = [clip.exact_flow(1, 0), clip.exact_flow(0, 1), clip.frame(1), clip.frame(0)]
    for a, b in zip(once, reversed(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 5])  # 0 and 5 are drives
def test_the_flow_is_exact_both_ways(k: int) -> None:
    clip = motion("val", size=SIZE).clips[k]
    for i, j in ((0, 1), (1, 0)):
        flow = clip.exact_flow(i, j)
        frames = clip.frame(i), clip.frame(j)
        error = photometric_error(*frames, flow)
        assert error < 0.9 * photometric_error(*frames, np.zeros_like(flow))
        assert error < 0.9 * photometric_error(*frames, -flow)


def test_every_fifth_clip_is_a_drive_of_either_look() -> None:
    looks = []
    real = motion_module.SyntheticClip

    def spy(seed: tuple[int, ...], look: object, *rest: object, **options: object) -> object:
        looks.append((seed[-1], look))
        return real(seed, look, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(motion_module, "SyntheticClip", spy)
        forget()
        for clip in motion("val", size=(16, 24)).clips[:40]:
            clip.frame(0)
    forget()
    assert [k for k, _ in looks] == list(range(0, 40, 5))
    assert {look for _, look in looks} == {motion_module.SIMULATOR, motion_module.CAMERA}


@pytest.mark.parametrize("k", [0, 1])
def test_what_is_given_out_may_be_changed(k: int) -> None:
    clip = motion("val", size=SIZE).clips[k]
    before = [x.copy() for x in arrays(clip)]
    for x in arrays(clip):
        x += 1
    for a, b in zip(arrays(clip), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (63, 16)])
def test_small_and_odd_sizes(size: tuple[int, int]) -> None:
    data = motion("train", size=size)
    for clip in (data.clips[0], data.clips[1]):
        first, second, flow, back = arrays(clip)
        assert first.shape == second.shape == (*size, 3)
        assert first.dtype == second.dtype == np.uint8
        assert flow.shape == back.shape == (2, *size)
        assert flow.dtype == back.dtype == np.float32
        assert np.isfinite(flow).all()
        assert not clip.exact_flow(1, 1).any()


@pytest.mark.parametrize("k", [0, 1])
def test_frames_outside_the_clip(k: int) -> None:
    clip = motion("val", size=(16, 16)).clips[k]
    for call in (lambda: clip.frame(2), lambda: clip.frame(-1), lambda: clip.exact_flow(0, 2)):
        with pytest.raises(IndexError, match=r"of clip val-0000\d, which has frames 0 and 1"):
            call()


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^motion: wanted a split of train, val, found 'test'$"):
        motion("test")
    with pytest.raises(UsageError, match=r"^motion: wanted a size of at least 16 x 16, found 15 x 64$"):
        motion("val", size=(15, 64))
