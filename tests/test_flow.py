"""Units and direction of the flow providers, measured with OpenCV's own remap as an independent warp."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from shared import shared_data

from vda.errors import UsageError
from vda.flow.flownet2 import VARIANTS
from vda.flow.providers import DISFlow, ExactFlow, NetworkFlow, PrecomputedFlow, provider
from vda.options import Flow

PRESETS = ["ultrafast", "fast", "medium"]


class FakeClip:
    """Frames in memory; `flows` maps (i, j) to ground truth."""

    def __init__(self, frames, flows=None, name="clip"):
        self.frames, self.flows, self.name = frames, flows or {}, name
        self.frame_names = [f"{i:06d}" for i in range(len(frames))]

    def __len__(self):
        return len(self.frames)

    def frame(self, i):
        return self.frames[i]

    def label(self, i):
        return None

    def exact_flow(self, i, j):
        return self.flows.get((i, j))


def warped(image, flow):
    """image sampled at p + flow(p), and where that lies inside."""
    height, width = image.shape[:2]
    v, u = np.mgrid[:height, :width].astype(np.float32)
    x, y = u + flow[0], v + flow[1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), inside


def photometric(image, neighbour, flow):
    moved, inside = warped(neighbour, flow)
    return np.abs(moved.astype(float) - image)[inside].mean()


def textured(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 6)
    fine = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 1.5)
    image = coarse / coarse.std() + 0.7 * fine / fine.std()
    return np.clip(128 + 45 * image, 0, 255).astype(np.uint8)


def shifted_pair(height, width, dx, dy):
    """Two views of one texture; what lies at p in the first lies at p + (dx, dy) in the second."""
    canvas = textured(height + 40, width + 40)
    a = canvas[20 : 20 + height, 20 : 20 + width]
    b = canvas[20 - dy : 20 - dy + height, 20 - dx : 20 - dx + width]
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


def camvid_pair():
    folder = shared_data("camvid", "0016E5_15Hz", "frames")
    names = sorted(folder.glob("*.jpg"))[40:42]
    return [cv2.cvtColor(cv2.imread(str(name)), cv2.COLOR_BGR2RGB) for name in names]


def chairs_pair(n):
    images = [
        cv2.cvtColor(cv2.imread(str(shared_data("flow", f"chairs{n}_img{i}.png"))), cv2.COLOR_BGR2RGB) for i in (0, 1)
    ]
    raw = shared_data("flow", f"chairs{n}_flow.flo").read_bytes()
    width, height = np.frombuffer(raw, np.int32, 2, offset=4)
    flow = np.frombuffer(raw, np.float32, offset=12).reshape(height, width, 2).transpose(2, 0, 1)
    return *images, flow


def end_point_error(flow, truth):
    return np.sqrt(((flow - truth) ** 2).sum(axis=0)).mean()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("dx", "dy"), [(5, 0), (0, 3), (-7, 2), (4, -6)])
def test_dis_recovers_a_known_shift(preset, dx, dy):
    a, b = shifted_pair(97, 131, dx, dy)
    dis = DISFlow(preset)
    flow = dis(FakeClip([a, b]), 0, 1)
    assert flow.shape == (2, 97, 131)
    assert flow.dtype == np.float32
    assert flow.flags.c_contiguous
    inner = flow[:, 12:-12, 12:-12]
    np.testing.assert_allclose(np.median(inner, axis=(1, 2)), [dx, dy], atol=0.3)
    # Backwards the same motion has the other sign.
    np.testing.assert_allclose(np.median(dis(FakeClip([a, b]), 1, 0), axis=(1, 2)), [-dx, -dy], atol=0.5)


@pytest.mark.parametrize("preset", PRESETS)
def test_warping_by_dis_flow_brings_the_neighbour_onto_the_frame(preset):
    a, b = shifted_pair(97, 131, 5, -3)
    flow = DISFlow(preset).between(a, b)
    still = photometric(a, b, np.zeros_like(flow))
    assert photometric(a, b, flow) < 0.2 * still
    assert photometric(a, b, -flow) > 0.8 * still


@pytest.mark.parametrize("n", [0, 1])
def test_dis_on_flying_chairs(n):
    a, b, truth = chairs_pair(n)
    flow = DISFlow().between(a, b)
    still = end_point_error(np.zeros_like(truth), truth)
    assert end_point_error(flow, truth) < 0.65 * still
    assert photometric(a, b, flow) < 0.5 * photometric(a, b, np.zeros_like(flow))
    # u and v exchanged, or the sign turned, must be clearly worse: the check can tell them apart.
    assert end_point_error(flow[::-1], truth) > 0.8 * still
    assert end_point_error(-flow, truth) > still


def test_exact_flow_reduces_the_photometric_error_on_flying_chairs():
    a, b, truth = chairs_pair(0)
    flow = ExactFlow()(FakeClip([a, b], {(0, 1): truth}), 0, 1)
    np.testing.assert_array_equal(flow, truth)
    assert photometric(a, b, flow) < 0.6 * photometric(a, b, np.zeros_like(flow))


def test_dis_on_real_driving_video():
    a, b = camvid_pair()
    clip = FakeClip([a, b])
    for i, j in [(0, 1), (1, 0)]:
        flow = DISFlow()(clip, i, j)
        still = photometric(clip.frame(i), clip.frame(j), np.zeros_like(flow))
        assert photometric(clip.frame(i), clip.frame(j), flow) < 0.6 * still
        assert photometric(clip.frame(i), clip.frame(j), -flow) > still


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (1, 70),
        (2, 3),
        (8, 8),
        (9, 9),
        (12, 500),
        (13, 200),
        (16, 1000),
        (31, 2000),
        (31, 33),
        (33, 9),
    ],
)
def test_dis_takes_frames_of_any_size(preset, size):
    # These shapes make OpenCV's own call throw or crash.
    a, b = shifted_pair(*size, 1, 0)
    flow = DISFlow(preset).between(a, b)
    assert flow.shape == (2, *size)
    assert np.isfinite(flow).all()
    if min(size) >= 12:
        np.testing.assert_allclose(np.median(flow, axis=(1, 2)), [1, 0], atol=0.3)


def test_dis_of_a_frame_with_itself_and_of_flat_frames_is_still():
    image = textured(40, 56)
    flat = np.full((40, 56, 3), 7, np.uint8)
    assert np.abs(DISFlow().between(image, image)).max() < 1e-3
    assert np.abs(DISFlow().between(flat, flat)).max() < 1e-3


def test_dis_is_deterministic_under_any_number_of_threads():
    a, b = shifted_pair(128, 160, 3, 2)
    before = cv2.getNumThreads()
    try:
        flows = []
        for threads in (1, 2, 5):
            cv2.setNumThreads(threads)
            flows += [DISFlow().between(a, b), DISFlow().between(a, b)]
    finally:
        cv2.setNumThreads(before)
    for flow in flows[1:]:
        np.testing.assert_array_equal(flow, flows[0])


def test_dis_takes_strided_and_read_only_frames():
    a, b = shifted_pair(48, 64, 2, 0)
    wide = np.zeros((48, 128, 3), np.uint8)
    wide[:, ::2] = a
    wide.flags.writeable = False
    np.testing.assert_array_equal(DISFlow().between(wide[:, ::2], b), DISFlow().between(a, b))


def test_names_and_lookup():
    assert provider(Flow(provider="dis")).name == "dis-medium"
    assert provider(Flow(provider="exact")).name == "exact"
    with pytest.raises(UsageError, match="preset: wanted one of ultrafast, fast, medium, got 'slow'"):
        DISFlow("slow")


@pytest.mark.parametrize(("name", "setting"), [("flownet2", "weights"), ("precomputed", "root")])
def test_what_a_provider_lacks_is_told(name, setting, tmp_path):
    with pytest.raises(UsageError, match=f"--flow.provider {name}: wanted --flow.{setting}"):
        provider(Flow(provider=name))
    with pytest.raises(UsageError, match="nowhere"):
        provider(replace(Flow(provider=name), **{setting: tmp_path / "nowhere"}))


def test_missing_ground_truth_is_told_in_one_sentence():
    frame = textured(8, 8)
    with pytest.raises(UsageError, match="clip drive has no ground-truth flow from frame 000001 to 000000") as info:
        ExactFlow()(FakeClip([frame, frame], {(0, 1): np.zeros((2, 8, 8), np.float32)}, "drive"), 1, 0)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["exact", "dis", "precomputed", "flownet2"])
@pytest.mark.parametrize(("i", "j", "wrong"), [(-1, 0, "i"), (0, 2, "j"), (2, 0, "i")])
def test_frames_outside_the_clip_are_refused(tmp_path, name, i, j, wrong):
    frame = textured(8, 8)
    sources = {
        "exact": ExactFlow(),
        "dis": DISFlow(),
        "precomputed": PrecomputedFlow(tmp_path),
        "flownet2": NetworkFlow(VARIANTS["flownet2-s"](width=8), "small", torch.device("cpu")),
    }
    with pytest.raises(ValueError, match=f"^{wrong}: wanted a frame 0 .. 1 of clip clip"):
        sources[name](FakeClip([frame, frame]), i, j)


def test_bad_frames_are_refused():
    good = textured(8, 8)
    for bad in (good[..., 0], good.astype(np.float32), good[:0], good[..., :2]):
        with pytest.raises(ValueError, match="neighbour: wanted uint8"):
            DISFlow().between(good, bad)
    with pytest.raises(ValueError, match="neighbour: wanted the size"):
        DISFlow().between(good, good[:4])
