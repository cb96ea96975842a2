"""aggregate_labels: the composition of interpolate, softmax, aggregate and max, numbers by hand, hostile input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import Backend, hostile_flow, layouts, smooth_flow
from torch import Tensor
from torch.nn import functional as F

from vda.ops import ClassThresholds, aggregate, aggregate_labels, aggregate_labels_reference, warp_occlusion

NONE = 255
Clip = dict[str, Tensor]


def clip_of(B: int, J: int, K: int, size: tuple[int, int], low: tuple[int, int], flow: str = "smooth") -> Clip:
    """Logits of a trained network's range; colours that differ by little, so that the occlusion test goes both ways."""
    H, W = size
    make = (lambda: smooth_flow(B, H, W, 0.03)) if flow == "smooth" else (lambda: hostile_flow(B, H, W, reach=1.5))
    return {
        "logits": 3 * torch.randn(B, K, *low),
        "neighbour_logits": 3 * torch.randn(B, J, K, *low),
        "flows": torch.stack([make() for _ in range(J)], 1) if J else torch.zeros(B, 0, 2, H, W),
        "frame": 0.5 + 0.05 * torch.randn(B, 3, H, W),
        "neighbour_frames": 0.5 + 0.05 * torch.randn(B, J, 3, H, W),
    }


def to(clip: Clip, device: str) -> Clip:
    return {name: x.to(device) for name, x in clip.items()}


def distribution(clip: Clip, align_corners: bool, weight: Tensor | None = None, **occlusion: Any) -> Tensor:
    """The aggregated distribution [B, K, H, W], times weight, in float64 but for the decision what is visible."""
    H, W = clip["frame"].shape[-2:]

    def probabilities(x: Tensor) -> Tensor:
        return F.interpolate(x.double(), (H, W), mode="bilinear", align_corners=align_corners).softmax(1)

    total = probabilities(clip["logits"])
    count = torch.ones_like(total[:, :1])
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    for j in range(clip["flows"].shape[1]):
        flow = clip["flows"][:, j]
        _, visible = warp_occlusion(clip["frame"].float(), clip["neighbour_frames"][:, j].float(), flow, **occlusion)
        flow = torch.where(visible[:, None], flow.float() / (10 if flow.dtype == torch.int16 else 1), 0)
        at_x, at_y = (x + flow[:, 0]).double(), (y + flow[:, 1]).double()
        grid = torch.stack([2 * at_x / max(W - 1, 1) - 1, 2 * at_y / max(H - 1, 1) - 1], -1)
        warped = F.grid_sample(probabilities(clip["neighbour_logits"][:, j]), grid, align_corners=True)
        total = total + torch.where(visible[:, None], warped, 0)
        count = count + visible[:, None]
    return total / count if weight is None else total / count * weight.double()[:, None, None]


def assert_decided(got: tuple[Tensor, Tensor], wanted: Tensor) -> None:
    """Confidences within one rounding to float16; labels wherever the two best classes are not nearly equal."""
    label, confidence = (x.cpu() for x in got)
    assert label.dtype == torch.uint8
    assert confidence.dtype == torch.float16
    best = wanted.max(1).values
    assert ((confidence.double() - best).abs() <= 2.0**-11 * best + 2e-6).all()
    if wanted.shape[1] == 1:
        assert (label == 0).all()
        return
    first, second = wanted.topk(2, 1).values.unbind(1)
    decided = first - second > 1e-5
    assert torch.equal(label.long()[decided], wanted.argmax(1)[decided])
    assert decided.float().mean() > 0.99


