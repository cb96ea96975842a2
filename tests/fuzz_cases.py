"""Random calls of every op, and what their results must be: the cases of test_fuzz.py.

Hypothesis draws what a call looks like, a seed drawn with it fills the arrays. What is a decision (visible or not,
which class) is not compared where it hangs on the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from conftest import hostile_flow, layouts, smooth_flow
from hypothesis import strategies as st
from torch import Tensor

from vda import ops
from vda.ops import ClassThresholds, Predictions
from vda.ops.warp import squared_limit

NAN, INF = math.nan, math.inf
HALVES = (torch.float16, torch.bfloat16)
TYPES = (torch.float32, *HALVES)
FLOWS = (torch.float32, *HALVES, torch.int16)
# Of a sum of few products, against one that was made in another order.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
Results = tuple[Tensor, ...]


@dataclass
class Case:
    run: Callable[[], Any]  # the op under test; runs on several kernels
    check: Callable[[Results], None]
    cpu_only: bool = False


# ---- what is drawn ----


class Draw:
    """Choices by hypothesis; arrays by torch."""

    def __init__(self, data: st.DataObject) -> None:
        self.one_of = lambda *options: data.draw(st.sampled_from(options))
        self.number = lambda low, high: data.draw(st.integers(low, high))
        torch.manual_seed(self.number(0, 1 << 20))

    def size(self) -> tuple[int, int, int]:
        """B, H, W; widths around the strips and tiles of the kernels."""
        W = self.one_of(17, 0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 47, 63, 64, 65, 100, 111, 112, 113, 130, 260)
        return self.one_of(1, 2, 3, 0), self.one_of(5, 1, 2, 3, 4, 9, 17, 0), W

    def flow(self, B: int, H: int, W: int, dtype: torch.dtype) -> Tensor:
        kind = self.one_of("smooth", "hostile", "wild", "halves", "zero")
        if kind == "hostile" or 0 in (B, H, W):
            return hostile_flow(B, H, W, dtype, reach=self.one_of(0.5, 3.0, 40.0))
        if kind == "smooth":
            flow = smooth_flow(B, H, W, self.one_of(0.0, 0.02, 0.1, 0.5))
        elif kind == "wild":  # anywhere in the frame, and a little beyond
            flow = torch.rand(B, 2, H, W) * torch.tensor([W + 2.0, H + 2.0]).view(2, 1, 1) - 2
            flow[:, 0] -= torch.arange(W)
            flow[:, 1] -= torch.arange(H)[:, None]
        else:
            flow = torch.randint(-6, 7, (B, 2, H, W)) * (0.5 if kind == "halves" else 0.0)
        return flow.mul(10).round().clamp(-32768, 32767).to(dtype) if dtype == torch.int16 else flow.to(dtype)

    def layout(self, x: Tensor) -> Tensor:
        """x in some layout; or its first sample in place of all, with a stride of 0."""
        which = self.number(0, 4)
        if which == 4:
            return x[:1].expand_as(x) if len(x) > 1 else x
        return layouts(x)[which] if x.dim() > 1 else x.repeat_interleave(2)[::2]

    def poison(self, x: Tensor) -> Tensor:
        """Some elements that are no numbers, in some of the cases."""
        if x.is_floating_point() and self.one_of(False, False, True):
            x[torch.rand(x.shape) < 0.02] = self.one_of(NAN, INF, -INF)
        return x


# ---- comparisons ----


def close(mine: Tensor, other: Tensor, scale: float = 1.0, where: Tensor | None = None, factor: float = 1.0) -> None:
    """Equal within the tolerance of the type; where the reference is not finite, nothing is asked."""
    assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
    sure = other.isfinite() if where is None else other.isfinite() & where
    tolerance = factor * TOLERANCE[mine.dtype]
    torch.testing.assert_close(mine[sure], other[sure], rtol=tolerance, atol=tolerance * scale)


def equal(*wanted: Tensor) -> Callable[[Results], None]:
    def check(got: Results) -> None:
        for mine, other in zip(got, wanted, strict=True):
            assert mine.dtype == other.dtype
            assert torch.equal(mine, other)

    return check


def sighting(frame: Tensor, neighbour: Tensor, flow: Tensor, occlusion: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """visible [B, H, W] by the reference, and where it is certain: not within rounding of the limit."""
    limit = squared_limit(**occlusion)
    _, visible = ops.warp_occlusion_reference(frame, neighbour, flow, **occlusion)
    warped = ops.warp_reference(neighbour.double(), flow)
    error = (frame.double() - warped).square().sum(1)
    size = frame.double().square().sum(1) + warped.square().sum(1)
    # Taps of weight 0 may be read or not, so what they hold, if it is no number, may count or not.
    touched = ops.warp_reference(torch.where(neighbour.isfinite(), 0.0, NAN).double(), flow).isnan().any(1)
    return visible, ((error - limit).abs() > 1e-5 * size + 1e-12) & ~touched | ~error.isfinite() & ~touched


# ---- the ops ----


def fuzz_warp(draw: Draw) -> Case:
    B, H, W = draw.size()
    mode, padding = draw.one_of("bilinear", "nearest"), draw.one_of("zeros", "border")
    dtype = draw.one_of(*TYPES, torch.float64, torch.uint8, torch.int32, torch.int64)
    flow = draw.layout(draw.flow(B, H, W, draw.one_of(*FLOWS)))
    if not dtype.is_floating_point:
        image = draw.layout(torch.randint(0, 100, (B, H, W), dtype=dtype))
        options = {"mode": "nearest", "padding": padding, "fill": 0 if padding == "border" else draw.one_of(0, 7, 100)}
        return Case(lambda: ops.warp(image, flow, **options), equal(ops.warp_reference(image, flow, **options)))
    scale = draw.one_of(1.0, 1e4) if dtype == torch.float16 else draw.one_of(1.0, 1e-20, 1e30)
    image = draw.layout(draw.poison((scale * torch.randn(B, draw.number(0, 4), H, W)).to(dtype)))
    options = {"mode": mode, "padding": padding}
    holes = torch.where(image.isfinite(), image, NAN)
    wanted = ops.warp_reference(holes, flow, **options)
    hit = ops.warp_reference((~image.isfinite()).float(), flow, **options) > 1e-6

    def check(got: Results) -> None:
        close(got[0], wanted, scale)
        assert not got[0][hit].isfinite().any()

    return Case(lambda: ops.warp(image, flow, **options), check)


def fuzz_warp_gradients(draw: Draw) -> Case:
    B, H, W = draw.size()
    options = {"mode": draw.one_of("bilinear", "nearest"), "padding": draw.one_of("zeros", "border")}
    dtype = draw.one_of(*TYPES)
    image = draw.layout(torch.randn(B, draw.number(0, 3), H, W).to(dtype))
    flow = draw.layout(draw.flow(B, H, W, draw.one_of(*FLOWS[:3])))
    grad = draw.layout(torch.randn(image.shape).to(dtype))
    exact = [image.float().requires_grad_(), flow.detach().clone().requires_grad_()]
    out = ops.warp_reference(exact[0], exact[1], **options)
    wanted = torch.autograd.grad(out, exact, grad.float(), allow_unused=True, materialize_grads=True)

    def run() -> Results:
        inputs = [image.detach().requires_grad_(), flow.detach().requires_grad_()]
        return torch.autograd.grad(ops.warp(*inputs, **options), inputs, grad)

    def check(got: Results) -> None:
        count = max(1.0, float(H * W) ** 0.5)  # so many may land on one pixel
        close(got[0], wanted[0].to(dtype), 3 * count)
        close(got[1], wanted[1], 10 * image.shape[1] * count, factor=4)

    return Case(run, check)


def fuzz_warp_occlusion(draw: Draw) -> Case:
    B, H, W = draw.size()
    dtype, C = draw.one_of(*TYPES, torch.float64), draw.number(0, 4)
    frame = draw.layout(draw.poison(torch.rand(B, C, H, W).to(dtype)))
    neighbour = draw.layout(draw.poison((0.5 + 0.2 * torch.randn(B, C, H, W)).to(dtype)))
    flow = draw.layout(draw.flow(B, H, W, draw.one_of(*FLOWS)))
    options = occlusion(draw)
    wanted = ops.warp_reference(torch.where(neighbour.isfinite(), neighbour, NAN), flow)
    visible, sure = sighting(frame, neighbour, flow, options)

    def check(got: Results) -> None:
        close(got[0], wanted, 2.0)
        assert torch.equal(got[1][sure], visible[sure])

    return Case(lambda: ops.warp_occlusion(frame, neighbour, flow, **options), check)


def occlusion(draw: Draw) -> dict[str, Any]:
    return {
        "alpha": draw.one_of(1.0, 0.0, 0.3, 5.0, 1e6),
        "threshold": draw.one_of(0.7, 0.0, 1.0, 0.5, 0.999),
        "squared": draw.one_of(False, True),
    }


def fuzz_correlation(draw: Draw) -> Case:
    B, H, W = draw.size()
    dtype, C = draw.one_of(*TYPES, torch.float64), draw.one_of(3, 1, 2, 16, 31, 33, 65)
    f1, f2 = (draw.layout(draw.poison(torch.randn(B, C, H, W).to(dtype))) for _ in range(2))
    options = {
        "max_displacement": draw.one_of(2, 1, 3, 4, 7),
        "stride": draw.one_of(1, 2, 3, 8),
        "scale": draw.one_of(None, 1.0, -0.5),
        "negative_slope": draw.one_of(1.0, 0.1),
    }
    wanted = ops.correlation_reference(f1.double(), f2.double(), **options).to(dtype)
    # An infinite feature times the zeros outside the frame: whether that is a number is not promised.
    ones = torch.ones_like(f1, dtype=torch.float64)
    both = {"max_displacement": options["max_displacement"], "stride": options["stride"], "scale": 1.0}
    bad = [torch.where(x.isfinite(), 0.0, 1.0).double() for x in (f1, f2)]
    sure = ops.correlation_reference(bad[0], ones, **both) + ops.correlation_reference(ones, bad[1], **both) == 0
    at_edge = bad[0].sum(1, keepdim=True) > 0
    return Case(
        lambda: ops.correlation(f1, f2, **options),
        lambda got: close(got[0], wanted, 4.0, sure & ~at_edge),
        cpu_only=options["negative_slope"] != 1 or options["scale"] is not None,  # left out by csrc/correlation.cu
    )


def fuzz_correlation_gradients(draw: Draw) -> Case:
    B, H, W = draw.size()
    dtype, C = draw.one_of(*TYPES), draw.one_of(3, 1, 2, 17, 33)
    options = {"max_displacement": draw.one_of(2, 1, 3, 5), "stride": draw.one_of(1, 2, 4)}
    f1, f2 = (draw.layout(torch.randn(B, C, H, W).to(dtype)) for _ in range(2))
    D = 2 * (options["max_displacement"] // options["stride"]) + 1
    grad = draw.layout(torch.randn(B, D * D, H, W).to(dtype))
    exact = [x.double().requires_grad_() for x in (f1, f2)]
    wanted = torch.autograd.grad(ops.correlation_reference(exact[0], exact[1], **options), exact, grad.double())

    def run() -> Results:
        inputs = [x.detach().requires_grad_() for x in (f1, f2)]
        return torch.autograd.grad(ops.correlation(*inputs, **options), inputs, grad)

    def check(got: Results) -> None:
        for mine, other in zip(got, wanted, strict=True):
            close(mine, other.to(dtype), 4.0 * D)

    return Case(run, check)


def neighbourhood(draw: Draw, B: int, H: int, W: int) -> tuple[dict[str, Tensor], dict[str, Any], Tensor, Tensor]:
    """flows, frame and neighbour_frames; the options; visible and certain [B, J, H, W]."""
    J, C = draw.one_of(2, 0, 1, 3), draw.number(0, 3)
    dtype, flow_type = draw.one_of(*TYPES), draw.one_of(*FLOWS)
    flows = [draw.flow(B, H, W, flow_type) for _ in range(J)]
    tensors = {
        "flows": torch.stack(flows, 1) if J else torch.zeros(B, 0, 2, H, W, dtype=flow_type),
        "frame": draw.poison(torch.rand(B, C, H, W).to(dtype)),
        "neighbour_frames": draw.poison((0.5 + 0.2 * torch.randn(B, J, C, H, W)).to(dtype)),
    }
    tensors = {name: draw.layout(x) for name, x in tensors.items()}
    options = occlusion(draw)
    frame, others = tensors["frame"].float(), tensors["neighbour_frames"].float()
    seen = [sighting(frame, others[:, j], tensors["flows"][:, j], options) for j in range(J)]
    none = torch.ones(B, 0, H, W, dtype=torch.bool)
    visible, sure = (torch.stack(x, 1) if J else none for x in (zip(*seen, strict=True) if J else ((), ())))
    return tensors, options, visible, sure


def fuzz_aggregate(draw: Draw) -> Case:
    B, H, W = draw.size()
    tensors, options, _, sure = neighbourhood(draw, B, H, W)
    J, K = tensors["flows"].shape[1], draw.one_of(3, 0, 1, 2, 19, 33, 40)
    dtype = draw.one_of(*TYPES)
    probs = draw.layout(draw.poison(torch.randn(B, K, H, W).softmax(1).to(dtype)))
    others = draw.layout(draw.poison(torch.randn(B, J, K, H, W).softmax(2).to(dtype)))
    holes = [torch.where(x.isfinite(), x, NAN) for x in (probs, others)]
    wanted = ops.aggregate_reference(*holes, **tensors, **options)

    def check(got: Results) -> None:
        close(got[0], wanted, where=sure.all(1, keepdim=True))
        assert not got[0][~probs.isfinite()].isfinite().any()

    return Case(lambda: ops.aggregate(probs, others, **tensors, **options), check)


def probabilities(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Softmax of the upsampled logits, in float64; NaN where a logit that is not finite comes near."""
    if 0 in (len(logits), *size):
        return torch.zeros(*logits.shape[:2], *size).double()
    bad = ~logits.isfinite()
    up = torch.where(bad, 0, logits).double()
    up = torch.nn.functional.interpolate(up, size, mode="bilinear", align_corners=align_corners)
    reach = []  # [to, from]: which logits a pixel may read, on either side where it lies upon one
    for to, n in zip(size, logits.shape[-2:], strict=True):
        i = torch.arange(to).double()
        at = i * (n - 1) / max(to - 1, 1) if align_corners else (i + 0.5) * n / to - 0.5
        j, at = torch.arange(n), at.clamp(0, n - 1)[:, None]
        reach.append(((j > at - 1 - 1e-3) & (j < at + 1 + 1e-3)).double())
    touched = reach[0] @ bad.any(1, keepdim=True).double() @ reach[1].T > 0
    return torch.where(touched, NAN, up.softmax(1))


