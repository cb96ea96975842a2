r"""Pseudo labels from predictions, the last line of Algorithm 1.

    out(p) = label(p) if confidence(p) > theta[label(p)], else ignore              rules "iast" and "portion": >=

Not differentiable: labels are integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _lib
from .thresholds import RULES


def apply_thresholds_reference(
    label: Tensor, confidence: Tensor, theta: Tensor, *, rule: str = "paper", ignore_index: int = 255
) -> Tensor:
    """Plain-torch `apply_thresholds`: same signature, same results, any device."""
    K = theta.shape[-1]
    rows = theta.float().expand(len(label), K)
    bar = rows.gather(1, label.flatten(1).long().clamp(max=max(K - 1, 0))) if K and label.numel() else None
    if bar is None:
        return torch.full_like(label, ignore_index)
    bar = bar.view_as(label)
    passes = confidence.float() > bar if rule == "paper" else confidence.float() >= bar
    return torch.where(passes & (label < K), label, ignore_index)


@_lib.arrays
def apply_thresholds(
    label: Tensor, confidence: Tensor, theta: Tensor, *, rule: str = "paper", ignore_index: int = 255
) -> Tensor:
    """Keep the labels whose confidence passes the threshold of their class.

    Args:
        label: [B, H, W] uint8, predicted classes; what is no class (>= K) is never kept.
        confidence: [B, H, W], float32, float16 or bfloat16; NaN is never kept.
        theta: [K], or [B, K] with a row per frame; float32 or float64, K at most 255. Compared in float32.
        rule: "paper" keeps confidence > theta, "iast" and "portion" confidence >= theta. They differ where confidences
            are saturated.
        ignore_index: the value, 0 .. 255, of what is not kept.

    Returns:
        [B, H, W] uint8, contiguous.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found.
    """
    _lib.check_planes(label, "label", (torch.uint8,), ("B", "H", "W"))
    _lib.check_planes(confidence, "confidence", _lib.FLOAT, label.shape)
    check_theta(theta, "theta", len(label))
    _lib.check_option(rule, "rule", RULES)
    check_ignore_index(ignore_index)
    _lib.check_devices(label=label, confidence=confidence, theta=theta)
    _lib.refuse_gradient(confidence=confidence, theta=theta)
    if _lib.use_reference(label):
        return apply_thresholds_reference(label, confidence, theta, rule=rule, ignore_index=ignore_index)
    return _apply_thresholds_op(label, confidence, theta, rule, ignore_index)


def check_theta(theta: object, name: str, batch: int) -> None:
    """Raise unless theta is [K] or [batch, K] with K at most 255."""
    two = isinstance(theta, Tensor) and theta.dim() == 2
    _lib.check(theta, name, (torch.float32, torch.float64), (batch, "K") if two else ("K",))
    assert isinstance(theta, Tensor)
    if theta.shape[-1] > 255:
        raise ValueError(f"{name}: wanted at most 255 classes, got {theta.shape[-1]}")


def check_ignore_index(ignore_index: int) -> None:
    """Raise unless it is an int that fits a byte."""
    _lib.check_number(ignore_index, "ignore_index", "an int")
    if not 0 <= ignore_index <= 255:
        raise ValueError(f"ignore_index: wanted 0 .. 255, got {ignore_index}")


# ---- torch.ops.vda.apply_thresholds ----


def theta_rows(theta: Tensor) -> Tensor:
    """theta as the kernels take it: [B or 1, K] float32, rows contiguous; one row is shared (stride 0)."""
    if theta.dim() == 2:
        return theta.float().contiguous()
    return theta.float().contiguous().as_strided((1, theta.shape[0]), (0, 1))


def _apply_thresholds(label: Tensor, confidence: Tensor, theta: Tensor, rule: str, ignore_index: int) -> Tensor:
    out = _lib.empty(label)
    B, H, W = label.shape
    _lib.call(
        "apply_thresholds",
        label,
        label=label,
        confidence=confidence,
        theta=theta_rows(theta),
        out=out,
        batch=B,
        height=H,
        width=W,
        classes=theta.shape[-1],
        ignore=ignore_index,
        inclusive=rule != "paper",
    )
    return out


def _apply_thresholds_fake(label: Tensor, confidence: Tensor, theta: Tensor, rule: str, ignore_index: int) -> Tensor:
    return _lib.empty(label)


_apply_thresholds_op = _lib.define(
    "apply_thresholds(Tensor label, Tensor confidence, Tensor theta, str rule, int ignore_index) -> Tensor",
    _apply_thresholds,
    _apply_thresholds_fake,
)
