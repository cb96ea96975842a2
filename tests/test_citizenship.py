"""Every op in torch's machinery: compile, dynamic shapes, opcheck, fake tensors, autocast, torch.func, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from calls import CALLS, Call, assert_same
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vda.ops import OPS, _lib, class_thresholds, consensus, correlation, warp, warp_occlusion

EVERY = pytest.mark.parametrize("name", CALLS)
SIZES = (4, 11, 17)  # unlike each other and the sizes of calls.py: torch takes equal ones for the same
RECORDS = [name for name, make in CALLS.items() if make(*SIZES).gradients]


def test_every_op_has_a_call() -> None:
    assert {make(*SIZES).op for make in CALLS.values()} == set(OPS)


# ---- torch.compile ----


def as_function(call: Call) -> Callable[..., tuple[Any, ...]]:
    """The call as a function of its tensors alone, in order."""
    names = list(call.tensors)
    return lambda *tensors: call.run(dict(zip(names, tensors, strict=True)))


def differentiable(call: Call) -> tuple[Callable[..., tuple[Any, ...]], tuple[Tensor, ...]]:
    """The call as a function of the tensors that it is differentiable in, and those tensors."""

    def function(*tensors: Tensor) -> tuple[Any, ...]:
        return call.run({**call.tensors, **dict(zip(call.gradients, tensors, strict=True))})

    return function, tuple(call.tensors[name] for name in call.gradients)


@EVERY
def test_compiles_to_one_graph(name: str) -> None:
    torch._dynamo.reset()
    call = CALLS[name](*SIZES)
    compiled = torch.compile(as_function(call), fullgraph=True, backend="aot_eager")
    assert_same(compiled(*call.tensors.values()), call.run())


@EVERY
def test_dynamic_shapes_compile_once(name: str) -> None:
    torch._dynamo.reset()
    function = as_function(CALLS[name](*SIZES))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for sizes in (SIZES, (3, 6, 33), (5, 21, 9)):
            call = CALLS[name](*sizes)
            assert_same(compiled(*call.tensors.values()), call.run())


@pytest.mark.parametrize("dynamic", [False, True])
def test_options_may_be_arguments_of_a_compiled_function(dynamic: bool) -> None:
    """torch makes symbols of numbers, which answer fewer questions than numbers do."""
    torch._dynamo.reset()

    def step(x: Tensor, flow: Tensor, alpha: float, radius: int, scale: float, ignore: int) -> tuple[Any, ...]:
        labels = (9 * x[:, 0]).byte()
        return (
            *warp_occlusion(x, x, flow, alpha=alpha, threshold=0.5 + scale / 4),
            correlation(x, x, max_displacement=radius, scale=scale),
            consensus(labels, labels, flow, ignore_index=ignore),
            class_thresholds(x[:, 0], labels, x[0, 0, 0], alpha=scale),
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x, flow = torch.rand(4, 3, 6, 9), torch.randn(4, 2, 6, 9)
    for numbers in ((1.0, 2, 0.5, 255), (4.0, 4, 0.25, 7)):
        assert_same(compiled(x, flow, *numbers), step(x, flow, *numbers))


@pytest.mark.parametrize("name", RECORDS)
def test_gradients_compile(name: str) -> None:
    torch._dynamo.reset()
    function, inputs = differentiable(CALLS[name](*SIZES))
    for x in inputs:
        x.requires_grad_()
    wanted = torch.autograd.grad(function(*inputs)[0].square().sum(), inputs)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same(torch.autograd.grad(compiled(*inputs)[0].square().sum(), inputs), wanted)


def test_inductor() -> None:
    torch._dynamo.reset()
    image, flow = torch.randn(1, 2, 5, 7), torch.randn(1, 2, 5, 7, requires_grad=True)

    def step(image: Tensor, flow: Tensor) -> Tensor:
        return warp(image * 2, flow + 0.5, padding="border").abs().sum()

    found = torch.autograd.grad(torch.compile(step, fullgraph=True)(image, flow), flow)
    torch.testing.assert_close(found, torch.autograd.grad(step(image, flow), flow))


@EVERY
def test_exports(name: str) -> None:
    call = CALLS[name](*SIZES)

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
            return as_function(call)(*tensors)

    program = torch.export.export(Module(), tuple(call.tensors.values()), strict=False)
    assert_same(tuple(program.module()(*call.tensors.values())), call.run())


# ---- registration ----


class Recorder(TorchDispatchMode):
    """Notes the calls of torch.ops.vda."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "vda":
            self.seen.append((func, args))
        return func(*args, **(kwargs or {}))