def test_by_hand(backend: Backend) -> None:
    """One pixel of logits per frame, so upsampling is constant. log 3 against 0 is 3/4, log 7 is 7/8."""
    clip = {
        "logits": torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1),
        "neighbour_logits": torch.tensor([[0.0, math.log(7)], [math.log(7), 0.0]]).view(1, 2, 2, 1, 1),
        "flows": torch.zeros(1, 2, 2, 1, 3),
        "frame": torch.full((1, 3, 1, 3), 0.5),
        "neighbour_frames": torch.full((1, 2, 3, 1, 3), 0.5),
    }
    clip["neighbour_frames"][0, 1, :, 0, 0] = 1.0  # left: the second neighbour is of another colour
    clip["flows"][0, 0, 0, 0, 2] = 1.0  # right: the first neighbour has left the frame
    for op, device in ((aggregate_labels, backend.device), (aggregate_labels_reference, "cpu")):
        label, confidence = op(**to(clip, device), alpha=1.0)
        # left (3/4 + 1/8, 1/4 + 7/8) / 2; middle (3/4 + 1/8 + 7/8, ..) / 3; right (3/4 + 7/8, ..) / 2
        assert label.flatten().tolist() == [1, 0, 0]
        assert confidence.flatten().tolist() == pytest.approx([9 / 16, 7 / 12, 13 / 16], abs=3e-4)
        weighted = op(**to(clip, device), alpha=1.0, weight=torch.tensor([1.0, 4.0], device=device))
        assert weighted[0].flatten().tolist() == [1, 1, 0]
        assert weighted[1].flatten().tolist() == pytest.approx([9 / 4, 5 / 3, 13 / 16], rel=1e-3)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("flow", ["smooth", "hostile"])
@pytest.mark.parametrize(
    ("sizes", "size", "low"),
    [
        ((2, 2, 5), (21, 150), (5, 19)),  # several tiles, rows and columns left over
        ((1, 1, 19), (16, 64), (16, 64)),  # no upsampling
        ((1, 2, 3), (18, 40), (30, 90)),  # downsampling: a strip of pixels spans more than two vectors of logits
        ((1, 3, 2), (5, 33), (1, 1)),
        ((1, 2, 1), (3, 17), (2, 4)),
        ((2, 0, 4), (9, 35), (3, 5)),
        ((1, 2, 6), (4, 7), (2, 3)),  # narrower than any vector
        ((1, 1, 2), (1, 1), (1, 1)),
        ((1, 2, 19), (18, 65), (4, 9)),  # two by three CUDA tiles, most of them cut off
        ((1, 1, 21), (17, 35), (17, 2)),  # one class more than a CUDA thread sums at once; one row of logits a row
        ((1, 2, 45), (18, 33), (3, 5)),
        ((2, 0, 33), (5, 112), (2, 17)),
        ((1, 1, 255), (7, 34), (2, 5)),
        ((1, 8, 3), (17, 36), (4, 6)),
        ((1, 1, 4), (9, 20), (60, 90)),  # logits of more pixels than CUDA's shared memory holds
    ],
)
def test_composition(
    backend: Backend,
    sizes: tuple[int, int, int],
    size: tuple[int, int],
    low: tuple[int, int],
    flow: str,
    align_corners: bool,
) -> None:
    clip = clip_of(*sizes, size, low, flow)
    wanted = distribution(clip, align_corners, alpha=3.0)
    arguments: dict[str, Any] = {"alpha": 3.0, "align_corners": align_corners}
    assert_decided(aggregate_labels(**to(clip, backend.device), **arguments), wanted)
    assert_decided(aggregate_labels_reference(**clip, **arguments), wanted)


def test_alpha_0_passes_every_colour(backend: Backend) -> None:
    """What is left of the occlusion test: the flow is finite and stays inside, as black against white shows."""
    clip = clip_of(1, 2, 3, (12, 35), (3, 7))
    clip["frame"].zero_()
    clip["neighbour_frames"].fill_(1)
    clip["flows"][:, 0, :, 4:8] = math.nan
    got = aggregate_labels(**to(clip, backend.device), alpha=0.0)
    assert_decided(got, distribution(clip, True, alpha=0.0))
    clip["neighbour_frames"].zero_()
    for x, y in zip(got, aggregate_labels(**to(clip, backend.device), alpha=50.0), strict=True):
        assert torch.equal(x, y)


def test_wild_flow(backend: Backend) -> None:
    """Taps all over a neighbour: no box of probabilities holds those of a tile."""
    clip = clip_of(1, 2, 3, (120, 200), (15, 25))
    y, x = torch.meshgrid(torch.arange(120), torch.arange(200), indexing="ij")
    there = torch.stack([torch.rand(1, 2, 120, 200) * 199 - x, torch.rand(1, 2, 120, 200) * 119 - y], 2)
    clip["flows"] = there
    assert_decided(aggregate_labels(**to(clip, backend.device), alpha=1.0), distribution(clip, True, alpha=1.0))


