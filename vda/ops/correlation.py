r"""Correlation (cost volume) of two feature maps, as in FlowNet2.

    out[b, (j + R) D + (i + R), y, x] = scale sum_c f1[b, c, y, x] f2[b, c, y + j s, x + i s],   j, i in [-R, R]

with s = stride, R = floor(max_displacement / s), D = 2 R + 1, scale = 1/C and f2 = 0 outside the frame: dy outer, dx
inner, the divisor the same at the border. Kernel size 1, output stride 1, padding = max_displacement. The largest
entry of a pixel estimates the flow from the first frame to the second. With g = grad_out and d = (dy, dx):

    grad_f1(p) = scale sum_d g_d(p) f2(p + d)        grad_f2(p) = scale sum_d g_d(p - d) f1(p - d)

Both are gathers: no atomics, the same bits on every run. Differentiable: f1 and f2, once.

On GPUs from compute capability 8.0 on, float16 and bfloat16 run on tensor cores, and float32 where torch lets matrix
products use TF32 (`torch.backends.cuda.matmul.fp32_precision`); otherwise float32 is exact. Channels-last maps whose
pixels are aligned to 16 bytes are read where they lie, others are transposed first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _lib

_MOST = 1 << 14  # D * D and positions a few strides outside the frame still fit 32 bits

# ---- reference ----


def correlation_reference(
    f1: Tensor,
    f2: Tensor,
    *,
    max_displacement: int = 20,
    stride: int = 2,
    scale: float | None = None,
    negative_slope: float = 1.0,
) -> Tensor:
    """Plain-torch `correlation`: same signature, same results, any device, differentiable by torch itself."""
    H, W = f1.shape[-2:]
    steps = range(2 * (max_displacement // stride) + 1)
    margin = max_displacement // stride * stride
    dtype = torch.float64 if f1.dtype == torch.float64 else torch.float32
    a, b = f1.to(dtype), F.pad(f2.to(dtype), (margin,) * 4)
    planes = [
        (a * b[..., j * stride : j * stride + H, i * stride : i * stride + W]).sum(1) for j in steps for i in steps
    ]
    out = torch.stack(planes, 1) * (1 / f1.shape[1] if scale is None else scale)
    return F.leaky_relu(out, negative_slope).to(f1.dtype)


# ---- checks and call ----


@_lib.arrays
def correlation(
    f1: Tensor,
    f2: Tensor,
    *,
    max_displacement: int = 20,
    stride: int = 2,
    scale: float | None = None,
    negative_slope: float = 1.0,
) -> Tensor:
    """Mean over channels of f1(p) f2(p + d), for every displacement d of a square grid.

    Args:
        f1: [B, C, H, W] features of the first frame, float32, float16, bfloat16 or float64, any strides
            (channels-last and expanded included).
        f2: like f1, of the second frame.
        max_displacement: largest |dx| and |dy|, in pixels of the feature map; 1 to 16384.
        stride: pixels between neighbouring displacements; 1 to 16384.
        scale: factor of the sum over channels; default 1/C, the mean. (1 is the plain sum of
            spatial-correlation-sampler and mmcv, C**-0.5 the scale of RAFT.)
        negative_slope: of a LeakyReLU applied to the result on the way out, in (0, 1]; 1 is none, FlowNetC has 0.1.

    Returns:
        [B, D*D, H, W], element type of f1, contiguous; D = 2 * (max_displacement // stride) + 1. Sums are float32
        for the 16-bit types. FlowNetC: 441 channels, 220 is the zero displacement.

    Under autocast the features are cast to its 16-bit type, as for a matrix product.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found.
    """
    f1, f2 = _lib.autocast(f1, f2)
    _check(f1, f2, max_displacement, stride)
    _check_numbers(scale, negative_slope)
    if _lib.use_reference(f1):
        return correlation_reference(
            f1,
            f2,
            max_displacement=max_displacement,
            stride=stride,
            scale=scale,
            negative_slope=negative_slope,
        )
    scale = 1 / f1.shape[1] if scale is None else scale
    return _correlation_op(f1, f2, max_displacement // stride, stride, scale, negative_slope)


def _check(f1: Tensor, f2: Tensor, max_displacement: int, stride: int) -> None:
    _lib.check_planes(f1, "f1", _lib.FLOAT_AND_DOUBLE, ("B", "C", "H", "W"))
    _lib.check_planes(f2, "f2", (f1.dtype,), f1.shape)
    _lib.check_devices(f1=f1, f2=f2)
    if f1.shape[1] == 0:
        raise ValueError(f"f1: wanted at least one channel, got shape {list(f1.shape)}")
    for name, value in (("max_displacement", max_displacement), ("stride", stride)):
        _lib.check_number(value, name, "an int")
        if value < 1:
            raise ValueError(f"{name}: wanted at least 1, got {value}")
        if value > _MOST:
            raise ValueError(f"{name}: wanted at most {_MOST}, got {value}")


def _check_numbers(scale: float | None, negative_slope: float) -> None:
    if scale is not None:
        _lib.check_number(scale, "scale")
    _lib.check_number(negative_slope, "negative_slope")
    if scale is not None and not -math.inf < scale < math.inf:
        raise ValueError(f"scale: wanted a finite number, got {scale}")
    if not 0 < negative_slope <= 1:
        raise ValueError(f"negative_slope: wanted a number in (0, 1], got {negative_slope}")


# ---- torch.ops.vda.correlation ----


def _members(f1: Tensor, f2: Tensor, radius: int, stride: int, scale: float) -> dict[str, object]:
    B, C, H, W = f1.shape
    return {
        "f1": f1,
        "f2": f2,
        "workspace": None,
        "batch": B,
        "channels": C,
        "height": H,
        "width": W,
        "radius": radius,
        "stride": stride,
        "dtype": _lib.dtype_name(f1),
        "scale": scale,
        # Read when the kernel runs, like torch's own matrix products do.
        "allow_tf32": torch.backends.cuda.matmul.fp32_precision == "tf32",
    }


def _call(name: str, first: Tensor, members: dict[str, object]) -> None:
    _lib.call(name, first, **members | {"workspace": _lib.workspace(name, first, **members)})


def _correlation(f1: Tensor, f2: Tensor, radius: int, stride: int, scale: float, negative_slope: float) -> Tensor:
    out = _correlation_fake(f1, f2, radius, stride, scale, negative_slope)
    members = _members(f1, f2, radius, stride, scale) | {"out": out, "negative_slope": negative_slope}
    _call("correlation", f1, members)
    return out


def _correlation_fake(f1: Tensor, f2: Tensor, radius: int, stride: int, scale: float, negative_slope: float) -> Tensor:
    B, _, H, W = f1.shape
    return f1.new_empty((B, (2 * radius + 1) ** 2, H, W))


def _correlation_backward(
    grad: Tensor, f1: Tensor, f2: Tensor, radius: int, stride: int, scale: float, need_f1: bool, need_f2: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of f1 and f2; an empty tensor for the one that is not needed."""
    grads = _correlation_backward_fake(grad, f1, f2, radius, stride, scale, need_f1, need_f2)
    members = _members(f1, f2, radius, stride, scale) | {
        "grad_out": grad,
        "grad_f1": grads[0] if need_f1 else None,
        "grad_f2": grads[1] if need_f2 else None,
        "channels_last": _channels_last(f1, f2),
    }
    _call("correlation_backward", f1, members)
    return grads


def _correlation_backward_fake(
    grad: Tensor, f1: Tensor, f2: Tensor, radius: int, stride: int, scale: float, need_f1: bool, need_f2: bool
) -> tuple[Tensor, Tensor]:
    layout = torch.channels_last if _channels_last(f1, f2) else torch.contiguous_format
    return (
        torch.empty_like(f1, memory_format=layout) if need_f1 else f1.new_empty(0),
        torch.empty_like(f2, memory_format=layout) if need_f2 else f2.new_empty(0),
    )


def _channels_last(f1: Tensor, f2: Tensor) -> bool:
    """Whether the gradients are channels-last too: both maps are, on CUDA (the CPU kernels write planes)."""
    return _lib.on_cuda(f1) and all(
        f.is_contiguous(memory_format=torch.channels_last) and not f.is_contiguous() for f in (f1, f2)
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    f1, f2, ctx.radius, ctx.stride, ctx.scale, ctx.negative_slope = inputs
    ctx.save_for_backward(f1, f2, output if ctx.negative_slope != 1 else None)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    f1, f2, out = ctx.saved_tensors
    if out is not None:
        grad = torch.ops.aten.leaky_relu_backward(grad, out, ctx.negative_slope, True)
    need_f1, need_f2 = ctx.needs_input_grad[:2]
    grad_f1, grad_f2 = _correlation_backward_op(grad, f1, f2, ctx.radius, ctx.stride, ctx.scale, need_f1, need_f2)
    return grad_f1 if need_f1 else None, grad_f2 if need_f2 else None, None, None, None, None


_correlation_op = _lib.define(
    "correlation(Tensor f1, Tensor f2, int radius, int stride, float scale, float negative_slope) -> Tensor",
    _correlation,
    _correlation_fake,
    _backward,
    _setup_context,
)
_correlation_backward_op = _lib.define(
    "correlation_backward(Tensor grad, Tensor f1, Tensor f2, int radius, int stride, float scale, bool need_f1, "
    "bool need_f2) -> (Tensor, Tensor)",
    _correlation_backward,
    _correlation_backward_fake,
)
