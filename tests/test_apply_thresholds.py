"""apply_thresholds on every backend: by hand, against a loop, and on hostile input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import Backend, exactly, layouts, misaligned
from torch import Tensor

from vda.ops import apply_thresholds, apply_thresholds_reference
from vda.ops.thresholds import RULES

NONE = 255


def loop(label: Tensor, confidence: Tensor, theta: Tensor, rule: str) -> Tensor:
    """One pixel at a time, in NumPy's float32."""
    out = np.full(label.shape, NONE, np.uint8)
    rows = np.broadcast_to(theta.float().numpy(), (len(label), theta.shape[-1]))
    for b, y, x in np.ndindex(*label.shape):
        k, c = int(label[b, y, x]), np.float32(confidence[b, y, x].item())
        if k < rows.shape[1] and (c > rows[b, k] or (rule != "paper" and c == rows[b, k])):
            out[b, y, x] = k
    return torch.from_numpy(out)


def scene(B: int, H: int, W: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    label = torch.randint(0, 5, (B, H, W), dtype=torch.uint8)
    label[label == 4] = NONE
    confidence = torch.rand(B, H, W).mul(8).round().div(8)
    for value in (math.nan, math.inf, -math.inf, 1.0, -0.0):
        confidence[torch.rand(confidence.shape) < 0.03] = value
    return label, confidence.to(dtype)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("paper", [0, NONE, NONE, NONE, 1]),
        ("iast", [0, 0, NONE, NONE, 1]),
        ("portion", [0, 0, NONE, NONE, 1]),
    ],
)
def test_by_hand(backend: Backend, rule: str, wanted: list[int]) -> None:
    """Above, equal, below, no class, and above the lower threshold of another class."""
    label = torch.tensor([[[0, 0, 0, 2, 1]]], dtype=torch.uint8, device=backend.device)
    confidence = torch.tensor([[[0.75, 0.5, 0.25, 1.0, 0.25]]], device=backend.device)
    theta = torch.tensor([0.5, 0.125], device=backend.device)
    assert apply_thresholds(label, confidence, theta, rule=rule).flatten().tolist() == wanted
    assert apply_thresholds_reference(label, confidence, theta, rule=rule).flatten().tolist() == wanted


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_loop(backend: Backend, rule: str, dtype: torch.dtype) -> None:
    label, confidence = scene(2, 5, 41, dtype)
    for theta in (torch.tensor([0.5, 0.25, 0.875, 1.0]), torch.rand(2, 3, dtype=torch.float64)):
        wanted = loop(label, confidence, theta, rule)
        where = [x.to(backend.device) for x in (label, confidence, theta)]
        assert torch.equal(apply_thresholds(*where, rule=rule).cpu(), wanted)
        assert torch.equal(apply_thresholds_reference(*where, rule=rule).cpu(), wanted)