@pytest.mark.parametrize("classes", [5, 45])
def test_motion_boundary(backend: Backend, classes: int) -> None:
    """Neighbouring pixels move apart by more than a box of probabilities, or a part of it, is wide."""
    clip = clip_of(1, 2, classes, (30, 90), (5, 12))
    y, x = torch.meshgrid(torch.arange(30), torch.arange(90), indexing="ij")
    near = (x > 20 + y) & (x < 60 + y)  # an object in front of a background
    for j, (u, v) in enumerate([(24.3, -9.5), (-33.7, 5.25)]):
        clip["flows"][:, j, 0] = torch.where(near, u, -3.4)
        clip["flows"][:, j, 1] = torch.where(near, v, 1.6)
    assert_decided(aggregate_labels(**to(clip, backend.device), alpha=1.0), distribution(clip, True, alpha=1.0))


@pytest.mark.parametrize("flow_type", [torch.float16, torch.bfloat16, torch.int16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit(backend: Backend, dtype: torch.dtype, flow_type: torch.dtype) -> None:
    clip = clip_of(1, 2, 5, (19, 70), (4, 9))
    clip["logits"], clip["neighbour_logits"] = clip["logits"].to(dtype), clip["neighbour_logits"].to(dtype)
    clip["frame"], clip["neighbour_frames"] = clip["frame"].half(), clip["neighbour_frames"].half()
    scale = 10 if flow_type == torch.int16 else 1
    clip["flows"] = (clip["flows"] * scale).to(flow_type)
    assert_decided(aggregate_labels(**to(clip, backend.device), alpha=3.0), distribution(clip, True, alpha=3.0))


def test_agrees_with_aggregate(backend: Backend) -> None:
    clip = to(clip_of(1, 2, 4, (17, 66), (17, 66)), backend.device)
    probs = aggregate(
        clip["logits"].softmax(1),
        clip["neighbour_logits"].softmax(2),
        clip["flows"],
        clip["frame"],
        clip["neighbour_frames"],
        alpha=3.0,
    )
    assert_decided(aggregate_labels(**clip, alpha=3.0), probs.double().cpu())


def test_ties_go_to_the_lowest_class(backend: Backend) -> None:
    clip = clip_of(1, 1, 4, (5, 40), (2, 3))
    clip["logits"].fill_(2.0)
    clip["neighbour_logits"].fill_(-1.0)
    label, confidence = aggregate_labels(**to(clip, backend.device), alpha=1.0)
    assert (label == 0).all()
    assert (confidence == 0.25).all()


def test_large_logits(backend: Backend) -> None:
    """exp overflows without the subtraction of the maximum; minus infinity is a probability of 0."""
    clip = clip_of(1, 1, 3, (5, 40), (5, 40))
    clip["logits"] *= 1e4
    clip["logits"][:, 1] = -math.inf
    clip["neighbour_logits"][:, :, 1] = -math.inf
    clip["flows"].zero_()  # whole pixels: no infinity times 0
    label, confidence = aggregate_labels(**to(clip, backend.device), alpha=1.0)
    assert not (label == 1).any()
    assert not (label == NONE).any()
    assert (confidence > 0.25).all()


@pytest.mark.parametrize("classes", [4, 23])
@pytest.mark.parametrize("peak", [30.0, 500.0])
def test_opposite_certainties(backend: Backend, peak: float, classes: int) -> None:
    """Between two pixels that are certain of different classes neither maximum is near: exp must not underflow."""
    logits = torch.full((1, classes, 1, 2), -3 * peak)
    logits[0, 1, 0] = torch.tensor([peak, -peak])
    logits[0, 2, 0] = torch.tensor([-peak, peak])
    clip = {
        "logits": logits,
        "neighbour_logits": logits[:, None],
        "flows": torch.zeros(1, 1, 2, 3, 5),
        "frame": torch.full((1, 3, 3, 5), 0.5),
        "neighbour_frames": torch.full((1, 1, 3, 3, 5), 0.5),
    }
    label, confidence = aggregate_labels(**to(clip, backend.device), alpha=1.0)
    assert label[0].tolist() == [[1, 1, 1, 2, 2]] * 3
    assert confidence[0].tolist() == [[1, 1, 0.5, 1, 1]] * 3


def test_class_that_is_switched_off(backend: Backend) -> None:
    """Minus infinity everywhere: as if the class did not exist."""
    clip = clip_of(1, 2, 5, (19, 40), (3, 7))
    wanted = distribution(clip, False, alpha=3.0)
    off = torch.full_like(clip["logits"][:, :1], -math.inf)
    clip["logits"] = torch.cat([off, clip["logits"]], 1)
    clip["neighbour_logits"] = torch.cat([off[:, None].expand(-1, 2, -1, -1, -1), clip["neighbour_logits"]], 2)
    label, confidence = aggregate_labels(**to(clip, backend.device), alpha=3.0, align_corners=False)
    assert_decided((label - 1, confidence), wanted)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_has_no_share_may_be_anything(backend: Backend, bad: float) -> None:
    """Five pixels from three logits: the first and the last take one logit each, the others a half of the bad one."""
    logits = torch.tensor([[0.0, bad, 0.0], [-1.0, bad, 1.0]]).view(1, 2, 1, 3)
    frame = torch.full((1, 3, 1, 5), 0.5)
    none = torch.zeros(1, 0, 2, 1, 3)
    label, confidence = aggregate_labels(
        *(x.to(backend.device) for x in (logits, none, torch.zeros(1, 0, 2, 1, 5), frame, frame[:, None][:, :0])),
        alpha=1.0,
    )
    assert label.flatten().tolist() == [0, NONE, NONE, NONE, 1]
    assert confidence.flatten().tolist() == pytest.approx([0.7311, 0, 0, 0, 0.7311], abs=3e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_gets_no_label(backend: Backend, bad: float) -> None:
    """Only where it matters: in the frame itself, or in a neighbour where it is visible."""
    clip = clip_of(1, 2, 3, (6, 48), (6, 48))
    clip["flows"].zero_()
    clip["neighbour_frames"][:, 0] = clip["frame"]  # the first neighbour is seen everywhere
    clip["neighbour_frames"][:, 1] = 9.0  # the second nowhere
    clip["neighbour_logits"][:, 1] = bad
    clip["logits"][0, 1, 2, 5] = bad
    clip["neighbour_logits"][0, 0, 2, 4, 30] = bad
    stream = ClassThresholds(3, device=backend.device)
    label, confidence = aggregate_labels(**to(clip, backend.device), alpha=1.0, thresholds=stream)
    wanted = aggregate_labels_reference(**clip, alpha=1.0)
    assert torch.equal(label.cpu(), wanted[0])
    none = label == NONE
    assert none[0, 2, 5]
    assert none[0, 4, 30]
    assert 2 <= none.sum() <= 8  # with the pixels that interpolate towards them with weight 0
    assert (confidence[none] == 0).all()
    assert stream.counts.sum() == 6 * 48 - none.sum()


def test_counts_in_the_same_pass(backend: Backend) -> None:
    """The histogram is that of an update with the result; a second call adds to it."""
    clip = to(clip_of(2, 2, 5, (17, 67), (3, 9)), backend.device)
    weight = torch.tensor([1.0, 3.0, 0.5, 1.0, 2.0], device=backend.device)  # lifts confidences above 1
    one, two = ClassThresholds(5, device=backend.device), ClassThresholds(5, device=backend.device)
    for _ in range(2):
        label, confidence = aggregate_labels(**clip, alpha=3.0, weight=weight, thresholds=one)
        two.update(confidence, label)
    assert torch.equal(one.histogram, two.histogram)
    assert one.counts.sum() == 2 * label.numel()
    plain = aggregate_labels(**clip, alpha=3.0, weight=weight)
    assert torch.equal(plain[0], label)
    assert torch.equal(plain[1], confidence)


@pytest.mark.parametrize("classes", [2, 30])
def test_counts_of_saturated_confidences(backend: Backend, classes: int) -> None:
    """Whole warps meet at few cells of the histogram."""
    clip = clip_of(1, 1, classes, (18, 70), (3, 5))
    clip["logits"] *= 40
    clip["neighbour_logits"] = clip["logits"][:, None]
    clip["flows"].zero_()
    one, two = ClassThresholds(classes, device=backend.device), ClassThresholds(classes, device=backend.device)
    label, confidence = aggregate_labels(**to(clip, backend.device), alpha=3.0, thresholds=one)
    assert (confidence == 1).float().mean() > 0.5
    two.update(confidence, label)
    assert torch.equal(one.histogram, two.histogram)
    assert one.counts.sum() == label.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("classes", [19, 23])
def test_channels_last(backend: Backend, classes: int, dtype: torch.dtype) -> None:
    clip = clip_of(1, 2, classes, (18, 40), (3, 5))
    clip["logits"], clip["neighbour_logits"] = clip["logits"].to(dtype), clip["neighbour_logits"].to(dtype)
    clip = to(clip, backend.device)
    expected = aggregate_labels(**clip, alpha=3.0)
    clip["logits"] = clip["logits"].contiguous(memory_format=torch.channels_last)
    clip["neighbour_logits"] = clip["neighbour_logits"].movedim(2, -1).contiguous().movedim(-1, 2)
    got = aggregate_labels(**clip, alpha=3.0)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_layouts(backend: Backend) -> None:
    clip = to(clip_of(2, 2, 3, (6, 40), (3, 5)), backend.device)
    expected = aggregate_labels(**clip, alpha=3.0)
    for variant in zip(*(layouts(x) for x in clip.values()), strict=True):
        got = aggregate_labels(*variant, alpha=3.0)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("size", [(0, 5, 6), (1, 0, 6), (1, 5, 0)])
def test_empty(backend: Backend, size: tuple[int, int, int]) -> None:
    B, H, W = size
    clip = clip_of(B, 1, 3, (H, W), (2, 2)) if B else clip_of(1, 1, 3, (5, 6), (2, 2))
    clip = {name: x[:B] for name, x in clip.items()}
    label, confidence = aggregate_labels(**to(clip, backend.device), alpha=1.0)
    assert label.shape == confidence.shape == size


def test_threads_do_not_change_a_bit() -> None:
    clip = clip_of(2, 2, 5, (50, 300), (7, 38))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(aggregate_labels(**clip, alpha=3.0))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    clip = clip_of(1, 2, 3, (5, 20), (2, 4))
    torch.library.opcheck(torch.ops.vda.aggregate_labels, (*clip.values(), 0.1, True, torch.ones(3)))
    histogram = ClassThresholds(3).histogram
    torch.library.opcheck(torch.ops.vda.aggregate_labels_count, (histogram, *clip.values(), 0.1, False, None))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(1, 3, 2, 2).double()}, TypeError, "logits: wanted element type .* got float64"),
        ({"logits": torch.zeros(3, 2, 2)}, ValueError, r"logits: wanted shape \[B, K, h, w\], got \[3, 2, 2\]"),
        (
            {"neighbour_logits": torch.zeros(1, 2, 3, 2, 3)},
            ValueError,
            r"neighbour_logits: wanted shape \[1, J, 3, 2, 2",
        ),
        ({"flows": torch.zeros(1, 1, 2, 5, 6)}, ValueError, r"flows: wanted shape \[1, 2, 2, 5, 6\]"),
        ({"frame": torch.zeros(1, 3, 5, 7)}, ValueError, r"flows: wanted shape \[1, 2, 2, 5, 7\]"),
        ({"neighbour_frames": torch.zeros(1, 2, 1, 5, 6)}, ValueError, "neighbour_frames: wanted shape"),
        ({"weight": torch.ones(4)}, ValueError, r"weight: wanted shape \[3\], got \[4\]"),
        ({"weight": torch.ones(3).half()}, TypeError, "weight: wanted element type float32, float64, got float16"),
        ({"thresholds": ClassThresholds(4)}, ValueError, "thresholds: wanted 3 classes, got 4"),
        ({"frame": torch.zeros(1, 3, 5, 6, device="meta")}, ValueError, "frame: wanted device cpu .* got meta"),
        ({"logits": torch.zeros(1, 3, 2, 2, requires_grad=True)}, ValueError, "logits: wanted .* without gradient"),
        ({"alpha": math.nan}, ValueError, "alpha: wanted a finite number >= 0, got nan"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = clip_of(1, 2, 3, (5, 6), (2, 2)) | {"alpha": 1.0} | change
    with pytest.raises(error, match=message):
        aggregate_labels(**arguments)


def test_too_many() -> None:
    with pytest.raises(ValueError, match="logits: wanted 1 to 255 classes and at least one pixel"):
        aggregate_labels(**clip_of(1, 1, 256, (5, 6), (2, 2)), alpha=1.0)
    with pytest.raises(ValueError, match="logits: wanted 1 to 255 classes and at least one pixel"):
        aggregate_labels(**clip_of(1, 1, 3, (5, 6), (0, 2)), alpha=1.0)
    with pytest.raises(ValueError, match="neighbour_logits: wanted at most 8 neighbours, got 9"):
        aggregate_labels(**clip_of(1, 9, 3, (5, 6), (2, 2)), alpha=1.0)
