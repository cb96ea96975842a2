r"""Backward warp by optical flow, and the warp with the photometric occlusion test.

    out(p) = image(p + flow(p))                                                  W_{j => i} of Eq. 10, 13, 14
    visible(p) = [ p + flow(p) inside the frame and exp(-alpha e(p)) > threshold ],  e = || frame - out ||_2

Positions are pixels, pixel centres are integers, flow channel 0 is u (to the right) and channel 1 is v (down).
Frame j is brought onto frame i with the flow from i to j. Differentiable: image and flow of `warp`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _lib

_NOWHERE = 2.0**24  # a float no longer tells neighbouring pixels apart; kNowhere of csrc/sampling.h
_LABELS = (torch.uint8, torch.int32, torch.int64)


# ---- reference ----


def positions(flow: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, y [B, H, W] of every pixel plus its flow, in dtype, and where both are usable; 0 where they are not."""
    H, W = flow.shape[-2:]
    flow = (flow.float() / 10 if flow.dtype == torch.int16 else flow).to(dtype)
    x = torch.arange(W, device=flow.device, dtype=dtype) + flow[:, 0]
    y = torch.arange(H, device=flow.device, dtype=dtype)[:, None] + flow[:, 1]
    usable = (x.abs() <= _NOWHERE) & (y.abs() <= _NOWHERE)
    return torch.where(usable, x, 0), torch.where(usable, y, 0), usable


def gather_pixels(image: Tensor, x: Tensor, y: Tensor, border: bool) -> tuple[Tensor, Tensor]:
    """image [B, C, H, W] at integer x, y [B, H, W]: values [B, C, H, W] and whether there is a pixel [B, 1, H, W]."""
    B, C, H, W = image.shape
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H) | border
    index = (y.clamp(0, H - 1) * W + x.clamp(0, W - 1)).long()
    values = image.flatten(2).gather(2, index.flatten(1)[:, None].expand(B, C, -1)).view_as(image)
    return values, inside[:, None]


def warp_reference(
    image: Tensor, flow: Tensor, *, mode: str = "bilinear", padding: str = "zeros", fill: float = 0
) -> Tensor:
    """Plain-torch `warp`: same signature, same results, any device, differentiable by torch itself."""
    if image.dim() == 3:
        return warp_reference(image[:, None], flow, mode=mode, padding=padding, fill=fill)[:, 0]
    if image.numel() == 0:
        return image.clone()
    border = padding == "border"
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    x, y, usable = positions(flow, dtype)
    if mode == "nearest":
        values, inside = gather_pixels(image, x.round(), y.round(), border)
        return torch.where(inside & usable[:, None], values, torch.as_tensor(fill, dtype=image.dtype))
    left, top = x.floor(), y.floor()
    a, b = (x - left)[:, None], (y - top)[:, None]
    out = torch.zeros(image.shape, dtype=dtype, device=image.device)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        values, inside = gather_pixels(image.to(dtype), left.detach() + dx, top.detach() + dy, border)
        weight = (a if dx else 1 - a) * (b if dy else 1 - b)
        out = out + weight * torch.where(inside, values, 0)
    return torch.where(usable[:, None], out, 0).to(image.dtype)


def squared_limit(alpha: float, threshold: float, squared: bool) -> float:
    """The squared colour distance below which exp(-alpha e) > threshold, e the distance or, if squared, its square.

    Solved once in double precision, so that a pixel costs no exp and no root. Infinite where every finite error
    passes.
    """
    _lib.check_number(alpha, "alpha")
    _lib.check_number(threshold, "threshold")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha: wanted a finite number >= 0, got {alpha}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: wanted a number in [0, 1], got {threshold}")
    if threshold == 1:
        return 0.0
    if threshold == 0 or alpha == 0:
        return math.inf
    limit = -math.log(threshold) / alpha
    return limit if squared else limit * limit


def warp_occlusion_reference(
    frame: Tensor, neighbour: Tensor, flow: Tensor, *, alpha: float, threshold: float = 0.7, squared: bool = False
) -> tuple[Tensor, Tensor]:
    """Plain-torch `warp_occlusion`: same signature, same results, any device."""
    limit = squared_limit(alpha, threshold, squared)
    dtype = torch.float64 if frame.dtype == torch.float64 else torch.float32
    warped = warp_reference(neighbour.detach().to(dtype), flow.detach())
    error = (frame.detach().to(dtype) - warped).square().sum(1).to(torch.float64)
    H, W = frame.shape[-2:]
    x, y, usable = positions(flow.detach(), dtype)
    inside = usable & (x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1)
    return warped.to(frame.dtype), inside & (error < limit)


# ---- checks and calls ----


