r"""Temporal consensus: refine pseudo labels with those of another frame, brought over by optical flow.

    w(p) = reference(p + flow(p))                nearest pixel, ignore where there is none
    strict   RF(p) = label(p) if label(p) = w(p), else ignore                                            Eq. 13
    lenient  RF(p) = ignore if both are labelled and differ, else label(p)
    fill_in  RF(p) = label(p) if labelled, else w(p) where visible, else ignore                          Eq. 14

Not differentiable: labels are integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _lib
from .warp import warp_reference

MODES = ("strict", "lenient", "fill_in")


def consensus_reference(
    label: Tensor,
    reference: Tensor,
    flow: Tensor,
    *,
    mode: str = "strict",
    ignore_index: int = 255,
    visible: Tensor | None = None,
) -> Tensor:
    """Plain-torch `consensus`: same signature, same results, any device."""
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
) -> Tensor:
    """Refine the labels of one frame by those of another (RF of Eq. 12).

    Args:
        label: [B, H, W] uint8, the labels to refine.
        reference: [B, H, W] uint8, the labels of the other frame.
        flow: [B, 2, H, W] from label's frame to the reference's, in pixels (u right, v down), float32, float16 or
            bfloat16; positions are computed in float32.
        mode: "strict" keeps a label only if the reference says the same (Eq. 13: an unlabelled reference cuts it
            out), "lenient" drops a label only if the reference contradicts it, "fill_in" keeps every label and
            copies the reference's where there is none (Eq. 14).
        ignore_index: the value, 0 .. 255, that means "no label".
        visible: [B, H, W] bool, where "fill_in" may copy (I of Eq. 14, see `warp_occlusion`); default everywhere.

    Returns:
        [B, H, W] uint8. Where the flow is not finite or its nearest pixel (ties to even) lies outside the frame,
        the reference counts as unlabelled.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found.
    """
    _lib.check_option(mode, "mode", MODES)
    _lib.check(label, "label", (torch.uint8,), ("B", "H", "W"))
    _lib.check(reference, "reference", (torch.uint8,), label.shape)
    _lib.check(flow, "flow", _lib.FLOAT, (label.shape[0], 2, *label.shape[1:]))
    if visible is not None:
        if mode != "fill_in":
            raise ValueError(f"visible: wanted None unless mode is 'fill_in', got a tensor with mode {mode!r}")
        _lib.check(visible, "visible", (torch.bool,), label.shape)
    if not 0 <= ignore_index <= 255:
        raise ValueError(f"ignore_index: wanted 0 .. 255, got {ignore_index}")
    _lib.check_devices(label=label, reference=reference, flow=flow, visible=visible)
    flow = flow.detach()
    if _lib.use_reference(label):
        return consensus_reference(label, reference, flow, mode=mode, ignore_index=ignore_index, visible=visible)
    return torch.ops.vda.consensus(label, reference, flow, visible, mode, ignore_index)


def _consensus(
    label: Tensor, reference: Tensor, flow: Tensor, visible: Tensor | None, mode: str, ignore_index: int
) -> Tensor:
    out = label.new_empty(label.shape)
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
    )
    return out


def _consensus_fake(
    label: Tensor, reference: Tensor, flow: Tensor, visible: Tensor | None, mode: str, ignore_index: int
) -> Tensor:
    return label.new_empty(label.shape)


_lib.define(
    "consensus(Tensor label, Tensor reference, Tensor flow, Tensor? visible, str mode, int ignore_index) -> Tensor",
    _consensus,
    _consensus_fake,
)
