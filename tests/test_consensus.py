"""consensus on every backend: Eq. 13 and 14 by hand, by a loop over pixels, and on hostile input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import Backend, exactly, hostile_flow, layouts, misaligned, smooth_flow
from torch import Tensor

from vda.ops import Predictions, apply_thresholds, consensus, consensus_reference, warp
from vda.ops.consensus import MODES
from vda.ops.thresholds import RULES

NONE = 255


def by_hand(label: Tensor, reference: Tensor, flow: Tensor, mode: str, visible: Tensor | None = None) -> Tensor:
    """The three rules, one pixel at a time, in plain Python."""
    out = label.clone()
    B, H, W = label.shape
    flow = flow.float() / 10 if flow.dtype == torch.int16 else flow
    for b, y, x in np.ndindex(B, H, W):
        # numpy's float32 sum and rint are the definition: fp32 position, ties to even.
        at_x = np.float32(x) + np.float32(flow[b, 0, y, x].item())
        at_y = np.float32(y) + np.float32(flow[b, 1, y, x].item())
        other = NONE
        if math.isfinite(at_x) and math.isfinite(at_y):
            i, j = float(np.rint(at_y)), float(np.rint(at_x))
            if 0 <= i < H and 0 <= j < W:
                other = int(reference[b, int(i), int(j)])
        own = int(label[b, y, x])
        if mode == "strict":
            keep = own == other
        elif mode == "lenient":
            keep = own == other or other == NONE
        else:
            keep = True
            if own == NONE and (visible is None or visible[b, y, x]):
                out[b, y, x] = other
        if not keep:
            out[b, y, x] = NONE
    return out


def maps(B: int, H: int, W: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Two label maps with few classes, so that they agree here and there, and a quarter unlabelled."""
    both = torch.randint(0, classes, (2, B, H, W), dtype=torch.uint8)
    both[torch.rand(both.shape) < 0.25] = NONE
    return both[0], both[1]


# golden example 17: a warped reference of 255 gives 255 (strict) or keeps the label (lenient)
@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        #           agree, differ, other none, own none, both none, outside, NaN
        ("strict", [1, NONE, NONE, NONE, NONE, NONE, NONE]),
        ("lenient", [1, NONE, 3, NONE, NONE, 5, 6]),
        ("fill_in", [1, 2, 3, 7, NONE, 5, 6]),
    ],
)
def test_every_case_by_hand(backend: Backend, mode: str, wanted: list[int]) -> None:
    label = torch.tensor([[[1, 2, 3, NONE, NONE, 5, 6]]], dtype=torch.uint8)
    reference = torch.tensor([[[1, 4, NONE, 7, NONE, 5, 6]]], dtype=torch.uint8)
    flow = torch.zeros(1, 2, 1, 7)
    flow[0, 0, 0, 5] = 2.0
    flow[0, 1, 0, 6] = math.nan
    found = consensus(*(x.to(backend.device) for x in (label, reference, flow)), mode=mode)
    assert found[0, 0].tolist() == wanted


def test_fill_in_copies_only_what_is_visible(backend: Backend) -> None:
    label = torch.full((1, 1, 4), NONE, dtype=torch.uint8, device=backend.device)
    reference = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.uint8, device=backend.device)
    flow = torch.zeros(1, 2, 1, 4, device=backend.device)
    visible = torch.tensor([[[True, False, True, False]]], device=backend.device)
    found = consensus(label, reference, flow, mode="fill_in", visible=visible)
    assert found[0, 0].tolist() == [0, NONE, 2, NONE]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flow_type", [torch.float32, torch.float16, torch.bfloat16, torch.int16])
def test_equals_a_loop_over_pixels(backend: Backend, mode: str, flow_type: torch.dtype) -> None:
    label, reference = maps(2, 9, 35)
    flow = hostile_flow(2, 9, 35, flow_type, reach=1.0)
    visible = torch.rand(2, 9, 35) < 0.5 if mode == "fill_in" else None
    wanted = by_hand(label, reference, flow, mode, visible)
    on_device = [x.to(backend.device) for x in (label, reference, flow)]
    some = None if visible is None else visible.to(backend.device)
    assert torch.equal(consensus(*on_device, mode=mode, visible=some).cpu(), wanted)
    assert torch.equal(consensus_reference(label, reference, flow, mode=mode, visible=visible), wanted)
    assert len(wanted.unique()) == 4  # some of each class and some ignored


