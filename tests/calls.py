"""Small example calls of every op, by name: what the tests that concern all ops iterate over.

A call is made for any sizes, so that it can be repeated with others: `CALLS[name](B, H, W)`. Tensors go by the name of
their argument; "predictions.theta" is a member of the argument `predictions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vda import ops
from vda.ops import ClassThresholds, Predictions

K, C, J = 3, 2, 2  # classes, channels, neighbours


@dataclass(frozen=True)
class Call:
    op: str  # of vda.ops.OPS
    function: Callable[..., Any]
    tensors: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()  # tensors that may be None
    gradients: tuple[str, ...] = ()  # tensors that the result is differentiable in
    any_shape: bool = False  # tensors share a shape, which may be any
    counts: bool = False  # the result is what a ClassThresholds has counted

    def run(self, tensors: Mapping[str, Any] | None = None, **options: Any) -> tuple[Any, ...]:
        """The results, for other tensors and options if given."""
        given: dict[str, Any] = {**self.options, **options}
        members: dict[str, Any] = {}
        for name, x in (self.tensors if tensors is None else tensors).items():
            argument, _, member = name.partition(".")
            (members if member else given)[member or argument] = x
        if members:
            given["predictions"] = Predictions(**members)
        result = self.function(**given)
        return result if isinstance(result, tuple) else (result,)

    def with_(self, **tensors: Any) -> Call:
        """The same call with some tensors exchanged; a dot in a name is written as two underscores."""
        changed = {name.replace("__", "."): x for name, x in tensors.items()}
        return replace(self, tensors={**self.tensors, **changed})

    def map(self, function: Callable[[Tensor], Any]) -> Call:
        """The same call with every tensor changed alike."""
        return replace(self, tensors={name: function(x) for name, x in self.tensors.items()})


def _flow(B: int, H: int, W: int) -> Tensor:
    return 2 * torch.randn(B, 2, H, W)


def _labels(B: int, H: int, W: int) -> Tensor:
    return torch.randint(0, K + 1, (B, H, W), dtype=torch.uint8)  # K is no class


def _warp(B: int, H: int, W: int) -> Call:
    tensors = {"image": torch.randn(B, C, H, W), "flow": _flow(B, H, W)}
    return Call("warp", ops.warp, tensors, gradients=("image", "flow"))


def _warp_labels(B: int, H: int, W: int) -> Call:
    tensors = {"image": _labels(B, H, W), "flow": _flow(B, H, W)}
    return Call("warp", ops.warp, tensors, {"mode": "nearest", "fill": 255})


def _warp_occlusion(B: int, H: int, W: int) -> Call:
    tensors = {"frame": torch.rand(B, C, H, W), "neighbour": torch.rand(B, C, H, W), "flow": _flow(B, H, W)}
    return Call("warp_occlusion", ops.warp_occlusion, tensors, {"alpha": 0.5})


def _correlation(B: int, H: int, W: int) -> Call:
    tensors = {"f1": torch.randn(B, C, H, W), "f2": torch.randn(B, C, H, W)}
    options = {"max_displacement": 4, "stride": 2, "negative_slope": 0.1}
    return Call("correlation", ops.correlation, tensors, options, gradients=("f1", "f2"))


def _aggregate(B: int, H: int, W: int) -> Call:
    tensors = {
        "probs": torch.randn(B, K, H, W).softmax(1),
        "neighbour_probs": torch.randn(B, J, K, H, W).softmax(2),
        "flows": _flow(B * J, H, W).view(B, J, 2, H, W),
        "frame": torch.rand(B, C, H, W),
        "neighbour_frames": torch.rand(B, J, C, H, W),
    }
    return Call("aggregate", ops.aggregate, tensors, {"alpha": 0.5})


def _aggregate_labels(B: int, H: int, W: int) -> Call:
    h, w = H // 2 + 1, W // 2 + 1
    tensors = {
        **_aggregate(B, H, W).tensors,
        "logits": torch.randn(B, K, h, w),
        "neighbour_logits": torch.randn(B, J, K, h, w),
        "weight": 1 + torch.rand(K),
    }
    del tensors["probs"], tensors["neighbour_probs"]
    return Call("aggregate_labels", ops.aggregate_labels, tensors, {"alpha": 0.5}, optional=("weight",))


def _stream(*arrays: Any) -> ClassThresholds:
    """On the device of the arrays; on "meta" if all are there."""
    devices = {getattr(x, "device", "cpu") for x in arrays} - {torch.device("meta")}
    return ClassThresholds(K, device=devices.pop() if devices else "meta")


def _count(**arguments: Any) -> tuple[Any, ...]:
    thresholds = _stream(arguments["frame"], arguments["logits"])
    return *ops.aggregate_labels(**arguments, thresholds=thresholds), thresholds.histogram


def _aggregate_labels_count(B: int, H: int, W: int) -> Call:
    return replace(_aggregate_labels(B, H, W), function=_count, counts=True)


def _class_thresholds(B: int, H: int, W: int) -> Call:
    tensors = {"confidence": torch.rand(B, H, W), "label": _labels(B, H, W), "theta": 0.5 + 0.4 * torch.rand(K)}
    return Call("class_thresholds", ops.class_thresholds, tensors, any_shape=True)


def _update(confidence: Any, label: Any) -> Any:
    thresholds = _stream(confidence, label)
    thresholds.update(confidence, label)
    return thresholds.histogram


def _class_thresholds_update(B: int, H: int, W: int) -> Call:
    tensors = {"confidence": torch.rand(B, H, W).half(), "label": _labels(B, H, W)}
    return Call("class_thresholds", _update, tensors, any_shape=True, counts=True)


def _finish(theta: Any) -> Any:
    return _stream(theta).finish(theta)


def _class_thresholds_finish(B: int, H: int, W: int) -> Call:
    return Call("class_thresholds", _finish, {"theta": 0.5 + 0.4 * torch.rand(K)}, counts=True)


def _apply_thresholds(B: int, H: int, W: int) -> Call:
    tensors = {"label": _labels(B, H, W), "confidence": torch.rand(B, H, W), "theta": torch.rand(K)}
    return Call("apply_thresholds", ops.apply_thresholds, tensors)


def _consensus(B: int, H: int, W: int) -> Call:
    tensors = {
        "label": _labels(B, H, W),
        "reference": _labels(B, H, W),
        "flow": _flow(B, H, W),
        "visible": torch.rand(B, H, W) < 0.5,
    }
    options = {"mode": "fill_in", "ignore_index": K}
    return Call("consensus", ops.consensus, tensors, options, optional=("visible",))


def _consensus_of_predictions(B: int, H: int, W: int) -> Call:
    members = {
        "predictions.confidence": torch.rand(B, H, W).half(),
        "predictions.reference_confidence": torch.rand(B, H, W).half(),
        "predictions.theta": torch.rand(B, K),
        "predictions.reference_theta": torch.rand(K),
    }
    call = _consensus(B, H, W)
    optional = ("visible", "predictions.reference_theta")
    return replace(call, tensors={**call.tensors, **members}, optional=optional)


def _segmentation_sums(B: int, H: int, W: int) -> Call:
    labels = _labels(B, H, W)
    tensors = {"logits": torch.randn(B, K, H // 2 + 1, W // 2 + 1), "labels": torch.where(labels == K, 255, labels)}
    return Call("segmentation_sums", ops.segmentation_sums, tensors, gradients=("logits",))


CALLS: dict[str, Callable[[int, int, int], Call]] = {
    "aggregate": _aggregate,
    "aggregate_labels": _aggregate_labels,
    "aggregate_labels with thresholds": _aggregate_labels_count,
    "apply_thresholds": _apply_thresholds,
    "class_thresholds": _class_thresholds,
    "ClassThresholds.update": _class_thresholds_update,
    "ClassThresholds.finish": _class_thresholds_finish,
    "consensus": _consensus,
    "consensus of predictions": _consensus_of_predictions,
    "correlation": _correlation,
    "segmentation_sums": _segmentation_sums,
    "warp": _warp,
    "warp of labels": _warp_labels,
    "warp_occlusion": _warp_occlusion,
}


def assert_same(got: tuple[Any, ...], wanted: tuple[Any, ...], **tolerance: float) -> None:
    """Equal results: values (to the bit unless a tolerance is given), shapes, element types, strides."""
    assert len(got) == len(wanted)
    for mine, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, other, **(tolerance or {"rtol": 0, "atol": 0}), equal_nan=True)
        assert mine.stride() == other.stride()