def fuzz_aggregate_labels(draw: Draw) -> Case:
    B, H, W = draw.size()
    tensors, options, _, sure = neighbourhood(draw, B, H, W)
    J, K = tensors["flows"].shape[1], draw.one_of(3, 1, 2, 19, 40)
    h, w = draw.one_of(3, 1, 2, 9), draw.one_of(5, 1, 2, 16, 17, 33, 70)
    dtype, size = draw.one_of(*TYPES), draw.one_of(3.0, 0.0, 100.0)
    logits, others = (
        draw.layout(draw.poison((size * torch.randn(*shape, h, w)).to(dtype))) for shape in ((B, K), (B, J, K))
    )
    weight = draw.one_of(None, 0.5 + torch.rand(K))
    options |= {"align_corners": draw.one_of(True, False), "weight": weight}
    factors = torch.ones(K) if weight is None else weight
    exact = [probabilities(x, (H, W), options["align_corners"]) for x in (logits, *others.unbind(1))]
    stacked = torch.stack(exact[1:], 1) if J else torch.zeros(B, 0, K, H, W).double()
    where = {name: options[name] for name in ("alpha", "threshold", "squared")}
    mixed = ops.aggregate_reference(exact[0].float(), stacked.float(), **tensors, **where) * factors[:, None, None]
    best = mixed.max(1).values
    sure = sure.all(1) & mixed.isfinite().all(1)
    two = mixed.nan_to_num().topk(min(K, 2), 1).values
    clear = sure & ((two[:, 0] - two[:, -1] > 1e-4 * (1 + size)) | (K == 1))
    label = mixed.nan_to_num().argmax(1)
    counts = draw.one_of(False, True)

    def run() -> Any:
        thresholds = ClassThresholds(K) if counts else None
        got = ops.aggregate_labels(logits, others, **tensors, **options, thresholds=thresholds)
        if thresholds is not None:
            again = ClassThresholds(K)
            again.update(got[1], got[0])
            assert torch.equal(again.histogram, thresholds.histogram)
        return got

    def check(got: Results) -> None:
        assert torch.equal(got[0][clear].long(), label[clear])
        off = (got[1].float() - best).abs()[sure]
        assert (off <= 2.0**-11 * best[sure] + 2e-5 * (1 + size)).all()
        assert ((got[0] < K) | (got[0] == 255)).all()
        assert (got[1][got[0] == 255] == 0).all()

    return Case(run, check)