def test_layouts(backend: Backend) -> None:
    label, confidence = (x.to(backend.device) for x in scene(2, 5, 37, torch.float16))
    theta = torch.tensor([0.5, 0.25, 0.875], device=backend.device)
    wanted = apply_thresholds(label, confidence, theta)
    for k, c in zip(layouts(label), layouts(confidence)[::-1], strict=True):
        assert torch.equal(apply_thresholds(k, c, theta), wanted)
    assert torch.equal(apply_thresholds(label, confidence, theta.repeat_interleave(2)[::2]), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_number_of_pixels(backend: Backend, dtype: torch.dtype) -> None:
    """Whole packs and what is left over of them, in one row of all samples and in a row per sample."""
    for W in range(1, 41):
        label, confidence = (x.to(backend.device) for x in scene(3, 1 + W % 3, W, dtype))
        for theta in (torch.rand(3), torch.rand(3, 3)):
            on_device = theta.to(backend.device)
            for k, c in ((label, confidence), (misaligned(label), confidence), (label, misaligned(confidence))):
                found = exactly(lambda k=k, c=c, t=on_device: apply_thresholds(k, c, t))
                assert torch.equal(found, apply_thresholds_reference(label, confidence, on_device))
            every_other = torch.cat([label, label]).view(2, *label.shape).transpose(0, 1).flatten(0, 1)[::2]
            found = exactly(lambda k=every_other, c=confidence, t=on_device: apply_thresholds(k, c, t))
            assert torch.equal(found, apply_thresholds_reference(label, confidence, on_device))


@pytest.mark.parametrize("rule", RULES)
def test_many_classes(backend: Backend, rule: str) -> None:
    """255 of them, more pixels than a block takes, and thresholds that nothing or everything passes."""
    label = torch.randint(0, 256, (2, 40, 64), dtype=torch.uint8)
    confidence = torch.rand(2, 40, 64).mul(64).round().div(64).half()
    theta = torch.rand(2, 255).mul(64).round().div(64)
    theta[:, 3], theta[:, 4], theta[:, 5] = math.nan, math.inf, -math.inf
    given = [x.to(backend.device) for x in (label, confidence, theta)]
    found = exactly(lambda: apply_thresholds(*given, rule=rule))
    assert torch.equal(found.cpu(), loop(label, confidence, theta, rule))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(backend: Backend, shape: tuple[int, ...]) -> None:
    label = torch.zeros(shape, dtype=torch.uint8, device=backend.device)
    confidence, theta = torch.zeros(shape, device=backend.device), torch.zeros(3, device=backend.device)
    assert apply_thresholds(label, confidence, theta).shape == shape
    assert apply_thresholds_reference(label, confidence, theta).shape == shape


def test_no_class(backend: Backend) -> None:
    label = torch.zeros(1, 2, 3, dtype=torch.uint8, device=backend.device)
    out = apply_thresholds(label, label.float(), torch.zeros(0, device=backend.device), ignore_index=7)
    assert (out == 7).all()


def test_opcheck() -> None:
    label, confidence = scene(2, 5, 7, torch.float16)
    torch.library.opcheck(torch.ops.vda.apply_thresholds, (label, confidence, torch.rand(3), "paper", 255))


def test_numpy_in_numpy_out() -> None:
    label, confidence = scene(1, 4, 6, torch.float32)
    theta = torch.tensor([0.5, 0.25, 0.875])
    found = apply_thresholds(label.numpy(), confidence.numpy(), theta.numpy())
    assert np.array_equal(found, apply_thresholds(label, confidence, theta).numpy())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"label": torch.zeros(4, 5, dtype=torch.uint8)}, ValueError, r"label: wanted shape \[B, H, W\], got \[4, 5\]"),
        ({"label": torch.zeros(1, 4, 5)}, TypeError, "label: wanted element type uint8, got float32"),
        ({"confidence": torch.zeros(1, 4, 6)}, ValueError, r"confidence: wanted shape \[1, 4, 5\], got \[1, 4, 6\]"),
        ({"confidence": torch.zeros(1, 4, 5).double()}, TypeError, "confidence: wanted element type .* got float64"),
        ({"theta": torch.zeros(2, 3)}, ValueError, r"theta: wanted shape \[1, K\], got \[2, 3\]"),
        ({"theta": torch.zeros(3).half()}, TypeError, "theta: wanted element type float32, float64, got float16"),
        ({"theta": torch.zeros(256)}, ValueError, "theta: wanted at most 255 classes, got 256"),
        ({"theta": torch.zeros(3, device="meta")}, ValueError, "theta: wanted device cpu .* got meta"),
        ({"rule": "cbst"}, ValueError, "rule: wanted 'paper' or 'iast' or 'portion', got 'cbst'"),
        ({"ignore_index": 256}, ValueError, r"ignore_index: wanted 0 .. 255, got 256"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {
        "label": torch.zeros(1, 4, 5, dtype=torch.uint8),
        "confidence": torch.zeros(1, 4, 5),
        "theta": torch.zeros(3),
    } | change
    with pytest.raises(error, match=message):
        apply_thresholds(**arguments)
