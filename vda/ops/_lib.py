"""Everything between a tensor and a raw pointer; the only file that touches pointers.

Loads the compiled kernels (`vda/_C`), checks arguments at the door, and launches: device guard, current stream,
number of threads. Tensors used on another stream than the current one need `record_stream`, as everywhere in torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._arrays import arrays as arrays  # of other libraries

HALF = (torch.float16, torch.bfloat16)
FLOAT = (torch.float32, *HALF)
FLOAT_AND_DOUBLE = (*FLOAT, torch.float64)
FLOW = (*FLOAT, torch.int16)  # int16: tenths of a pixel, the ".._int16_x10" files of video adaptation code
# Kernels hold sizes and offsets inside a plane in 32 bits; offsets of samples and planes in 64.
MOST = 1 << 24  # along one dimension; kNowhere of csrc/sampling.h: a float tells no more pixels apart
SPAN = 1 << 31  # elements from the first to the last of a plane

_library = torch.library.Library("vda", "DEF")
REGISTERED: list[str] = []  # "vda::warp" and so on
_shim: ModuleType | None = None  # see routed_to
_naive = False  # see naive


# ---- the compiled module ----


def _import() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("vda._C")
    except ModuleNotFoundError as error:
        if error.name != "vda._C":
            raise
        return None, "vda._C is not built for this Python: run `pip install -e .` in the repository"
    except ImportError as error:
        return None, f"vda._C does not load ({error}): rebuild it with `pip install -e .` on this machine"
    return module, ""


_compiled, _reason = _import()
_said: set[str] = set()


def load() -> tuple[ModuleType | None, str]:
    """The compiled module and "", or None and one sentence: why it is missing and what to do."""
    return _compiled, _reason


def why_off(device_type: str) -> str:
    """Why the kernels do not serve tensors on this kind of device, in one sentence; "" when they do."""
    if _shim is not None or device_type == "meta":  # tensors without data have kernels that give shapes
        return ""
    module, reason = load()
    if module is None:
        return reason
    if device_type == "cpu" or (device_type == "cuda" and module.cuda):
        return ""
    if device_type == "cuda":
        return "vda._C was built without CUDA: install nvcc and run `VDA_CUDA=on pip install -e .`"
    return f"there are no kernels for device {device_type}"


def use_reference(x: Tensor) -> bool:
    """Whether the plain-torch reference has to serve x; says once why."""
    reason = why_off(x.device.type)
    if reason and reason not in _said:
        _said.add(reason)
        message = f"{reason}; until then the plain-torch references serve (slower, same results)"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return bool(reason)


@contextlib.contextmanager
def routed_to(shim: ModuleType) -> Iterator[None]:
    """Test hook: CPU tensors run the CUDA launchers of `shim`, which executes device code on the CPU."""
    global _shim
    before, _shim = _shim, shim
    try:
        yield
    finally:
        _shim = before


@contextlib.contextmanager
def naive() -> Iterator[None]:
    """For tests and benchmarks: CUDA ops run the readable version that is kept beside an optimised kernel."""
    global _naive
    before, _naive = _naive, True
    try:
        yield
    finally:
        _naive = before


def on_cuda(x: Tensor) -> bool:
    """Whether a kernel called on x takes the CUDA path (scatter by atomics, for one)."""
    return x.is_cuda or _shim is not None


# ---- checks at the door ----


def check(x: object, name: str, dtypes: Sequence[torch.dtype], shape: Sequence[int | str] | None) -> None:
    """Raise unless x is a dense tensor of one of these types and this shape.

    shape: one entry per dimension, a size or a letter that allows any size, e.g. (B, 2, "H", "W"); None allows any.

    Raises:
        TypeError: not a tensor, not dense, or another element type. ValueError: another shape. All name the
            argument, what was wanted and what was found.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: wanted a tensor or DLPack array, got {type(x).__name__}")
    if x.dtype not in dtypes:
        wanted = ", ".join(str(dtype)[6:] for dtype in dtypes)
        raise TypeError(f"{name}: wanted element type {wanted}, got {str(x.dtype)[6:]}")
    if x.layout is not torch.strided or x.is_nested:
        got = "a nested tensor" if x.is_nested else f"layout {str(x.layout)[6:]}"
        raise TypeError(f"{name}: wanted a dense tensor, got {got}")
    if shape is None:
        return
    found = tuple(x.shape)
    fits = len(shape) == len(found)
    for want, size in zip(shape, found, strict=False):
        fits = fits and (want == size or isinstance(want, str))
    if not fits:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name}: wanted shape [{wanted}], got {list(found)}")


def check_planes(x: object, name: str, dtypes: Sequence[torch.dtype], shape: Sequence[int | str]) -> None:
    """`check` of an array [B, .., H, W], and raise ValueError where it is too large for the kernels.

    The batch, and with it the array, may have any size; the other dimensions at most 2^24, and from the first to the
    last element of a plane [H, W] it is less than 2^31, in the array and in a contiguous one of its shape.
    """
    check(x, name, dtypes, shape)
    assert isinstance(x, Tensor)
    if 0 < x.numel() <= MOST and x.is_contiguous():
        return  # the usual case, seen at a glance
    sizes, stride = list(x.shape), x.stride()
    if max(sizes[1:]) > MOST:
        raise ValueError(f"{name}: wanted at most 2^24 along every dimension but the first, got shape {sizes}")
    H, W = sizes[-2:]
    if H * W >= SPAN or (H - 1) * stride[-2] + (W - 1) * stride[-1] >= SPAN:
        got = f"shape {sizes} with strides {list(stride)}"
        raise ValueError(f"{name}: wanted planes that span less than 2^31 elements, got {got}")


