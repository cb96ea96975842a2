"""Tensors of more than 2^31 elements, and strides as long: samples and planes are found by 64-bit offsets.

Memory that is never touched costs nothing, so long strides need little of it. Results of that size are the slow ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from calls import CALLS, Call, assert_same
from conftest import Backend
from torch import Tensor

from vda.ops import ClassThresholds, class_thresholds

FAR = (1 << 31) + 7
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return request.param


# ---- long strides ----


def spread(x: Tensor, dim: int) -> Tensor:
    """A copy of x whose steps along one dimension are longer than 2^31 elements."""
    strides = list(x.contiguous().stride())
    strides[dim] = FAR
    try:
        far = torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)
    except RuntimeError as error:
        pytest.skip(f"the system does not promise so much memory ({str(error).splitlines()[0]})")
    return far.copy_(x)


@pytest.mark.parametrize("name", CALLS)
def test_long_strides(backend: Backend, name: str) -> None:
    if backend.name in ("shuffled", "naive"):
        return  # nothing about addresses that `shim` has not
    call = CALLS[name](2, 3, 19).map(lambda x: x.to(backend.device))
    wanted = call.run()
    for argument, x in call.tensors.items():
        for dim in range(x.dim() - 2):
            far = spread(x, dim)
            assert_same(call.run({**call.tensors, argument: far}), wanted)
            del far


@pytest.mark.parametrize("name", ["correlation", "warp"])
def test_long_strides_of_gradients(backend: Backend, name: str) -> None:
    if backend.name in ("shuffled", "naive"):
        return
    call = CALLS[name](2, 3, 19).map(lambda x: x.to(backend.device).requires_grad_())
    out = call.run()[0]
    grad = torch.randn_like(out)
    inputs = list(call.tensors.values())
    wanted = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    for dim in (0, 1) if name == "warp" else (0,):  # the channels of correlation are too many
        assert_same(
            torch.autograd.grad(out, inputs, spread(grad, dim), retain_graph=True), wanted, atol=1e-5, rtol=1e-5
        )


# ---- large results ----

SIDE = 256  # of a sample
LARGE = [name for name, make in CALLS.items() if not (make(1, 2, 2).any_shape or make(1, 2, 2).counts)]


def lighter(call: Call) -> dict[str, Tensor]:
    """The tensors of a call, those of the type of its result in 16 bits."""
    # Colours of aggregate are computed in float32, and copied if they are not.
    kept = ("flow", "flows", "weight", "theta", "predictions.theta", "predictions.reference_theta") + (
        ("frame", "neighbour_frames") if "flows" in call.tensors else ()
    )
    tensors = {name: x[..., :2, :2] if "logits" in name else x for name, x in call.tensors.items()}
    return {name: x.half() if x.dtype == torch.float32 and name not in kept else x for name, x in tensors.items()}


def assert_samples(many: Tensor, one: Tensor) -> None:
    """Samples of a large result, the last among them, against that of a single one."""
    assert many.numel() > 1 << 31
    B = len(many)
    for b in (0, 1, B // 2, B - 2, B - 1):
        torch.testing.assert_close(many[b], one[0], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("name", LARGE)
def test_large_results(name: str, device: str) -> None:
    """One sample, repeated without memory until every result has more than 2^31 elements."""
    call = CALLS[name](1, SIDE, SIDE)
    batched = [argument for argument, x in call.tensors.items() if x.dim() > 1]
    one = {argument: x.to(device) for argument, x in lighter(call).items()}
    wanted = call.run(one)
    B = FAR // min(x[0].numel() for x in wanted) + 3
    many = {argument: x.expand(B, *x.shape[1:]) if argument in batched else x for argument, x in one.items()}
    for mine, sample in zip(call.run(many), wanted, strict=True):
        assert_samples(mine, sample)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_gradients_of_a_large_result(device: str) -> None:
    f = [torch.randn(1, 3, 128, 128, device=device, dtype=torch.float16) for _ in range(2)]
    options = (8, 1, 1.0, True, True)  # radius, stride, scale, both gradients
    grad = torch.randn(1, 17 * 17, 128, 128, device=device, dtype=torch.float16)
    one = torch.ops.vda.correlation_backward(grad, *f, *options)
    B = FAR // grad.numel() + 3
    far = torch.empty_strided((B, *grad.shape[1:]), (grad.numel(), *grad.stride()[1:]), dtype=grad.dtype, device=device)
    for b in (0, B - 1):
        far[b] = grad[0]  # the rest is never looked at
    many = torch.ops.vda.correlation_backward(far, *(x.expand(B, -1, -1, -1) for x in f), *options)
    for mine, sample in zip(many, one, strict=True):
        torch.testing.assert_close(mine[[0, B - 1]], sample.expand(2, -1, -1, -1), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_large_gradients(device: str) -> None:
    """The image's has more than 2^31 elements, the flow's is made of as many of the image."""
    image, grad, flow = (torch.randn(1, n, SIDE, SIDE, device=device) for n in (64, 64, 2))
    one = torch.ops.vda.warp_backward(grad, image, flow, "bilinear", "zeros", True, True)
    B = FAR // image.numel() + 3
    image, grad, flow = (x.expand(B, -1, -1, -1) for x in (image, grad, flow))
    many = torch.ops.vda.warp_backward(grad, image, flow, "bilinear", "zeros", True, True)
    assert many[0].numel() > 1 << 31
    for mine, sample in zip(many, one, strict=True):
        torch.testing.assert_close(mine[[0, B // 2, B - 1]], sample.expand(3, -1, -1, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize(("dtype", "pixels"), [(np.float16, (1 << 32) + 9), (np.float32, (1 << 31) + 9)])
def test_many_pixels_for_thresholds(device: str, dtype: type, pixels: int) -> None:
    """Zeros that are never written cost no memory; seven pixels at the end are of class 1."""
    confidence, label = np.zeros(pixels, dtype), np.zeros(pixels, np.uint8)
    confidence[-7:], label[-7:] = np.arange(1, 8) / 8, 1
    theta = torch.tensor([0.5, 0.5], dtype=torch.float64, device=device)
    options: dict[str, Any] = {"alpha": 0.5, "beta": 0.0, "gamma": 0.0}
    given = [torch.from_numpy(x).to(device) for x in (confidence, label)]
    # Half of the pixels lie above: element 3 of 7 in descending order, and one of the zeros.
    assert class_thresholds(*given, theta, **options).tolist() == [0.0, 0.5]
    stream = ClassThresholds(2, device=device, **options)
    stream.update(*given)
    assert stream.counts.tolist() == [pixels - 7, 7]
    assert stream.finish(theta).tolist() == [0.0, 0.5]