@pytest.mark.parametrize("slope", [0.0, 0.03, 0.2, 0.7])
def test_smooth_flow(backend: Backend, slope: float) -> None:
    """Where neighbours go to neighbours the CPU kernel reads whole vectors."""
    label, reference = maps(2, 12, 83)
    flow = smooth_flow(2, 12, 83, slope)
    wanted = by_hand(label, reference, flow, "strict")
    assert torch.equal(consensus(*(x.to(backend.device) for x in (label, reference, flow))).cpu(), wanted)


def test_layouts_of_every_argument(backend: Backend) -> None:
    label, reference = maps(2, 5, 34)
    flow, visible = hostile_flow(2, 5, 34, reach=1.0), torch.rand(2, 5, 34) < 0.5
    wanted = consensus_reference(label, reference, flow, mode="fill_in", visible=visible)
    on_device = [x.to(backend.device) for x in (label, reference, flow, visible)]
    for some in zip(*map(layouts, on_device), strict=True):
        found = consensus(*some[:3], mode="fill_in", visible=some[3])
        assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_every_width(backend: Backend, mode: str) -> None:
    """Packs of pixels, what is left over of them, and rows and warps that end early."""
    types = (torch.float32, torch.float16, torch.bfloat16, torch.int16)
    for W in range(1, 41):
        H = 2 + W % 4
        label, reference = (x.to(backend.device) for x in maps(2, H, W))
        flow = hostile_flow(2, H, W, types[W // 8 % 4], reach=1.0).to(backend.device)
        seen = (torch.rand(2, H, W) < 0.5).to(backend.device) if mode == "fill_in" and W % 3 else None
        found = exactly(lambda s=(label, reference, flow), v=seen: consensus(*s, mode=mode, visible=v))
        assert torch.equal(found, consensus_reference(label, reference, flow, mode=mode, visible=seen))


@pytest.mark.parametrize("flow_type", [torch.float32, torch.float16, torch.int16])
def test_one_argument_of_another_layout(backend: Backend, flow_type: torch.dtype) -> None:
    """In rows of 48 everything can be read in packs, until one argument cannot."""
    label, reference = (x.to(backend.device) for x in maps(2, 5, 48))
    flow = hostile_flow(2, 5, 48, flow_type, reach=1.0).to(backend.device)
    given = [label, reference, flow, (torch.rand(2, 5, 48) < 0.5).to(backend.device)]
    wanted = consensus_reference(*given[:3], mode="fill_in", visible=given[3])
    for i, x in enumerate(given):
        for other in (x, misaligned(x), *layouts(x)[1:]):
            some = [*given[:i], other, *given[i + 1 :]]
            assert torch.equal(exactly(lambda s=some: consensus(*s[:3], mode="fill_in", visible=s[3])), wanted)


# golden example 17: a constant map under no flow
@pytest.mark.parametrize("mode", MODES)
def test_constant_map_stays(backend: Backend, mode: str) -> None:
    label = torch.full((2, 5, 9), 7, dtype=torch.uint8, device=backend.device)
    flow = torch.zeros(2, 2, 5, 9, device=backend.device)
    assert torch.equal(consensus(label, label.clone(), flow, mode=mode), label)


@pytest.mark.parametrize("mode", MODES)
def test_properties(backend: Backend, mode: str) -> None:
    label, reference = (x.to(backend.device) for x in maps(3, 6, 40))
    flow = hostile_flow(3, 6, 40, reach=1.0).to(backend.device)
    refined = consensus(label, reference, flow, mode=mode)
    assert torch.equal(consensus(refined, reference, flow, mode=mode), refined)  # idempotent
    had = label != NONE
    if mode == "fill_in":
        assert torch.equal(refined[had], label[had])
    else:
        changed = refined != label
        assert (refined[changed] == NONE).all()  # labels are cut out, never added or exchanged
        assert changed.any()
    warped = warp(reference, flow, mode="nearest", fill=NONE)  # the op is its composition
    assert torch.equal(consensus(label, warped, torch.zeros_like(flow), mode=mode), refined)


def test_other_ignore_index(backend: Backend) -> None:
    label = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8, device=backend.device)
    reference = torch.tensor([[[1, 1, 255]]], dtype=torch.uint8, device=backend.device)
    flow = torch.zeros(1, 2, 1, 3, device=backend.device)
    assert consensus(label, reference, flow, ignore_index=0).tolist() == [[[0, 1, 255]]]
    assert consensus(label, reference, flow, ignore_index=0, mode="fill_in").tolist() == [[[1, 1, 255]]]


@pytest.mark.parametrize("mode", MODES)
def test_all_ignored_one_pixel_and_empty(backend: Backend, mode: str) -> None:
    none = torch.full((1, 3, 5), NONE, dtype=torch.uint8, device=backend.device)
    flow = torch.zeros(1, 2, 3, 5, device=backend.device)
    assert torch.equal(consensus(none, none, flow, mode=mode), none)
    one = torch.zeros(1, 1, 1, dtype=torch.uint8, device=backend.device)
    assert consensus(one, one, flow[..., :1, :1], mode=mode).item() == 0
    for shape in ((0, 3, 5), (1, 0, 5), (1, 3, 0)):
        empty = torch.zeros(shape, dtype=torch.uint8, device=backend.device)
        flow_of_none = torch.zeros(shape[0], 2, *shape[1:], device=backend.device)
        assert consensus(empty, empty, flow_of_none, mode=mode).shape == shape


def test_opcheck() -> None:
    label, reference = maps(2, 5, 7)
    flow, visible = torch.randn(2, 2, 5, 7), torch.rand(2, 5, 7) < 0.5
    for mode in MODES:
        some = visible if mode == "fill_in" else None
        torch.library.opcheck(torch.ops.vda.consensus, (label, reference, flow, some, mode, 255, *[None] * 4, ""))
    confidence = torch.rand(2, 2, 5, 7).half()
    theta = torch.rand(3)
    torch.library.opcheck(
        torch.ops.vda.consensus,
        (label, reference, flow, None, "strict", 255, *confidence, theta, theta.expand(2, 3), "iast"),
    )


def test_numpy_in_numpy_out(backend: Backend) -> None:
    label, reference = maps(1, 4, 6)
    flow = torch.randn(1, 2, 4, 6)
    found = consensus(label.numpy(), reference.numpy(), flow.numpy())
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, consensus_reference(label, reference, flow).numpy())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"label": torch.zeros(1, 3, 4)}, TypeError, "label: wanted element type uint8, got float32"),
        ({"reference": torch.zeros(1, 4, 3, dtype=torch.uint8)}, ValueError, r"reference: wanted shape \[1, 3, 4\]"),
        ({"flow": torch.zeros(1, 3, 4, 2)}, ValueError, r"flow: wanted shape \[1, 2, 3, 4\]"),
        ({"mode": "majority"}, ValueError, "mode: wanted 'strict' or 'lenient' or 'fill_in', got 'majority'"),
        ({"ignore_index": 256}, ValueError, "ignore_index: wanted 0 .. 255, got 256"),
        ({"visible": torch.ones(1, 3, 4, dtype=torch.bool)}, ValueError, "visible: wanted None unless"),
        (
            {"mode": "fill_in", "visible": torch.ones(1, 3, 4)},
            TypeError,
            "visible: wanted element type bool, got float32",
        ),
    ],
)
def test_bad_arguments(change: dict, error: type[Exception], message: str) -> None:
    labels = torch.zeros(1, 3, 4, dtype=torch.uint8)
    arguments = {"label": labels, "reference": labels, "flow": torch.zeros(1, 2, 3, 4)} | change
    with pytest.raises(error, match=message):
        consensus(**arguments)


