r"""Temporal consensus: refine pseudo labels with those of another frame, brought over by optical flow.

    w(p) = reference(p + flow(p))                nearest pixel, ignore where there is none
    strict   RF(p) = label(p) if label(p) = w(p), else ignore                                            Eq. 13
    lenient  RF(p) = ignore if both are labelled and differ, else label(p)
    fill_in  RF(p) = label(p) if labelled, else w(p) where visible, else ignore                          Eq. 14

With `Predictions` both maps are predictions, and "labelled" means that the confidence passes the threshold. Not
differentiable: labels are integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _lib
from .apply_thresholds import apply_thresholds_reference, check_ignore_index, check_theta, theta_rows
from .thresholds import RULES
from .warp import warp_reference

MODES = ("strict", "lenient", "fill_in")


@dataclass(frozen=True)
class Predictions:
    """What `consensus` needs to take the thresholds of both maps on the fly; rule as in `apply_thresholds`."""

    confidence: Tensor  # [B, H, W] float32, float16 or bfloat16, of label
    reference_confidence: Tensor  # like confidence, of reference
    theta: Tensor  # [K], or [B, K] with a row per frame; float32 or float64
    reference_theta: Tensor | None = None  # likewise, of the reference's frames; default theta
    rule: str = "paper"


def consensus_reference(
    label: Tensor,
    reference: Tensor,
    flow: Tensor,
    *,
    mode: str = "strict",
    ignore_index: int = 255,
    visible: Tensor | None = None,
    predictions: Predictions | None = None,
) -> Tensor:
    """Plain-torch `consensus`: same signature, same results, any device."""
    if predictions is not None:
        theta, rule = predictions.theta, predictions.rule
        label = apply_thresholds_reference(label, predictions.confidence, theta, rule=rule, ignore_index=ignore_index)
        theta = theta if predictions.reference_theta is None else predictions.reference_theta
        reference = apply_thresholds_reference(
            reference, predictions.reference_confidence, theta, rule=rule, ignore_index=ignore_index
        )
    warped = warp_reference(reference, flow, mode="nearest", fill=ignore_index)
    if mode == "fill_in":
        empty = label == ignore_index
        return torch.where(empty if visible is None else empty & visible, warped, label)
    keep = label == warped
    if mode == "lenient":
        keep |= warped == ignore_index
    return torch.where(keep, label, ignore_index)


@_lib.arrays
def consensus(
    label: Tensor,
    reference: Tensor,
    flow: Tensor,
    *,
    mode: str = "strict",
    ignore_index: int = 255,
    visible: Tensor | None = None,
    predictions: Predictions | None = None,
) -> Tensor:
    """Refine the labels of one frame by those of another (RF of Eq. 12).

    Args:
        label: [B, H, W] uint8, the labels to refine.
        reference: [B, H, W] uint8, the labels of the other frame.
        flow: [B, 2, H, W] from label's frame to the reference's, in pixels (u right, v down); types as in `warp`,
            positions are computed in float32.
        mode: "strict" keeps a label only if the reference says the same (Eq. 13: an unlabelled reference cuts it
            out), "lenient" drops a label only if the reference contradicts it, "fill_in" keeps every label and
            copies the reference's where there is none (Eq. 14).
        ignore_index: the value, 0 .. 255, that means "no label".
        visible: [B, H, W] bool, where "fill_in" may copy (I of Eq. 14, see `warp_occlusion`); default everywhere.
        predictions: with it, label and reference are predictions, and what `apply_thresholds` would keep of them is
            found on the fly, in the same pass.

    Returns:
        [B, H, W] uint8. Where the flow is not finite or its nearest pixel (ties to even) lies outside the frame,
        the reference counts as unlabelled.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found.
    """
    _lib.check_option(mode, "mode", MODES)
    _lib.check_planes(label, "label", (torch.uint8,), ("B", "H", "W"))
    _lib.check_planes(reference, "reference", (torch.uint8,), label.shape)
    _lib.check_planes(flow, "flow", _lib.FLOW, (label.shape[0], 2, *label.shape[1:]))
    if visible is not None:
        if mode != "fill_in":
            raise ValueError(f"visible: wanted None unless mode is 'fill_in', got a tensor with mode {mode!r}")
        _lib.check_planes(visible, "visible", (torch.bool,), label.shape)
    check_ignore_index(ignore_index)
    _lib.check_devices(label=label, reference=reference, flow=flow, visible=visible)
    _lib.refuse_gradient(flow=flow)
    if predictions is not None:
        _check_predictions(predictions, label)
    if _lib.use_reference(label):
        return consensus_reference(
            label,
            reference,
            flow,
            mode=mode,
            ignore_index=ignore_index,
            visible=visible,
            predictions=predictions,
        )
    if predictions is None:
        return _consensus_op(label, reference, flow, visible, mode, ignore_index, None, None, None, None, "")
    theta = predictions.theta
    return _consensus_op(
        label,
        reference,
        flow,
        visible,
        mode,
        ignore_index,
        predictions.confidence,
        predictions.reference_confidence,
        theta,
        theta if predictions.reference_theta is None else predictions.reference_theta,
        predictions.rule,
    )


def _check_predictions(predictions: Predictions, label: Tensor) -> None:
    if not isinstance(predictions, Predictions):
        raise TypeError(f"predictions: wanted Predictions, got {type(predictions).__name__}")
    confidence, other = predictions.confidence, predictions.reference_confidence
    _lib.check_planes(confidence, "predictions.confidence", _lib.FLOAT, label.shape)
    _lib.check_planes(other, "predictions.reference_confidence", (confidence.dtype,), label.shape)
    thetas = {"predictions.theta": predictions.theta}
    check_theta(predictions.theta, "predictions.theta", len(label))
    if predictions.reference_theta is not None:
        thetas["predictions.reference_theta"] = predictions.reference_theta
        check_theta(predictions.reference_theta, "predictions.reference_theta", len(label))
        K, got = predictions.theta.shape[-1], predictions.reference_theta.shape[-1]
        if got != K:
            raise ValueError(f"predictions.reference_theta: wanted {K} classes, got {got}")
    _lib.check_option(predictions.rule, "predictions.rule", RULES)
    tensors = {
        "predictions.confidence": confidence,
        "predictions.reference_confidence": other,
        **thetas,
    }
    _lib.check_devices(label=label, **tensors)
    _lib.refuse_gradient(**tensors)


# ---- torch.ops.vda.consensus ----


def _consensus(
    label: Tensor,
    reference: Tensor,
    flow: Tensor,
    visible: Tensor | None,
    mode: str,
    ignore_index: int,
    confidence: Tensor | None,
    reference_confidence: Tensor | None,
    theta: Tensor | None,
    reference_theta: Tensor | None,
    rule: str,
) -> Tensor:
    out = _lib.empty(label)
    B, H, W = label.shape
    _lib.call(
        "consensus",
        label,
        label=label,
        reference=reference,
        visible=visible,
        flow=flow,
        out=out,
        batch=B,
        height=H,
        width=W,
        ignore=ignore_index,
        mode=mode,
        confidence=confidence,
        reference_confidence=reference_confidence,
        theta=None if theta is None else theta_rows(theta),
        reference_theta=None if reference_theta is None else theta_rows(reference_theta),
        classes=0 if theta is None else theta.shape[-1],
        inclusive=rule != "paper",
    )
    return out


def _consensus_fake(label: Tensor, *_: object) -> Tensor:
    return _lib.empty(label)


_consensus_op = _lib.define(
    "consensus(Tensor label, Tensor reference, Tensor flow, Tensor? visible, str mode, int ignore_index, "
    "Tensor? confidence, Tensor? reference_confidence, Tensor? theta, Tensor? reference_theta, str rule) -> Tensor",
    _consensus,
    _consensus_fake,
)
