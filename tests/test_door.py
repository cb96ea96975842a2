"""What no op can use is refused at the door, in one sentence that names the argument: types, shapes, devices, sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from calls import CALLS, Call, assert_same
from torch import Tensor

from vda.ops import ClassThresholds

EVERY = pytest.mark.parametrize("name", CALLS)
SIZES = (2, 5, 7)
REFUSED = (TypeError, ValueError)


def refusal(call: Call, argument: str, bad: Any) -> str:
    """The sentence with which a call refuses an argument."""
    with pytest.raises(REFUSED) as caught:
        call.run({**call.tensors, argument: bad})
    sentence = str(caught.value)
    assert re.fullmatch(rf"{re.escape(argument)}: wanted [^\n]*, got [^\n]*", sentence), sentence
    return sentence


# ---- every tensor argument of every op ----


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8)


BAD: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "complex": (lambda x: x.to(torch.complex64), "element type .* got complex64"),
    "int8": (lambda x: x.to(torch.int8), "element type .* got int8"),
    "quantized": (quantized, "element type .* got quint8"),
    "sparse": (lambda x: x.to_sparse(), "dense tensor, got layout sparse_coo"),
    "compressed": (lambda x: x.flatten(1).to_sparse_csr() if x.dim() > 1 else x.to_sparse(), "dense tensor"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "dense tensor, got a nested tensor"),
    "list": (lambda x: x.tolist(), "a tensor or DLPack array, got list"),
    "string": (lambda x: "frame.png", "a tensor or DLPack array, got str"),
    "one more dimension": (lambda x: x[None], "shape"),
    "one dimension less": (lambda x: x[0], "shape"),
    "meta": (lambda x: x.to("meta"), "device cpu .* got meta"),
    "masked": (lambda x: np.ma.masked_array(x.numpy()), "without a mask, got a numpy.ma.MaskedArray"),
    "objects": (lambda x: x.numpy().astype(object), "numbers that torch has too, got dtype object"),
    "text": (lambda x: x.numpy().astype(str), "numbers that torch has too, got dtype <U"),
}


@EVERY
@pytest.mark.parametrize("fault", BAD)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested", "ignore:.*quantiz")
def test_each_tensor_in_turn(name: str, fault: str) -> None:
    call = CALLS[name](*SIZES)
    change, wanted = BAD[fault]
    for argument, x in call.tensors.items():
        if fault in ("meta", "nested") and (len(call.tensors) == 1 or x.dim() < 2):
            continue  # alone on meta it is as good as any; a list of scalars cannot be nested
        if call.any_shape and argument == "confidence" and fault.startswith("one "):
            continue  # any shape will do for it, and then the label has another
        if fault == "one dimension less" and argument == "predictions.theta":
            continue  # one row for all
        assert re.search(wanted, refusal(call, argument, change(x)))


@EVERY
def test_none_is_named_or_allowed(name: str) -> None:
    call = CALLS[name](*SIZES)
    for argument in call.tensors:
        if argument in call.optional:
            call.run({**call.tensors, argument: None})
        else:
            assert refusal(call, argument, None).endswith("a tensor or DLPack array, got NoneType")


@EVERY
def test_other_byte_order(name: str) -> None:
    call = CALLS[name](*SIZES)
    for argument, x in call.tensors.items():
        if x.element_size() > 1:
            swapped = x.numpy().astype(x.numpy().dtype.newbyteorder(">"))
            assert "byte order of this machine, got dtype >" in refusal(call, argument, swapped)


@EVERY
def test_tensors_stay_as_they_are(name: str) -> None:
    call = CALLS[name](*SIZES)
    before = call.map(Tensor.clone)
    wanted = call.run()
    assert_same(tuple(call.tensors.values()), tuple(before.tensors.values()))
    subclass = type("Mine", (Tensor,), {})
    for mine, other in zip(call.map(lambda x: x.as_subclass(subclass)).run(), wanted, strict=True):
        assert torch.equal(mine.as_subclass(Tensor), other)


# ---- options ----


@pytest.mark.parametrize("bad", ["1.0", None, [1.0], True, 1j, torch.tensor(1.0)])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("aggregate", "alpha"),
        ("aggregate", "threshold"),
        ("aggregate_labels", "alpha"),
        ("apply_thresholds", "ignore_index"),
        ("class_thresholds", "alpha"),
        ("class_thresholds", "beta"),
        ("class_thresholds", "gamma"),
        ("consensus", "ignore_index"),
        ("correlation", "max_displacement"),
        ("correlation", "stride"),
        ("correlation", "scale"),
        ("correlation", "negative_slope"),
        ("warp of labels", "fill"),
        ("warp_occlusion", "alpha"),
        ("warp_occlusion", "threshold"),
    ],
)
def test_numbers_are_numbers(name: str, option: str, bad: object) -> None:
    if option == "scale" and bad is None:
        return  # its default
    with pytest.raises(TypeError, match=rf"^{option}: wanted an? (number|int), got {type(bad).__name__}$"):
        CALLS[name](*SIZES).run(**{option: bad})


def test_numbers_of_numpy_are_numbers() -> None:
    call = CALLS["correlation"](*SIZES)
    assert_same(call.run(max_displacement=np.int64(4), scale=np.float32(0.5)), call.run(scale=0.5))


@pytest.mark.parametrize("bad", ["cubic", None, 3, ["bilinear"], b"border"])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("warp", "mode"),
        ("warp", "padding"),
        ("consensus", "mode"),
        ("class_thresholds", "rule"),
        ("apply_thresholds", "rule"),
    ],
)
def test_words_are_words(name: str, option: str, bad: object) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: wanted '\w+' or [^\n]*, got "):
        CALLS[name](*SIZES).run(**{option: bad})


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("correlation", {"max_displacement": 1 << 31}, "max_displacement: wanted at most 16384, got 2147483648"),
        ("correlation", {"max_displacement": 1 << 63}, "max_displacement: wanted at most 16384, got"),
        ("correlation", {"stride": 1 << 31}, "stride: wanted at most 16384, got 2147483648"),
        ("correlation", {"scale": math.nan}, "scale: wanted a finite number, got nan"),
        ("correlation", {"scale": -math.inf}, "scale: wanted a finite number, got -inf"),
        ("correlation", {"negative_slope": math.nan}, "negative_slope: wanted a number in (0, 1], got nan"),
        ("warp of labels", {"fill": math.nan}, "fill: wanted an integer that uint8 can hold, got nan"),
        ("warp of labels", {"fill": math.inf}, "fill: wanted an integer that uint8 can hold, got inf"),
        ("warp of labels", {"fill": -1}, "fill: wanted an integer that uint8 can hold, got -1"),
        ("warp", {"fill": math.nan}, "fill: wanted 0 unless mode is 'nearest' and padding 'zeros', got nan"),
        ("aggregate", {"alpha": math.inf}, "alpha: wanted a finite number >= 0, got inf"),
        ("warp_occlusion", {"threshold": math.nan}, "threshold: wanted a number in [0, 1], got nan"),
        ("apply_thresholds", {"ignore_index": -1}, "ignore_index: wanted 0 .. 255, got -1"),
        ("aggregate_labels", {"thresholds": "theta"}, "thresholds: wanted a ClassThresholds, got str"),
        ("consensus", {"predictions": (1, 2)}, "predictions: wanted Predictions, got tuple"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(REFUSED, match=f"^{re.escape(sentence)}"):
        CALLS[name](*SIZES).run(**options)


def test_streaming_thresholds() -> None:
    with pytest.raises(TypeError, match="num_classes: wanted an int, got float"):
        ClassThresholds(3.0)  # type: ignore[arg-type]
    assert ClassThresholds(np.int64(3)).histogram.shape[0] == 3  # type: ignore[arg-type]
    stream = ClassThresholds(3)
    confidence, label = torch.rand(5, requires_grad=True), torch.zeros(5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="confidence: wanted a tensor without gradient"):
        stream.update(confidence, label)
    with pytest.raises(ValueError, match=r"confidence: wanted device cpu .* got meta"):
        stream.update(confidence.detach().to("meta"), label)
    with pytest.raises(TypeError, match="other: wanted a ClassThresholds, got Tensor"):
        stream.merge(stream.histogram)  # type: ignore[arg-type]
    assert stream.counts.sum() == 0


# ---- sizes ----


def of_size(x: Tensor, dim: int, size: int) -> Tensor:
    """x stretched along one dimension, without memory."""
    sizes = list(x.shape)
    sizes[dim] = size
    return x.narrow(dim, 0, 1).expand(sizes)


@EVERY
def test_sizes_that_kernels_cannot_hold(name: str) -> None:
    """Beyond 2^24, beyond 32 bits, beyond 2^31 elements in one plane; the first tensor that has it is named."""
    if CALLS[name](1, 1, 1).any_shape or name == "ClassThresholds.finish":
        return
    for dim, size in ((-1, (1 << 24) + 1), (-2, (1 << 24) + 1), (-1, 1 << 31), (-1, 1 << 40), (-2, 1 << 40)):
        call = CALLS[name](1, 1, 1).map(lambda x, dim=dim, size=size: of_size(x, dim, size) if x.dim() > 2 else x)
        with pytest.raises(
            ValueError, match=r"^\w+: wanted at most 2\^24 along every dimension but the first, got shape"
        ):
            call.run()
        empty = call.map(lambda x: x[:0] if x.dim() > 2 else x)  # no element, but a size that overflows
        with pytest.raises(ValueError, match=r"wanted at most 2\^24 along every dimension but the first"):
            empty.run()
    plane = CALLS[name](1, 1, 1).map(lambda x: of_size(of_size(x, -1, 1 << 16), -2, 1 << 15) if x.dim() > 2 else x)
    with pytest.raises(ValueError, match=r"^\w+: wanted planes that span less than 2\^31 elements, got shape \[1, "):
        plane.run()


@EVERY
def test_planes_that_are_spread_too_far(name: str) -> None:
    """Two rows 2^31 elements apart, on "meta", where there is no memory to be short of."""
    call = CALLS[name](2, 2, 3).map(lambda x: x.to("meta"))
    for argument, x in call.tensors.items():
        if x.dim() > 2 and not call.any_shape:
            spread = torch.empty_strided(x.shape, (*x.stride()[:-2], 1 << 31, 1), dtype=x.dtype, device="meta")
            assert "planes that span less than 2^31 elements" in refusal(call, argument, spread)