# ---- thresholds on the fly ----


def confidences(B: int, H: int, W: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Confidences with ties at the thresholds of `thetas`, and NaN."""
    both = torch.rand(2, B, H, W).mul(8).round().div(8)
    both[torch.rand(both.shape) < 0.05] = math.nan
    return both[0].to(dtype), both[1].to(dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_thresholds_on_the_fly(backend: Backend, mode: str, rule: str, dtype: torch.dtype) -> None:
    """The same as applying the thresholds to both maps first; theta shared, and a row per frame."""
    B, H, W = 2, 6, 45
    label, reference = maps(B, H, W, classes=5)  # of which 3 and 4 are no classes
    confidence, other = confidences(B, H, W, dtype)
    flow = hostile_flow(B, H, W)
    for theta, other_theta in (
        (torch.tensor([0.25, 0.5, 0.875]), None),
        (torch.rand(B, 3, dtype=torch.float64), torch.tensor([0.5, 0.25, 0.75])),
    ):
        second = theta if other_theta is None else other_theta
        wanted = consensus_reference(
            apply_thresholds(label, confidence, theta, rule=rule),
            apply_thresholds(reference, other, second, rule=rule),
            flow,
            mode=mode,
        )
        given = Predictions(*(x.to(backend.device) for x in (confidence, other, theta)), rule=rule)
        if other_theta is not None:
            given = Predictions(*(x.to(backend.device) for x in (confidence, other, theta, other_theta)), rule=rule)
        where = [x.to(backend.device) for x in (label, reference, flow)]
        assert torch.equal(consensus(*where, mode=mode, predictions=given).cpu(), wanted)
        assert torch.equal(consensus_reference(*where, mode=mode, predictions=given).cpu(), wanted)


def test_thresholds_on_the_fly_of_any_layout(backend: Backend) -> None:
    label, reference = (x.to(backend.device) for x in maps(2, 5, 37))
    flow = hostile_flow(2, 5, 37).to(backend.device)
    confidence, other = (x.to(backend.device) for x in confidences(2, 5, 37, torch.float16))
    theta = torch.tensor([0.25, 0.5, 0.75], device=backend.device)
    wanted = consensus(label, reference, flow, predictions=Predictions(confidence, other, theta))
    for c, o in zip(layouts(confidence), layouts(other)[::-1], strict=True):
        assert torch.equal(consensus(label, reference, flow, predictions=Predictions(c, o, theta)), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_thresholds_on_the_fly_at_every_width(backend: Backend, dtype: torch.dtype) -> None:
    """With all the classes there can be, a few of them, and rows that can and cannot be read in packs."""
    for W in (1, 7, 8, 16, 24, 31, 32, 33, 40):
        for K in (1, 19, 255):
            label, reference = (x.to(backend.device) for x in maps(2, 3, W, classes=min(K + 2, 256)))
            given = [x.to(backend.device) for x in confidences(2, 3, W, dtype)]
            theta = torch.rand(2, K).mul(8).round().div(8).to(backend.device)
            flow = hostile_flow(2, 3, W, reach=1.0).to(backend.device)
            for rule in ("paper", "iast"):
                for c in (given[0], misaligned(given[0])):
                    predictions = Predictions(c, given[1], theta, rule=rule)
                    some = (label, reference, flow)
                    found = exactly(lambda s=some, p=predictions: consensus(*s, predictions=p))
                    assert torch.equal(found, consensus_reference(*some, predictions=predictions))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"confidence": torch.zeros(1, 4, 6)}, ValueError, r"predictions.confidence: wanted shape \[1, 4, 5\]"),
        ({"confidence": torch.zeros(1, 4, 5).int()}, TypeError, "predictions.confidence: wanted element type"),
        ({"reference_confidence": torch.zeros(1, 4, 5).half()}, TypeError, "predictions.reference_confidence: wanted"),
        ({"theta": torch.zeros(2, 3)}, ValueError, r"predictions.theta: wanted shape \[1, K\], got \[2, 3\]"),
        ({"theta": torch.zeros(256)}, ValueError, "predictions.theta: wanted at most 255 classes, got 256"),
        ({"reference_theta": torch.zeros(2)}, ValueError, "predictions.reference_theta: wanted 3 classes, got 2"),
        ({"theta": torch.zeros(3, device="meta")}, ValueError, "predictions.theta: wanted device cpu"),
        (
            {"confidence": torch.zeros(1, 4, 5, requires_grad=True)},
            ValueError,
            "confidence: wanted .* without gradient",
        ),
        ({"rule": "cbst"}, ValueError, "predictions.rule: wanted 'paper' or 'iast' or 'portion', got 'cbst'"),
    ],
)
def test_bad_predictions(change: dict[str, object], error: type[Exception], message: str) -> None:
    label = torch.zeros(1, 4, 5, dtype=torch.uint8)
    confidence = torch.zeros(1, 4, 5)
    members = {"confidence": confidence, "reference_confidence": confidence, "theta": torch.zeros(3)} | change
    with pytest.raises(error, match=message):
        consensus(label, label, torch.zeros(1, 2, 4, 5), predictions=Predictions(**members))
