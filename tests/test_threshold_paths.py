"""class_thresholds where the fast CUDA kernels go their own ways: saturated, many, misaligned, every fp16 pattern."""

from __future__ import annotations

import pytest
import torch
from conftest import Backend, exactly, misaligned
from test_thresholds import _scene, _sorting

from vda.ops import ClassThresholds, class_thresholds
from vda.ops.thresholds import RULES


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saturated(backend: Backend, dtype: torch.dtype, rule: str) -> None:
    """Nearly all at exactly 1 in patches of one class: one cell takes them, and several ranks select one key."""
    confidence, _ = _scene((2, 60, 60), 4, dtype, saturated=0.9)
    label = torch.randint(0, 4, (2, 4, 4), dtype=torch.uint8).repeat_interleave(15, 1).repeat_interleave(15, 2)
    theta = torch.tensor([0.9, 0.99, 0.5, 0.7], dtype=torch.float64)
    given = [x.to(backend.device) for x in (confidence, label, theta)]
    for alpha in (0.05, 0.999):
        arguments = {"alpha": alpha, "gamma": 8.0, "rule": rule}
        got = exactly(lambda a=arguments: class_thresholds(*given, **a)).cpu()
        torch.testing.assert_close(got, _sorting(confidence, label, theta, **arguments), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("K", "dtype", "rule"),
    [
        (1, torch.float16, "iast"),
        (19, torch.float16, "paper"),
        (7, torch.bfloat16, "iast"),
        (1, torch.float32, "iast"),
        (40, torch.float32, "paper"),
        (23, torch.bfloat16, "portion"),
    ],
)
def test_many_classes_and_pixels(backend: Backend, K: int, dtype: torch.dtype, rule: str) -> None:
    """More pixels than two blocks count in one step, and bins that are and are not held in shared memory."""
    confidence, label = _scene((50_021,), K, dtype)
    theta = 0.3 + 0.7 * torch.rand(K, dtype=torch.float64)
    given = [x.to(backend.device) for x in (confidence, label, theta)]
    expected = _sorting(confidence, label, theta, rule=rule)
    got = exactly(lambda: class_thresholds(*given, rule=rule)).cpu()
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
    shifted = class_thresholds(misaligned(given[0]), misaligned(given[1]), given[2], rule=rule).cpu()
    assert torch.equal(shifted, got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_as_many_classes_as_there_can_be(backend: Backend, dtype: torch.dtype) -> None:
    """255: few bins of each are held in shared memory."""
    confidence, label = _scene((20_003,), 255, dtype)
    stream = ClassThresholds(255, device=backend.device)
    stream.update(confidence.to(backend.device), label.to(backend.device))
    valid = (confidence >= 0) & (label < 255)
    keys = confidence[valid].half().abs().clamp(max=1).view(torch.int16).long()
    counts = torch.bincount(label[valid].long() * 0x3C01 + keys, minlength=255 * 0x3C01)
    assert torch.equal(stream.histogram.flatten().cpu(), counts)


def test_every_pattern_is_counted_in_its_bin(backend: Backend) -> None:
    """All of fp16, whose keys are the bits themselves, alone, in pairs and beside what has to be skipped."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    confidence = torch.cat([bits, bits.flip(0), bits.view(2, -1).T.flatten()]).view(torch.float16)
    label = torch.arange(confidence.numel()).remainder(7).to(torch.uint8)
    stream = ClassThresholds(6, device=backend.device)
    stream.update(confidence.to(backend.device), label.to(backend.device))
    valid = (confidence >= 0) & (label < 6)  # -0 is, NaN is not
    cells = label[valid].long() * 0x3C01 + confidence[valid].abs().clamp(max=1).view(torch.int16).long()
    assert torch.equal(stream.histogram.flatten().cpu(), torch.bincount(cells, minlength=6 * 0x3C01))