def seen_in(call: Call) -> list[tuple[Any, tuple[Any, ...]]]:
    """The registered ops that a call and its gradient go through, with their arguments."""
    inputs = {name: x.requires_grad_() for name, x in call.tensors.items() if name in call.gradients}
    with Recorder() as recorder:
        result = call.run()
        if inputs:
            torch.autograd.grad(result[0], list(inputs.values()), torch.ones_like(result[0]))
    return recorder.seen


def test_every_registered_op_is_seen() -> None:
    seen = {func.name() for make in CALLS.values() for func, _ in seen_in(make(*SIZES))}
    assert seen == set(_lib.REGISTERED)
    assert len(seen) > len(OPS)


@EVERY
def test_opcheck(name: str) -> None:
    call = CALLS[name](*SIZES)
    for func, args in seen_in(call):
        copies = [x.detach().clone() if isinstance(x, Tensor) else x for x in args]
        torch.library.opcheck(func, copies)
        if call.gradients and not func.name().endswith("_backward"):
            recorded = [isinstance(x, Tensor) and x.is_floating_point() for x in copies]
            torch.library.opcheck(func, [x.requires_grad_() if r else x for x, r in zip(copies, recorded, strict=True)])


@EVERY
def test_tensors_without_data_give_shapes_types_and_strides(name: str) -> None:
    for sizes in (SIZES, (0, 4, 5), (1, 1, 40)):
        call = CALLS[name](*sizes)
        for turned in (
            call,
            call.map(lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x),
        ):
            for found, wanted in zip(turned.map(lambda x: x.to("meta")).run(), call.run(), strict=True):
                assert found.device.type == "meta"
                assert (found.shape, found.dtype, found.stride()) == (wanted.shape, wanted.dtype, wanted.stride())


# ---- autocast ----


@EVERY
def test_autocast_changes_correlation_alone(name: str) -> None:
    call = CALLS[name](*SIZES)
    wanted = call.map(lambda x: x.bfloat16()).run() if call.op == "correlation" else call.run()
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(call.run(), wanted)


def test_autocast_of_correlation() -> None:
    """16-bit features and results, gradients in the type of the inputs; doubles are left alone, as for matmul."""
    f1, f2 = (torch.randn(1, 3, 4, 5, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        out = correlation(f1, f2.bfloat16(), max_displacement=2)  # mixed types meet
        assert correlation(f1.double(), f2.double(), max_displacement=2).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert correlation(f1, f2, max_displacement=2).dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.float().sum(), f1)[0].dtype == torch.float32


def test_autocast_leaves_positions_alone() -> None:
    """A bfloat16 cannot tell 512.25 from 512; positions must not be rounded to it whatever the image is."""
    ramp = torch.arange(1024.0).view(1, 1, 1, -1)
    flow = torch.full((1, 2, 1, 1024), 0.25)
    flow[:, 1] = 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(ramp, flow)[..., :-1], ramp[..., :-1] + 0.25)
        found = warp(ramp.half(), flow)  # image and flow of different types
        assert found.dtype == torch.float16
        assert torch.equal(found[..., 512:1023], (ramp[..., 512:1023] + 0.25).half())
        assert warp_occlusion(ramp.half(), ramp.half(), flow, alpha=1.0)[0].dtype == torch.float16


# ---- torch.func ----


@EVERY
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_equals_a_loop_or_refuses(name: str) -> None:
    calls = [CALLS[name](*SIZES) for _ in range(3)]
    stacked = [torch.stack(same) for same in zip(*(call.tensors.values() for call in calls), strict=True)]
    mapped = torch.func.vmap(as_function(calls[0]))
    if calls[0].counts and len(stacked) > 1:  # an op that adds to something that is not mapped
        with pytest.raises(RuntimeError, match="Batching rule not implemented for vda::"):
            mapped(*stacked)
        return
    for found, wanted in zip(mapped(*stacked), zip(*(call.run() for call in calls), strict=True), strict=True):
        assert torch.equal(found, torch.stack(wanted))


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_gradients(name: str) -> None:
    """grad, vjp, and a gradient per sample by vmap, which is how they are used."""
    function, inputs = differentiable(CALLS[name](*SIZES))
    every = tuple(range(len(inputs)))

    def loss(*tensors: Tensor) -> Tensor:
        return function(*tensors)[0].square().sum()

    recorded = tuple(x.clone().requires_grad_() for x in inputs)
    wanted = torch.autograd.grad(loss(*recorded), recorded)
    assert_same(torch.func.grad(loss, every)(*inputs), wanted)
    out, pull = torch.func.vjp(lambda *x: function(*x)[0], *inputs)
    assert_same(pull(2 * out), wanted)
    each = torch.func.vmap(torch.func.grad(loss, every))(*(torch.stack([x, 2 * x]) for x in inputs))
    assert_same(tuple(x[0] for x in each), wanted)


