"""Arrays of other libraries: into every op without a copy, and the same kind comes out."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from calls import CALLS, Call, assert_same
from conftest import Backend
from torch import Tensor

from vda.ops import ClassThresholds, Predictions, _lib, aggregate_labels, consensus, correlation, warp

EVERY = pytest.mark.parametrize("name", CALLS)
SIZES = (2, 5, 7)


def as_tensors(results: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(torch.from_dlpack(x) for x in results)


class Foreign:
    """An array type that speaks only DLPack."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: object) -> object:
        return self.tensor.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> type[Foreign]:
    library = SimpleNamespace(from_dlpack=lambda x: Foreign(torch.from_dlpack(x)))
    monkeypatch.setitem(sys.modules, Foreign.__module__.partition(".")[0], library)
    return Foreign


# ---- NumPy ----


@EVERY
def test_numpy_in_numpy_out(backend: Backend, name: str) -> None:
    if backend.device != "cpu":
        pytest.skip("NumPy has no arrays there")
    call = CALLS[name](*SIZES)
    wanted = call.run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = call.map(Tensor.numpy).run()
    kinds = (np.ndarray, Tensor) if call.counts else np.ndarray  # the counts themselves are a tensor
    assert all(isinstance(x, kinds) for x in found)
    assert_same(as_tensors(found), wanted, rtol=1e-5, atol=1e-6)
    assert_same(call.run(), wanted, rtol=1e-5, atol=1e-6)


@EVERY
@pytest.mark.parametrize("library", ["numpy", "foreign"])
def test_nothing_is_copied(name: str, library: str, foreign: type[Foreign], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels get the addresses of the arrays themselves."""
    call = CALLS[name](*SIZES)
    if "theta" in call.tensors and call.op == "class_thresholds":  # thresholds are computed in float64
        call = call.with_(theta=call.tensors["theta"].double())
    addresses: set[int] = set()
    launch = _lib.call

    def spy(function: str, first: Tensor, **members: Any) -> None:
        addresses.update(x.data_ptr() for x in members.values() if isinstance(x, Tensor))
        launch(function, first, **members)

    monkeypatch.setattr(_lib, "call", spy)
    call.map(Tensor.numpy if library == "numpy" else foreign).run()
    for argument, x in call.tensors.items():
        assert x.data_ptr() in addresses, argument


def layouts(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same values in every form in which NumPy may hold them."""
    read_only = x.copy()
    read_only.flags.writeable = False
    odd = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)  # begins at an odd address
    odd[...] = x
    record = np.zeros(x.shape, np.dtype([("x", x.dtype), ("tag", np.uint8)]))  # steps are no multiple of the size
    record["x"] = x
    every = tuple(slice(None, None, -1) for _ in x.shape)
    return {
        "read-only": read_only,
        "negative strides": x[every].copy()[every],
        "Fortran order": np.asfortranarray(x),
        "broadcast": np.broadcast_to(x, (1, *x.shape))[0],
        "unaligned": odd,
        "field of a record": record["x"],
        "subclass": x.view(type("Mine", (np.ndarray,), {})),
    }


@EVERY
@pytest.mark.parametrize("layout", list(layouts(np.zeros(1))))
def test_numpy_layouts(name: str, layout: str) -> None:
    call = CALLS[name](*SIZES)
    given = {argument: layouts(x.numpy())[layout] for argument, x in call.tensors.items()}
    before = {argument: x.copy() for argument, x in given.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(as_tensors(call.run(given)), call.run())
    for argument, x in given.items():
        assert np.array_equal(x, before[argument])


@EVERY
def test_numpy_without_elements(name: str) -> None:
    for sizes in ((0, 5, 7), (2, 0, 7), (2, 5, 0)):
        call = CALLS[name](*sizes)
        given = {argument: x.numpy()[..., :: 1 if x.numel() else -1] for argument, x in call.tensors.items()}
        for found, wanted in zip(as_tensors(call.run(given)), call.run(), strict=True):
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)  # NumPy gives such arrays other strides


def test_memory_map(tmp_path: Any) -> None:
    labels = np.memmap(tmp_path / "labels.bin", np.uint8, "w+", shape=(1, 4, 6))
    labels[:] = np.arange(24).reshape(1, 4, 6)
    found = warp(labels, np.zeros((1, 2, 4, 6), np.float32), mode="nearest")
    assert np.array_equal(found, labels)


# ---- which kind comes out ----


@EVERY
def test_first_array_decides(name: str, foreign: type[Foreign]) -> None:
    """By the order of the op's own parameters, however the call is spelled."""
    call = CALLS[name](*SIZES)
    if len(call.tensors) == 1 or call.counts:
        return
    first, *others = call.tensors
    if call.op == "aggregate_labels":
        first, others = "logits", [argument for argument in call.tensors if argument != "logits"]
    mixed = {argument: call.tensors[argument].numpy() for argument in reversed(others)}
    assert all(isinstance(x, Tensor) for x in call.run({**mixed, first: call.tensors[first]}))
    tensors = {argument: call.tensors[argument] for argument in reversed(others)}
    assert all(isinstance(x, np.ndarray) for x in call.run({**tensors, first: call.tensors[first].numpy()}))
    assert all(isinstance(x, Foreign) for x in call.run({**mixed, first: foreign(call.tensors[first])}))


