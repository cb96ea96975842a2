r"""Correlation (cost volume) of two feature maps, as in FlowNet2.

    out[b, (j + R) D + (i + R), y, x] = 1/C sum_c f1[b, c, y, x] f2[b, c, y + j s, x + i s],   j, i in [-R, R]

with s = stride, R = floor(max_displacement / s), D = 2 R + 1 and f2 = 0 outside the frame: dy outer, dx inner, the
divisor the same at the border. Kernel size 1, output stride 1, padding = max_displacement. The largest entry of a
pixel estimates the flow from the first frame to the second. With g = grad_out and d = (dy, dx):

    grad_f1(p) = 1/C sum_d g_d(p) f2(p + d)          grad_f2(p) = 1/C sum_d g_d(p - d) f1(p - d)

Both are gathers: no atomics, the same bits on every run. Differentiable: f1 and f2, once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _lib

# ---- reference ----


def correlation_reference(f1: Tensor, f2: Tensor, *, max_displacement: int = 20, stride: int = 2) -> Tensor:
    """Plain-torch `correlation`: same signature, same results, any device, differentiable by torch itself."""
    H, W = f1.shape[-2:]
    steps = range(2 * (max_displacement // stride) + 1)
    margin = max_displacement // stride * stride
    dtype = torch.float64 if f1.dtype == torch.float64 else torch.float32
    a, b = f1.to(dtype), F.pad(f2.to(dtype), (margin,) * 4)
    planes = [
        (a * b[..., j * stride : j * stride + H, i * stride : i * stride + W]).mean(1) for j in steps for i in steps
    ]
    return torch.stack(planes, 1).to(f1.dtype)


# ---- checks and call ----


@_lib.arrays
def correlation(f1: Tensor, f2: Tensor, *, max_displacement: int = 20, stride: int = 2) -> Tensor:
    """Mean over channels of f1(p) f2(p + d), for every displacement d of a square grid.

    Args:
        f1: [B, C, H, W] features of the first frame, float32, float16, bfloat16 or float64, any strides
            (channels-last and expanded included), no copy is made.
        f2: like f1, of the second frame.
        max_displacement: largest |dx| and |dy|, in pixels of the feature map; at least 1.
        stride: pixels between neighbouring displacements; at least 1.

    Returns:
        [B, D*D, H, W], element type of f1, contiguous; D = 2 * (max_displacement // stride) + 1. Sums are float32
        for the 16-bit types. FlowNetC: 441 channels, 220 is the zero displacement.

    Raises:
        TypeError, ValueError: naming the argument, what was wanted and what was found.
    """
    _check(f1, f2, max_displacement, stride)
    if _lib.use_reference(f1):
        return correlation_reference(f1, f2, max_displacement=max_displacement, stride=stride)
    return torch.ops.vda.correlation(f1, f2, max_displacement // stride, stride)


def _check(f1: Tensor, f2: Tensor, max_displacement: int, stride: int) -> None:
    _lib.check(f1, "f1", _lib.FLOAT_AND_DOUBLE, ("B", "C", "H", "W"))
    _lib.check(f2, "f2", (f1.dtype,), f1.shape)
    _lib.check_devices(f1=f1, f2=f2)
    if f1.shape[1] == 0:
        raise ValueError(f"f1: wanted at least one channel, got shape {list(f1.shape)}")
    for name, value in (("max_displacement", max_displacement), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: wanted an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name}: wanted at least 1, got {value}")


# ---- torch.ops.vda.correlation ----


def _sizes(f1: Tensor, f2: Tensor, radius: int, stride: int) -> dict[str, object]:
    B, C, H, W = f1.shape
    return {
        "f1_stride": f1.stride(),
        "f2_stride": f2.stride(),
        "batch": B,
        "channels": C,
        "height": H,
        "width": W,
        "radius": radius,
        "stride": stride,
        "dtype": _lib.dtype_name(f1),
    }


def _workspace(x: Tensor, backward: bool, sizes: dict[str, object]) -> Tensor | None:
    """Room for the packed operands of the CPU kernels, which get as many threads as `_lib.call` gives them."""
    if _lib.on_cuda(x):
        return None
    module, _ = _lib.load()
    assert module is not None
    size = {name: sizes[name] for name in ("channels", "height", "width", "radius", "stride", "dtype")}
    n = module.correlation_workspace(backward=backward, threads=torch.get_num_threads(), **size)
    return x.new_empty(n, dtype=torch.uint8)


def _correlation(f1: Tensor, f2: Tensor, radius: int, stride: int) -> Tensor:
    out = _correlation_fake(f1, f2, radius, stride)
    sizes = _sizes(f1, f2, radius, stride)
    workspace = _workspace(f1, False, sizes)
    _lib.call(
        "correlation",
        f1,
        f2,
        out,
        None,
        None,
        None,
        workspace,
        grad_out_stride=out.stride(),
        backward=False,
        **sizes,
    )
    return out


def _correlation_fake(f1: Tensor, f2: Tensor, radius: int, stride: int) -> Tensor:
    B, _, H, W = f1.shape
    return f1.new_empty((B, (2 * radius + 1) ** 2, H, W))


def _correlation_backward(
    grad: Tensor, f1: Tensor, f2: Tensor, radius: int, stride: int, need_f1: bool, need_f2: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of f1 and f2; an empty tensor for the one that is not needed."""
    grads = _correlation_backward_fake(grad, f1, f2, radius, stride, need_f1, need_f2)
    sizes = _sizes(f1, f2, radius, stride)
    _lib.call(
        "correlation",
        f1,
        f2,
        None,
        grad,
        grads[0] if need_f1 else None,
        grads[1] if need_f2 else None,
        _workspace(f1, True, sizes),
        grad_out_stride=grad.stride(),
        backward=True,
        **sizes,
    )
    return grads


def _correlation_backward_fake(
    grad: Tensor, f1: Tensor, f2: Tensor, radius: int, stride: int, need_f1: bool, need_f2: bool
) -> tuple[Tensor, Tensor]:
    return f1.new_empty(f1.shape if need_f1 else 0), f2.new_empty(f2.shape if need_f2 else 0)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    f1, f2, ctx.radius, ctx.stride = inputs
    ctx.save_for_backward(f1, f2)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    need_f1, need_f2 = ctx.needs_input_grad[:2]
    grad_f1, grad_f2 = torch.ops.vda.correlation_backward(
        grad, *ctx.saved_tensors, ctx.radius, ctx.stride, need_f1, need_f2
    )
    return grad_f1 if need_f1 else None, grad_f2 if need_f2 else None, None, None


_lib.define(
    "correlation(Tensor f1, Tensor f2, int radius, int stride) -> Tensor",
    _correlation,
    _correlation_fake,
    _backward,
    _setup_context,
)
_lib.define(
    "correlation_backward(Tensor grad, Tensor f1, Tensor f2, int radius, int stride, bool need_f1, bool need_f2) "
    "-> (Tensor, Tensor)",
    _correlation_backward,
    _correlation_backward_fake,
)
