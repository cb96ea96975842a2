"""Everything between a tensor and a raw pointer; the only file that touches pointers.

Loads the compiled kernels (`vda/_C`), checks arguments at the door, and launches: device guard, current stream,
number of threads. Tensors used on another stream than the current one need `record_stream`, as everywhere in torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

HALF = (torch.float16, torch.bfloat16)
FLOAT = (torch.float32, *HALF)
FLOAT_AND_DOUBLE = (*FLOAT, torch.float64)
FLOW = (*FLOAT, torch.int16)  # int16: tenths of a pixel, the ".._int16_x10" files of video adaptation code

_library = torch.library.Library("vda", "DEF")
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
    if _shim is not None:
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


def check(x: object, name: str, dtypes: Sequence[torch.dtype], shape: Sequence[int | str]) -> None:
    """Raise unless x is a tensor of one of these types and this shape.

    shape: one entry per dimension, a size or a letter that allows any size, e.g. (B, 2, "H", "W").

    Raises:
        TypeError: not a tensor, or another element type. ValueError: another shape. Both name the argument, what
            was wanted and what was found.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: wanted a tensor or DLPack array, got {type(x).__name__}")
    if x.dtype not in dtypes:
        wanted = ", ".join(str(dtype)[6:] for dtype in dtypes)
        raise TypeError(f"{name}: wanted element type {wanted}, got {str(x.dtype)[6:]}")
    fits = len(shape) == x.dim() and all(
        isinstance(want, str) or want == got for want, got in zip(shape, x.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name}: wanted shape [{wanted}], got {list(x.shape)}")


def check_option(value: object, name: str, options: Sequence[str]) -> None:
    """Raise ValueError unless value is one of the options."""
    if value not in options:
        raise ValueError(f"{name}: wanted {' or '.join(map(repr, options))}, got {value!r}")


def check_devices(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors (None is skipped) are on the device of the first."""
    first, *others = ((name, x.device) for name, x in tensors.items() if x is not None)
    for name, device in others:
        if device != first[1]:
            raise ValueError(f"{name}: wanted device {first[1]} (of {first[0]}), got {device}")


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The float tensors in the type of the autocast region that is active for their device, if one is."""
    device = getattr(getattr(tensors[0], "device", None), "type", "cpu")
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.dtype in FLOAT else x for x in tensors)


def refuse_gradient(**tensors: Tensor | None) -> None:
    """Raise ValueError if a gradient is being recorded for one of the tensors: it would be lost silently."""
    for name, x in tensors.items():
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: wanted a tensor without gradient (this op is not differentiable; detach it or call under "
                "torch.no_grad()), got requires_grad=True"
            )


# ---- launching ----


def dtype_name(x: Tensor) -> str:
    """Element type as the binding spells it, e.g. float32."""
    return str(x.dtype)[6:]


def call(function: str, first: Tensor, **members: Any) -> None:
    """Run `vda._C.<function>` on the device and current stream of the tensor `first`.

    members: those of the op's parameter struct (csrc/<op>.h), tensors as tensors or None. Nothing is checked and
    nothing is made contiguous here. The call returns when the work is queued (CUDA) or done (CPU).
    """
    arguments = {name: _array(x) if isinstance(x, Tensor) else x for name, x in members.items()}
    suffix = " naive" if _naive else ""
    if _shim is not None:
        getattr(_shim, function)("cuda" + suffix, 1, 0, **arguments)
        return
    kernel = getattr(load()[0], function, None)
    if kernel is None:
        raise RuntimeError(f"vda._C has no {function}: it is older than vda/ops, run `pip install -e .` again")
    if first.is_cuda:
        with torch.cuda.device(first.device):
            stream = torch.cuda.current_stream(first.device).cuda_stream
            kernel("cuda" + suffix, 1, stream, **arguments)
    else:
        kernel("cpu", torch.get_num_threads(), 0, **arguments)


def workspace(query: str, first: Tensor, *options: Any, **members: Any) -> Tensor:
    """Memory for a `call` with these members: as many bytes as `vda._C.<query>(device, *options, threads, **members)`
    says on the device of the tensor `first`."""
    arguments = {name: _array(x) if isinstance(x, Tensor) else x for name, x in members.items()}
    module = _shim if _shim is not None else load()[0]
    device = ("cuda naive" if _naive else "cuda") if on_cuda(first) else "cpu"
    with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
        size = getattr(module, query)(device, *options, torch.get_num_threads(), **arguments)
    return first.new_empty(size, dtype=torch.uint8)


def _array(x: Tensor) -> tuple[int, tuple[int, ...], str]:
    return x.data_ptr(), x.stride(), dtype_name(x)


def define(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Register `torch.ops.vda.<name>`: one kernel for CPU and CUDA, its fake (shapes only), its gradient."""
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, kernel, "CPU")
    _library.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"vda::{name}", fake, lib=_library)
    if "!" in schema:
        return  # an op that writes into an argument can have no formula
    if backward is None:  # torch's default for an op without a formula is a silently wrong gradient

        def backward(ctx: Any, *grads: Tensor) -> None:
            what = "second derivative" if name.endswith("_backward") else "derivative"
            raise NotImplementedError(f"vda.ops: {name.removesuffix('_backward')} has no {what}")

    torch.library.register_autograd(f"vda::{name}", backward, setup_context=setup_context, lib=_library)


# ---- arrays of other libraries ----


def arrays(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of tensors take any DLPack array without a copy and return the kind of its first argument."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) or _is_foreign(x)]
        if all(isinstance(x, Tensor) for x in given):
            return function(*args, **kwargs)
        result = function(
            *(_to_tensor(x) for x in args),
            **{name: _to_tensor(x) for name, x in kwargs.items()},
        )
        if isinstance(result, tuple):
            return cast(R, tuple(_to_kind(x, given[0]) for x in result))
        return cast(R, _to_kind(result, given[0]))

    return wrapped


def _is_foreign(x: object) -> bool:
    return not isinstance(x, Tensor) and hasattr(x, "__dlpack__")


def _to_tensor(x: Any) -> Any:
    if not _is_foreign(x):
        return x
    if isinstance(x, np.ndarray):
        if min(x.strides, default=0) < 0:  # torch has no negative strides
            x = x.copy()
        with warnings.catch_warnings():  # read-only arrays are fine: ops never write to an argument
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(x)
    return torch.from_dlpack(x)


def _to_kind(x: Any, kind: object) -> Any:
    if not isinstance(x, Tensor) or isinstance(kind, Tensor):
        return x
    if isinstance(kind, np.ndarray):
        return x.detach().numpy()
    return sys.modules[type(kind).__module__.partition(".")[0]].from_dlpack(x.detach())