def confidence_and_label(draw: Draw, shape: tuple[int, ...], K: int) -> tuple[Tensor, Tensor]:
    confidence = torch.rand(shape)
    if draw.one_of(False, True):
        confidence = confidence.mul(8).round().div(8)  # ties, with thresholds too
    for value in (NAN, INF, -INF, -0.0, 1.0, 1.5, -0.25, 1e-7):
        confidence[torch.rand(shape) < 0.02] = value
    label = torch.randint(0, K + 2, shape).byte()
    label[label == K + 1] = 255
    return draw.layout(confidence.to(draw.one_of(*TYPES))), draw.layout(label)


def thetas(draw: Draw, *shape: int) -> Tensor:
    theta = torch.rand(*shape).mul(8).round().div(8) if draw.one_of(True, False) else torch.rand(*shape)
    return draw.layout(theta.to(draw.one_of(torch.float32, torch.float64)))


def fuzz_class_thresholds(draw: Draw) -> Case:
    K = draw.one_of(3, 1, 19, 0)
    shape = (draw.one_of(2, 1, 0), draw.one_of(5, 1, 40), draw.one_of(17, 1, 100))
    confidence, label = confidence_and_label(draw, shape, min(K, 200))
    label = label.to(draw.one_of(torch.uint8, torch.int32, torch.int64))
    theta = thetas(draw, K)
    options = {
        "alpha": draw.one_of(0.2, 0.0, 1.0, 0.37),
        "beta": draw.one_of(0.9, 0.0, 1.0),
        "gamma": draw.one_of(8.0, 0.0, 1.0, 2.0),
        "rule": draw.one_of(*ops.thresholds.RULES),
    }
    wanted = ops.class_thresholds_reference(confidence, label, theta, **options)

    def run() -> Results:
        stream = ClassThresholds(max(K, 1), **options)
        stream.update(confidence, label)
        return ops.class_thresholds(confidence, label, theta, **options), stream.finish(theta) if K else theta

    def check(got: Results) -> None:
        tolerance = {"rtol": 1e-12 if theta.dtype == torch.float64 else 2e-7, "atol": 0.0}
        torch.testing.assert_close(got[0], wanted, **tolerance)
        if confidence.dtype == torch.float16:
            assert torch.equal(got[1], got[0])

    return Case(run, check)