def check_option(value: object, name: str, options: Sequence[str]) -> None:
    """Raise ValueError unless value is one of the options."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: wanted {' or '.join(map(repr, options))}, got {value!r}")


def check_number(value: object, name: str, kind: str = "a number") -> None:
    """Raise TypeError unless value is a number or, with kind "an int", a whole one. Ranges are the caller's."""
    wanted = (int, np.integer) if kind == "an int" else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise TypeError(f"{name}: wanted {kind}, got {type(value).__name__}")


def check_devices(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors (None is skipped) are on the device of the first.

    Among others a tensor on "meta", which has no data, is the one that is wrong.
    """
    (first, device), *others = [(name, x.device) for name, x in tensors.items() if x is not None]
    for name, other in others:
        if other != device:
            if device.type == "meta":
                name, other, first, device = first, device, name, other
            raise ValueError(f"{name}: wanted device {device} (of {first}), got {other}")


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The float tensors in the type of the autocast region that is active for their device, if one is."""
    device = getattr(getattr(tensors[0], "device", None), "type", "cpu")
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.dtype in FLOAT else x for x in tensors)


def refuse_gradient(**tensors: Tensor | None) -> None:
    """Raise ValueError if a derivative is being recorded for one of the tensors: it would be lost silently."""
    for name, x in tensors.items():
        if x is None:
            continue
        recorded = "requires_grad=True" if x.requires_grad and torch.is_grad_enabled() else ""
        if recorded or has_tangent(x):
            raise ValueError(
                f"{name}: wanted a tensor without gradient (this op is not differentiable; detach it or call under "
                f"torch.no_grad()), got {recorded or 'a forward-mode tangent'}"
            )


def has_tangent(x: Tensor) -> bool:
    """Whether forward-mode differentiation (`torch.func.jvp`) goes through x."""
    return forward_ad.unpack_dual(x).tangent is not None


# ---- launching ----


@functools.cache
def _name_of(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


def dtype_name(x: Tensor) -> str:
    """Element type as the binding spells it, e.g. float32."""
    return _name_of(x.dtype)


def call(function: str, first: Tensor, **members: Any) -> None:
    """Run `vda._C.<function>` on the device and current stream of the tensor `first`.

    members: those of the op's parameter struct (csrc/<op>.h), tensors as tensors or None. Nothing is checked and
    nothing is made contiguous here. The call returns when the work is queued (CUDA) or done (CPU).
    """
    arguments = _arrays(members)
    cuda = "cuda naive" if _naive else "cuda"
    if _shim is not None:
        getattr(_shim, function)(cuda, 1, 0, **arguments)
        return
    kernel = getattr(load()[0], function, None)
    if kernel is None:
        raise RuntimeError(f"vda._C has no {function}: it is older than vda/ops, run `pip install -e .` again")
    if first.is_cuda:
        with torch.cuda.device(first.device):
            stream = torch.cuda.current_stream(first.device).cuda_stream
            kernel(cuda, 1, stream, **arguments)
    else:
        kernel("cpu", torch.get_num_threads(), 0, **arguments)


def workspace(function: str, first: Tensor, **members: Any) -> Tensor:
    """Memory for the `workspace` of a `call` with these members, on the device of the tensor `first`."""
    module = _shim if _shim is not None else load()[0]
    device = ("cuda naive" if _naive else "cuda") if on_cuda(first) else "cpu"
    with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
        size = getattr(module, f"{function}_workspace")(device, torch.get_num_threads(), **_arrays(members))
    return first.new_empty(size, dtype=torch.uint8)


def _arrays(members: dict[str, Any]) -> dict[str, Any]:
    """Every tensor as the binding takes it. The members hold the tensors, perhaps alone, until the call has ended."""
    return {
        name: (x.data_ptr(), x.stride(), dtype_name(x)) if isinstance(x, Tensor) else x for name, x in members.items()
    }


def empty(like: Tensor, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor for results on the device of `like`; by default of its shape and element type."""
    if shape is None and dtype is None:
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    return like.new_empty(like.shape if shape is None else shape, dtype=dtype)


def define(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Register `torch.ops.vda.<name>`: one kernel for CPU and CUDA, its fake (shapes only), its gradient.

    Returns the function that calls it.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema)
    REGISTERED.append(f"vda::{name}")
    _library.impl(name, kernel, "CPU")
    _library.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"vda::{name}", fake, lib=_library)
    op = getattr(torch.ops.vda, name).default
    if "!" in schema:
        return op  # an op that writes into an argument can have no formula
    if backward is None:  # torch's default for an op without a formula is a silently wrong gradient

        def backward(ctx: Any, *grads: Tensor) -> None:
            what = "second derivative" if name.endswith("_backward") else "derivative"
            raise NotImplementedError(f"vda.ops: {name.removesuffix('_backward')} has no {what}")

    torch.library.register_autograd(f"vda::{name}", backward, setup_context=setup_context, lib=_library)
    return _recorded(name, op, backward, setup_context)


def _recorded(
    name: str, op: Callable[..., Any], backward: Callable[..., Any], setup_context: Callable[..., None] | None
) -> Callable[..., Any]:
    """The op as a function whose gradient `torch.func` (grad, vjp, jacrev, vmap of them) takes too.

    What `register_autograd` makes of the same two functions serves those who call `torch.ops.vda`, but not there.
    """

    class Function(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            if setup_context is not None:
                setup_context(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    def run(*args: Any) -> Any:
        recorded = False
        for x in args:
            if isinstance(x, Tensor):
                recorded = recorded or x.requires_grad
                if has_tangent(x):
                    raise NotImplementedError(f"vda.ops: {name} has no forward-mode derivative")
        return Function.apply(*args) if recorded and torch.is_grad_enabled() else op(*args)

    return run
