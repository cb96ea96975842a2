"""Arrays of other libraries: whatever speaks DLPack goes into an op without a copy, and the same kind comes out."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_OURS = (Tensor, str, int, float, type(None))  # sorted out first: torch.compile cannot ask its own numbers for more


def arrays(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of tensors take any DLPack array, and return arrays of the kind of its first one.

    The first by the order of the function's parameters; a dataclass counts with its members. Nothing is copied but
    NumPy arrays that no tensor can stand for (negative strides, for one). Autocast regions are for tensors: they do
    not change what an array of another library gives.

    Raises:
        TypeError: an array that torch cannot read. ValueError: a gradient that would be lost because another
            library's array comes out. Both name the argument, what was wanted and what was found.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if not any(map(_holds_foreign, (*args, *kwargs.values()))):
            return function(*args, **kwargs)
        return cast(R, _with_tensors(function, args, kwargs))

    return wrapped


_signature = functools.cache(inspect.signature)


def _with_tensors(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    given = _signature(function).bind(*args, **kwargs).arguments
    first, kind = next(found for name, x in given.items() for found in _arrays_in(name, x))
    given = {name: _converted(x, name) for name, x in given.items()}
    if isinstance(kind, Tensor):
        return function(**given)
    _refuse_gradient(given, kind)
    back = _exporter(kind, first)
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        result = function(**given)
    if isinstance(result, tuple):
        given_back = map(back, result)
        return type(result)(*given_back) if hasattr(result, "_fields") else tuple(given_back)
    return back(result) if isinstance(result, Tensor) else result


def _is_foreign(x: object) -> bool:
    return not isinstance(x, _OURS) and hasattr(x, "__dlpack__")


def _holds_foreign(x: object) -> bool:
    if isinstance(x, _OURS):
        return False
    if dataclasses.is_dataclass(x):
        return any(_is_foreign(member) for _, member in _arrays_in("", x))
    return hasattr(x, "__dlpack__")


def _arrays_in(name: str, x: Any) -> Iterator[tuple[str, Any]]:
    """(name, array) of an argument: itself, or the members of a dataclass."""
    if dataclasses.is_dataclass(x):
        for field in dataclasses.fields(x):
            yield from _arrays_in(f"{name}.{field.name}", getattr(x, field.name))
    elif isinstance(x, Tensor) or _is_foreign(x):
        yield name, x


def _converted(x: Any, name: str) -> Any:
    """The argument with every array as a tensor on the same memory."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        members = {field: to_tensor(array, field) for field, array in _arrays_in(name, x)}
        return dataclasses.replace(x, **{field.rpartition(".")[2]: array for field, array in members.items()})
    return to_tensor(x, name)


def to_tensor(x: Any, name: str) -> Any:
    """A DLPack array as a tensor on the same memory; anything else as it is."""
    if not _is_foreign(x):
        return x
    if isinstance(x, np.ndarray):
        return _from_numpy(x, name)
    try:
        return torch.from_dlpack(x)
    except Exception as error:  # every library has its own
        kind = f"{type(x).__module__}.{type(x).__name__}"
        raise TypeError(f"{name}: wanted an array that torch can read, got a {kind} ({error})") from error


class _Writable:
    """A read-only NumPy array as one that may be written, which torch asks for. Ops never write to an argument."""

    def __init__(self, x: np.ndarray) -> None:
        self.__array_interface__ = x.__array_interface__ | {"data": (x.__array_interface__["data"][0], False)}
        self.owner = x


def _from_numpy(x: np.ndarray, name: str) -> Tensor:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: wanted an array without a mask, got a numpy.ma.MaskedArray")
    if not x.dtype.isnative:
        raise TypeError(f"{name}: wanted the byte order of this machine, got dtype {x.dtype.str}")
    size = max(x.dtype.itemsize, 1)
    if not x.flags.aligned or any(stride < 0 or stride % size for stride in x.strides):
        x = x.copy()  # no tensor has such strides
    if not x.flags.writeable:
        x = np.asarray(_Writable(x))
    try:
        return torch.from_numpy(x)
    except TypeError as error:
        raise TypeError(f"{name}: wanted an array of numbers that torch has too, got dtype {x.dtype}") from error


def _refuse_gradient(given: dict[str, Any], kind: object) -> None:
    for argument, x in given.items():
        for name, tensor in _arrays_in(argument, x):
            if tensor.requires_grad and torch.is_grad_enabled():
                raise ValueError(
                    f"{name}: wanted a tensor without gradient (the first array is a {type(kind).__name__}, so one "
                    "comes out, which records none), got requires_grad=True"
                )


def _exporter(kind: object, name: str) -> Callable[[Any], Any]:
    """What turns a tensor into an array of the kind of this one, the argument `name`."""
    if isinstance(kind, np.ndarray):
        return lambda x: x.detach().numpy()
    library = sys.modules.get(type(kind).__module__.partition(".")[0])
    if hasattr(kind, "__array_namespace__"):
        library = kind.__array_namespace__()
    if not hasattr(library, "from_dlpack"):
        raise TypeError(f"{name}: wanted an array whose library has from_dlpack, got a {type(kind).__name__}")
    return lambda x: library.from_dlpack(x.detach())  # type: ignore[union-attr]