def fuzz_apply_thresholds(draw: Draw) -> Case:
    B, H, W = draw.size()
    K = draw.one_of(3, 0, 1, 200, 255)
    label, confidence = confidence_and_label(draw, (B, H, W), min(K, 200))[::-1]
    theta = thetas(draw, K) if draw.one_of(True, False) else thetas(draw, B, K)
    options = {"rule": draw.one_of(*ops.thresholds.RULES), "ignore_index": draw.one_of(255, 0, 7)}
    wanted = ops.apply_thresholds_reference(label, confidence, theta, **options)
    return Case(lambda: ops.apply_thresholds(label, confidence, theta, **options), equal(wanted))


def fuzz_consensus(draw: Draw) -> Case:
    B, H, W = draw.size()
    K, ignore = draw.one_of(2, 1, 5, 200), draw.one_of(255, 0, 7)
    confidence, label = confidence_and_label(draw, (B, H, W), K)
    other, reference = confidence_and_label(draw, (B, H, W), K)
    flow = draw.layout(draw.flow(B, H, W, draw.one_of(*FLOWS)))
    options: dict[str, Any] = {"mode": draw.one_of("strict", "lenient", "fill_in"), "ignore_index": ignore}
    if options["mode"] == "fill_in" and draw.one_of(True, False):
        options["visible"] = draw.layout(torch.rand(B, H, W) < 0.5)
    if draw.one_of(False, True):
        theta = [thetas(draw, K) if draw.one_of(True, False) else thetas(draw, B, K) for _ in range(2)]
        rule, second = draw.one_of(*ops.thresholds.RULES), draw.one_of(None, theta[1])
        options["predictions"] = Predictions(confidence, other.to(confidence.dtype), theta[0], second, rule)
    wanted = ops.consensus_reference(label, reference, flow, **options)
    return Case(lambda: ops.consensus(label, reference, flow, **options), equal(wanted))


FUZZ: dict[str, Callable[[Draw], Case]] = {
    name.removeprefix("fuzz_"): function for name, function in list(globals().items()) if name.startswith("fuzz_")
}