@_lib.arrays
def warp(image: Tensor, flow: Tensor, *, mode: str = "bilinear", padding: str = "zeros", fill: float = 0) -> Tensor:
    """Sample image at p + flow(p).

    Args:
        image: [B, C, H, W], float32, float16, bfloat16 or float64, any strides. With mode "nearest" also label
            maps [B, H, W] of uint8, int32 or int64.
        flow: [B, 2, H, W] in pixels (u right, v down), float32, float16 or bfloat16; int16 in tenths of a pixel; also
            float64 with a float64 image. Positions are computed in float32 (float64 with a float64 image), whatever
            the flow is stored in; autocast does not change that.
        mode: "bilinear", or "nearest" with ties to the even coordinate (as grid_sample).
        padding: "zeros": every tap outside the frame counts as 0 (grid_sample's zeros, align_corners=True).
            "border": taps clamp to the edge (FlowNet2's Resample2d).
        fill: with "nearest" and "zeros", the value where there is no pixel; label maps usually want 255.

    Returns:
        Like image, contiguous. 0 (or fill), never an exception, where the position is not finite or further than
        2^24 pixels out, in both padding modes.

    Gradients reach image and flow (the flow's is 0 with "nearest"). On CUDA the image gradient is a sum of float
    atomics in no fixed order, or, under `torch.use_deterministic_algorithms`, an order-free fixed-point sum.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found.
    """
    _check_warp(image, flow, mode, padding, fill)
    if _lib.use_reference(image):
        return warp_reference(image, flow, mode=mode, padding=padding, fill=fill)
    if image.dim() == 3:
        return _warp_op(image[:, None], flow, mode, padding, fill)[:, 0]
    return _warp_op(image, flow, mode, padding, fill)


@_lib.arrays
def warp_occlusion(
    frame: Tensor, neighbour: Tensor, flow: Tensor, *, alpha: float, threshold: float = 0.7, squared: bool = False
) -> tuple[Tensor, Tensor]:
    """Bring a neighbour onto a frame and tell where it shows the same thing (the map I of Eq. 10).

    Args:
        frame: [B, C, H, W], float32, float16, bfloat16 or float64.
        neighbour: like frame.
        flow: [B, 2, H, W] from frame to neighbour, in pixels; types as in `warp`.
        alpha: decay of exp(-alpha e). It belongs to the colour range and the norm: the paper gives neither. 1 with
            ImageNet-normalised colours; 4.22 with colours in [0, 1]; 50 with colours in [0, 1] and squared=True
            are about the same test.
        threshold: visible where exp(-alpha e) > threshold, strictly.
        squared: e is the squared distance instead of the distance.

    Returns:
        warped: [B, C, H, W], `warp(neighbour, flow)`.
        visible: [B, H, W] bool. False where the position leaves [0, W-1] x [0, H-1] or is not finite, whatever
            the colours: a dark scene would otherwise match the zeros outside.

    Not differentiable: visible is a decision, and the warped frame serves only to take it. Use it under
    `torch.no_grad()` or on detached tensors.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found.
    """
    _check_float_image(frame, "frame")
    _lib.check_planes(neighbour, "neighbour", (frame.dtype,), frame.shape)
    _check_flow(flow, frame)
    _lib.check_devices(frame=frame, neighbour=neighbour, flow=flow)
    _lib.refuse_gradient(frame=frame, neighbour=neighbour, flow=flow)
    limit = squared_limit(alpha, threshold, squared)
    if _lib.use_reference(frame):
        return warp_occlusion_reference(frame, neighbour, flow, alpha=alpha, threshold=threshold, squared=squared)
    return _warp_occlusion_op(frame, neighbour, flow, limit)


def _check_float_image(image: Tensor, name: str) -> None:
    _lib.check_planes(image, name, _lib.FLOAT_AND_DOUBLE, ("B", "C", "H", "W"))


def _check_flow(flow: Tensor, image: Tensor) -> None:
    types = (*_lib.FLOW, torch.float64) if image.dtype == torch.float64 else _lib.FLOW
    _lib.check_planes(flow, "flow", types, (image.shape[0], 2, *image.shape[-2:]))


def _check_warp(image: Tensor, flow: Tensor, mode: str, padding: str, fill: float) -> None:
    _lib.check_option(mode, "mode", ("bilinear", "nearest"))
    _lib.check_option(padding, "padding", ("zeros", "border"))
    _lib.check_number(fill, "fill")
    if mode == "nearest" and isinstance(image, Tensor) and image.dtype in _LABELS:
        _lib.check_planes(image, "image", _LABELS, ("B", "H", "W"))
        range_ = torch.iinfo(image.dtype)
        if not range_.min <= fill <= range_.max or fill != int(fill):
            raise ValueError(f"fill: wanted an integer that {str(image.dtype)[6:]} can hold, got {fill}")
    else:
        _check_float_image(image, "image")
    if fill != 0 and (mode, padding) != ("nearest", "zeros"):
        raise ValueError(f"fill: wanted 0 unless mode is 'nearest' and padding 'zeros', got {fill}")
    _check_flow(flow, image)
    _lib.check_devices(image=image, flow=flow)
    if not image.is_floating_point():
        _lib.refuse_gradient(flow=flow)