def test_members_of_predictions_alone() -> None:
    """They come last: label decides, but arrays among them are read all the same."""
    call = CALLS["consensus of predictions"](*SIZES)
    given = {n: x.numpy() if n.startswith("predictions.") else x for n, x in call.tensors.items()}
    found = call.run(given)
    assert isinstance(found[0], Tensor)
    assert_same(found, call.run())
    predictions = Predictions(
        *(given[f"predictions.{member}"] for member in ("confidence", "reference_confidence", "theta"))
    )
    before = predictions.theta
    labels = [call.tensors[n] for n in ("label", "reference", "flow")]
    assert isinstance(consensus(*labels, predictions=predictions), Tensor)
    assert predictions.theta is before


def test_thresholds_fed_with_arrays() -> None:
    """A whole clip without a tensor in sight, counted by two ops into one stream."""
    call = CALLS["aggregate_labels"](*SIZES)
    arrays = call.map(Tensor.numpy)
    ours, theirs = ClassThresholds(3), ClassThresholds(3)
    for _ in range(2):
        label, confidence = aggregate_labels(**call.tensors, **call.options, thresholds=ours)
        other_label, other_confidence = aggregate_labels(**arrays.tensors, **call.options, thresholds=theirs)
        ours.update(confidence, label)
        theirs.update(other_confidence, other_label)
    assert torch.equal(ours.histogram, theirs.histogram)
    theta = np.full(3, 0.9, np.float32)
    found = theirs.finish(theta)
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, ours.finish(torch.from_numpy(theta)).numpy())


def test_namespace_of_the_array_wins(foreign: type[Foreign]) -> None:
    """Libraries whose arrays live in another module than their functions (JAX) say where those are."""

    class Elsewhere(Foreign):
        def __array_namespace__(self) -> Any:
            return SimpleNamespace(from_dlpack=lambda x: Elsewhere(torch.from_dlpack(x)))

    call = CALLS["warp"](*SIZES)
    assert isinstance(call.map(Elsewhere).run()[0], Elsewhere)


# ---- what cannot be done ----


def test_no_gradient_is_lost_to_another_library() -> None:
    call = CALLS["warp"](*SIZES)
    image, flow = call.tensors["image"].numpy(), call.tensors["flow"].clone().requires_grad_()
    with pytest.raises(ValueError, match=r"^flow: wanted a tensor without gradient \(the first array is a ndarray"):
        warp(image, flow)
    with torch.no_grad():
        assert isinstance(warp(image, flow), np.ndarray)
    out = warp(call.tensors["image"].requires_grad_(), flow.detach().numpy())  # a tensor comes first
    assert torch.autograd.grad(out.sum(), call.tensors["image"])


def test_autocast_is_for_tensors() -> None:
    """NumPy has no bfloat16 to hand back."""
    f1, f2 = (torch.randn(1, 3, 4, 5) for _ in range(2))
    wanted = correlation(f1, f2, max_displacement=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = correlation(f1.numpy(), f2.numpy(), max_displacement=2)
    assert np.array_equal(found, wanted.numpy())


class Broken(Foreign):
    def __dlpack__(self, **options: object) -> object:
        raise BufferError("no memory of this kind")


def test_arrays_that_cannot_be_read() -> None:
    call: Call = CALLS["warp"](*SIZES)
    with pytest.raises(
        TypeError, match=r"^flow: wanted an array that torch can read, got a test_arrays.Broken \(no mem"
    ):
        warp(call.tensors["image"], Broken(call.tensors["flow"]))
    with pytest.raises(TypeError, match=r"^image: wanted an array whose library has from_dlpack, got a Foreign$"):
        warp(Foreign(call.tensors["image"]), Foreign(call.tensors["flow"]))
    with pytest.raises(TypeError, match="unexpected keyword argument 'flows'"):
        warp(call.tensors["image"], call.tensors["flow"], flows=call.tensors["flow"].numpy())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="too many positional arguments"):
        warp(*(x.numpy() for x in call.tensors.values()), "nearest")  # type: ignore[misc]


# ---- CuPy ----


@EVERY
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cupy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero copy both ways, on CuPy's stream as on torch's."""
    cupy = pytest.importorskip("cupy")
    call = CALLS[name](*SIZES).map(lambda x: x.cuda())
    if "theta" in call.tensors and call.op == "class_thresholds":
        call = call.with_(theta=call.tensors["theta"].double())
    wanted = call.run()
    arrays = call.map(cupy.from_dlpack)
    addresses: set[int] = set()
    launch = _lib.call

    def spy(function: str, first: Tensor, **members: Any) -> None:
        addresses.update(x.data_ptr() for x in members.values() if isinstance(x, Tensor))
        launch(function, first, **members)

    monkeypatch.setattr(_lib, "call", spy)
    found = arrays.run()
    assert all(isinstance(x, (cupy.ndarray, Tensor) if call.counts else cupy.ndarray) for x in found)
    assert_same(as_tensors(found), wanted)
    assert {x.data.ptr for x in arrays.tensors.values()} <= addresses
    turned = arrays.map(lambda x: x[..., ::-1].copy()[..., ::-1])
    assert_same(as_tensors(turned.run()), wanted)
    with cupy.cuda.Stream(non_blocking=True):  # made on a stream of CuPy's own
        delayed = arrays.map(lambda x: x.copy())
        assert_same(as_tensors(delayed.run()), wanted)