@EVERY
def test_no_forward_derivative_is_lost(name: str) -> None:
    """Without the check the tangent would vanish and the derivative read 0."""
    call = CALLS[name](*SIZES)
    for argument, x in call.tensors.items():
        if not x.is_floating_point():
            continue
        with pytest.raises((NotImplementedError, ValueError), match=r"forward-mode (derivative|tangent)"):
            torch.func.jvp(lambda t, argument=argument: call.run({**call.tensors, argument: t}), (x,), (x,))


@EVERY
def test_no_gradient_is_lost(name: str) -> None:
    call = CALLS[name](*SIZES)
    for argument, x in call.tensors.items():
        if not x.is_floating_point() or argument in call.gradients:
            continue
        tensors = {**call.tensors, argument: x.clone().requires_grad_()}
        with pytest.raises(
            ValueError, match=rf"^{argument}: wanted a tensor without gradient .*got requires_grad=True$"
        ):
            call.run(tensors)
        with torch.no_grad():
            assert_same(call.run(tensors), call.run())


# ---- gradients ----


@pytest.mark.parametrize("name", RECORDS)
def test_gradcheck_of_strided_inputs_and_expanded_gradients(name: str) -> None:
    """Odd sizes, H != W, every second column of something wider; a sum hands back a gradient of stride 0."""
    call = CALLS[name](1, 3, 10).map(lambda x: x.double() if x.is_floating_point() else x)
    function, inputs = differentiable(call)
    for x in inputs:
        x.requires_grad_()

    def strided(*tensors: Tensor) -> Tensor:
        return function(*(x[..., ::2] for x in tensors))[0]

    assert torch.autograd.gradcheck(strided, inputs)
    summed = torch.autograd.grad(strided(*inputs).sum(), inputs)
    out = strided(*inputs)
    assert_same(torch.autograd.grad(out, inputs, torch.ones_like(out)), summed)
    halves = torch.autograd.grad(torch.cat([strided(*inputs), strided(*inputs)], -1).sum(), inputs)  # narrowed ones
    assert_same(halves, tuple(2 * x for x in summed))


@pytest.mark.parametrize("name", RECORDS)
def test_second_derivatives_are_refused(name: str) -> None:
    call = CALLS[name](*SIZES)
    inputs = [x.requires_grad_() for x in differentiable(call)[1]]
    first = torch.autograd.grad(call.run()[0].square().sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match=rf"^vda.ops: {call.op} has no second derivative$"):
        torch.autograd.grad(first[0].sum(), inputs)


@pytest.mark.parametrize("needed", [[True, False], [False, True]])
def test_one_gradient_alone(needed: list[bool]) -> None:
    call = CALLS["warp"](*SIZES)
    both = [x.clone().requires_grad_() for x in call.tensors.values()]
    wanted = torch.autograd.grad(as_function(call)(*both)[0].sum(), both)
    some = [x.clone().requires_grad_(need) for x, need in zip(call.tensors.values(), needed, strict=True)]
    as_function(call)(*some)[0].sum().backward()
    for x, need, gradient in zip(some, needed, wanted, strict=True):
        assert torch.equal(x.grad, gradient) if need else x.grad is None


@EVERY
def test_inference_mode_and_parameters(name: str) -> None:
    call = CALLS[name](*SIZES)
    with torch.inference_mode():
        assert_same(call.run(), call.run())
    with torch.no_grad():
        parameters = call.map(lambda x: torch.nn.Parameter(x) if x.is_floating_point() else x)
        assert_same(parameters.run(), call.run())


def test_views_of_conjugates() -> None:
    """The imaginary part of a conjugate is a view whose memory has the other sign."""
    image = torch.randn(1, 2, 4, 5, dtype=torch.complex64).conj().imag
    flow = torch.randn(1, 2, 4, 5)
    assert image.is_neg()
    assert torch.equal(warp(image, flow), warp(image.resolve_neg(), flow))
