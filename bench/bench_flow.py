"""Flow of a pair: FlowNet2 with our correlation and with compositions of it, both directions, DIS, the flow cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from bench import compositions, inputs, work
from bench.harness import Bench, Call, Prepare
from vda.data.motion import motion
from vda.flow.cache import CachedFlow, precompute
from vda.flow.flownet2 import VARIANTS, Estimator, build_estimator
from vda.flow.providers import DISFlow, ExactFlow

Preset = Literal["medium", "fast", "ultrafast"]
PRESETS: tuple[Preset, ...] = ("medium", "fast", "ultrafast")


@functools.lru_cache(maxsize=1)
def network(variant: str, device: torch.device) -> Estimator:
    """Random weights of the published width."""
    torch.manual_seed(0)
    built = build_estimator(variant)
    built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return built.to(device).eval().requires_grad_(False)


def estimate(
    variant: str,
    run: Callable[[Estimator, Tensor, Tensor], Any],
    *,
    correlation: Callable[[Tensor, Tensor], Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Prepare:
    """The network on a pair; dtype: of autocast."""

    def prepare(first: Tensor, second: Tensor) -> Call:
        net = network(variant, first.device)
        pair = [x.contiguous(memory_format=torch.channels_last) for x in (first, second)]

        def call() -> Any:
            autocast = torch.autocast(first.device.type, dtype, enabled=dtype is not None)
            substituted = nullcontext() if correlation is None else compositions.in_flownet(correlation)
            with torch.inference_mode(), autocast, substituted:
                return run(net, *pair)

        return call

    return prepare


def one(net: Estimator, first: Tensor, second: Tensor) -> Tensor:
    return net(first, second)


C = functools.partial(estimate, "flownet2-c")
ROWS = {
    "ours": C(one),
    "torch": C(one, correlation=compositions.correlation),
    "banded bmm": C(one, correlation=compositions.correlation_bmm),
}
BOTH = {
    "ours": C(lambda net, first, second: net.both(first, second)),
    "two calls": C(lambda net, first, second: (net(first, second), net(second, first))),
}
WHOLE = {"ours": estimate("flownet2", one, dtype=torch.bfloat16)}


def precision(bench: Bench) -> tuple[str, float]:
    """Kind and tolerance: on a GPU torch rounds what convolutions read to TF32."""
    return ("TF32", 0.05) if bench.device.type == "cuda" else ("float32", 1e-3)


def pair(H: int, W: int) -> tuple[Tensor, Tensor]:
    _, frame, near = inputs.scene(H, W, 1)
    return frame.clamp(0, 1), near[:, 0].clamp(0, 1)


@pytest.mark.parametrize("row", ROWS)
def test_flownet2_c(bench: Bench, row: str) -> None:
    H, W = bench.size(512, 1024)
    kind, atol = precision(bench)
    bench.case("FlowNet2-C", f"{H}×{W}", work.flow_network(VARIANTS["flownet2-c"], H, W, kind), kind)
    bench.time(ROWS, *pair(H, W), atol=atol)


@pytest.mark.parametrize("row", BOTH)
def test_both_directions(bench: Bench, row: str) -> None:
    H, W = bench.size(512, 1024)
    kind, atol = precision(bench)
    done = work.flow_network(VARIANTS["flownet2-c"], H, W, kind, both=True)
    bench.case("FlowNet2-C both", f"{H}×{W}", done, kind)
    bench.time(BOTH, *pair(H, W), atol=atol)


@pytest.mark.gpu_only
@pytest.mark.parametrize("row", WHOLE)
def test_flownet2(bench: Bench, row: str) -> None:
    H, W = bench.size(1024, 2048)
    bench.case("FlowNet2", f"{H}×{W}", work.flow_network(VARIANTS["flownet2"], H, W, "bfloat16"), "bfloat16")
    bench.time(WHOLE, *pair(H, W))


@pytest.mark.cpu_only
@pytest.mark.parametrize("row", ["OpenCV"])
@pytest.mark.parametrize("preset", PRESETS)
def test_dis(bench: Bench, preset: Preset, row: str) -> None:
    """Three estimators of three qualities: nothing to compare, so each is a case of its own."""
    H, W = bench.size(512, 1024)
    bench.case(f"DIS {preset}", f"{H}×{W}", work.dis(H, W), "uint8")
    frames = [(255 * x[0].permute(1, 2, 0)).byte() for x in pair(H, W)]

    def prepare(first: Tensor, second: Tensor) -> Call:
        return lambda: torch.from_numpy(DISFlow(preset).between(first.numpy(), second.numpy()))

    bench.time({row: prepare}, *frames)


@pytest.mark.cpu_only
@pytest.mark.parametrize("row", ["ours"])
def test_cached_flow(bench: Bench, row: str, tmp_path: Path) -> None:
    """A file that the operating system holds in memory already, as after the first epoch."""
    H, W = bench.size(512, 1024)
    bench.case("flow cache", f"{H}×{W}", work.cached_flow(H, W), "int16")
    every = motion("val", size=(H, W))
    data = replace(every, clips=every.clips[1:2])
    precompute(ExactFlow(), data, tmp_path)
    cached = CachedFlow(tmp_path, data, "exact")
    bench.time({row: lambda: lambda: torch.from_numpy(cached(data.clips[0], 0, 1))})