def _sizes(image: Tensor) -> dict[str, int]:
    B, C, H, W = image.shape
    return {"batch": B, "channels": C, "height": H, "width": W}


# ---- torch.ops.vda.warp ----


def _warp(image: Tensor, flow: Tensor, mode: str, padding: str, fill: float) -> Tensor:
    out = _lib.empty(image)
    members = {"image": image, "flow": flow, "out": out, "padding": padding, **_sizes(image)}
    if mode == "bilinear":
        _lib.call("warp", image, dtype=_lib.dtype_name(image), **members)
    else:
        bits = torch.tensor([fill], dtype=image.dtype).view(torch.uint8).tolist() if fill else []
        _lib.call(
            "warp_nearest",
            image,
            element_size=image.element_size(),
            double_flow=image.dtype == torch.float64,
            fill=int.from_bytes(bits, "little"),
            **members,
        )
    return out


def _warp_fake(image: Tensor, flow: Tensor, mode: str, padding: str, fill: float) -> Tensor:
    return _lib.empty(image)


def _fixed_point_scale(grad: Tensor) -> Tensor:
    """The power of two that lets any sum of grad's elements over one plane fit 63 bits; NaN if one is not finite."""
    H, W = grad.shape[-2:]
    largest = grad.abs().amax().double()
    bits = 61 - largest.log2().ceil().clamp(min=-900) - math.ceil(math.log2(H * W))
    return torch.where(largest.isfinite(), torch.exp2(bits), math.nan)


def _warp_backward(
    grad: Tensor, image: Tensor, flow: Tensor, mode: str, padding: str, need_image: bool, need_flow: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of image and flow; an empty tensor for the one that is not needed."""
    accumulate = torch.float64 if image.dtype == torch.float64 else torch.float32
    fixed = need_image and grad.numel() > 0 and _lib.on_cuda(grad) and torch.are_deterministic_algorithms_enabled()
    sums = scale = grad_image = grad_flow = None
    if fixed:
        sums = grad.new_zeros(image.shape, dtype=torch.int64)
        scale = _fixed_point_scale(grad)
    elif need_image:
        grad_image = grad.new_zeros(image.shape, dtype=accumulate)
    if need_flow:
        grad_flow = grad.new_empty(flow.shape, dtype=accumulate)
    _lib.call(
        "warp_backward",
        grad,
        grad_out=grad,
        image=image,
        flow=flow,
        grad_image=grad_image,
        grad_flow=grad_flow,
        fixed_point=sums,
        scale=scale,
        dtype=_lib.dtype_name(image),
        mode=mode,
        padding=padding,
        **_sizes(image),
    )
    if sums is not None and scale is not None:
        grad_image = sums.double() / scale
    return (
        image.new_empty(0) if grad_image is None else grad_image.to(image.dtype),
        flow.new_empty(0) if grad_flow is None else grad_flow.to(flow.dtype),
    )


def _warp_backward_fake(
    grad: Tensor, image: Tensor, flow: Tensor, mode: str, padding: str, need_image: bool, need_flow: bool
) -> tuple[Tensor, Tensor]:
    return (
        image.new_empty(image.shape if need_image else 0),
        flow.new_empty(flow.shape if need_flow else 0),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    image, flow, ctx.mode, ctx.padding, _ = inputs
    ctx.save_for_backward(image, flow)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    need_image, need_flow = ctx.needs_input_grad[:2]
    grad_image, grad_flow = _warp_backward_op(grad, *ctx.saved_tensors, ctx.mode, ctx.padding, need_image, need_flow)
    return grad_image if need_image else None, grad_flow if need_flow else None, None, None, None


# ---- torch.ops.vda.warp_occlusion ----


def _warp_occlusion(frame: Tensor, neighbour: Tensor, flow: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    warped, visible = _warp_occlusion_fake(frame, neighbour, flow, limit)
    _lib.call(
        "warp_occlusion",
        frame,
        frame=frame,
        neighbour=neighbour,
        flow=flow,
        out=warped,
        visible=visible,
        dtype=_lib.dtype_name(frame),
        limit=limit,
        **_sizes(frame),
    )
    return warped, visible


def _warp_occlusion_fake(frame: Tensor, neighbour: Tensor, flow: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    B, _, H, W = frame.shape
    return _lib.empty(frame), _lib.empty(frame, (B, H, W), torch.bool)


_warp_op = _lib.define(
    "warp(Tensor image, Tensor flow, str mode, str padding, float fill) -> Tensor",
    _warp,
    _warp_fake,
    _backward,
    _setup_context,
)
_warp_backward_op = _lib.define(
    "warp_backward(Tensor grad, Tensor image, Tensor flow, str mode, str padding, bool need_image, "
    "bool need_flow) -> (Tensor, Tensor)",
    _warp_backward,
    _warp_backward_fake,
)
_warp_occlusion_op = _lib.define(
    "warp_occlusion(Tensor frame, Tensor neighbour, Tensor flow, float limit) -> (Tensor, Tensor)",
    _warp_occlusion,
    _warp_occlusion_fake,
)
