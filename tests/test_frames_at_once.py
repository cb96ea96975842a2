"""Frame by frame: the gradients of the joint step, batch norm that moves once, and the memory of one part."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_cases import NARROW, H, K, W, batch, network
from resnets import with_statistics
from torch import Tensor, nn

from bench import memory
from vda.data.tubes import Batch
from vda.methods import Method
from vda.methods.adaptsegnet import AdaptSegNet, AdaptSegNetSettings
from vda.methods.vat import VAT, VATSettings
from vda.methods.vst import VST, VSTSettings
from vda.models import build_network
from vda.models import network as models
from vda.options import Occlusion

METHODS: dict[str, Callable[[nn.Module, int], Method]] = {
    "vat": lambda net, T: VAT(net, VATSettings(**NARROW), K, T),
    "vst": lambda net, T: VST(net, VSTSettings(source_weight=0.5), Occlusion()),
    "adaptsegnet": lambda net, T: AdaptSegNet(net, AdaptSegNetSettings(**NARROW), K),
}
every_method = pytest.mark.parametrize("name", METHODS)


def build(name: str, T: int, frames_at_once: int, policy: str = "eval", width: int = 8) -> Method:
    """The same method every time, in training mode."""
    torch.manual_seed(0)
    net = with_statistics(build_network("deeplab-resnet18", K, width=width, batch_norm=policy))  # type: ignore[arg-type]
    net.frames_at_once = frames_at_once
    return METHODS[name](net, T).train()


def batches(T: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
    """Two tubes of each domain."""
    both = (batch(seed=seed, frames=T, flow=1.0) for seed in (1, 2))
    return [replace(b, frames=b.frames.to(dtype)) for b in both if b is not None]


def step(method: Method, both: list[Batch]) -> None:
    for group in method.losses(*both):
        torch.stack(list(group.values())).sum().backward()


def gradients(method: Method, T: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Of all parameters, after the losses of one step; and all buffers."""
    step(method.to(dtype), batches(T, dtype))
    found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    assert {name for name, p in method.named_parameters() if p.requires_grad} == set(found)
    return found | dict(method.named_buffers())


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor within `tolerance` of the largest value in it."""
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        error = (found[name].double() - x.double()).abs().max()
        assert error <= tolerance * x.double().abs().max(), (name, error)


@pytest.mark.parametrize(("T", "frames_at_once"), [(2, 1), (4, 1), (4, 3)])
@every_method
def test_gradients_are_those_of_the_joint_step(name: str, T: int, frames_at_once: int) -> None:
    """To rounding: a convolution adds up the gradients of the frames of a batch in another order than the graph does
    those of parts."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        joint = gradients(build(name, T, 0), T, dtype)
        close(gradients(build(name, T, frames_at_once), T, dtype), joint, tolerance)


def dropping(method: Method) -> Method:
    method.network.head = nn.Sequential(nn.Dropout(0.5), method.network.head)
    return method.train()


CHANGES: dict[str, tuple[str, Callable[[Method], Method], Callable[[], Any]]] = {
    "eval": ("eval", lambda method: method, contextlib.nullcontext),
    "affine_frozen": ("affine_frozen", lambda method: method, contextlib.nullcontext),
    "train": ("train", lambda method: method, contextlib.nullcontext),
    "dropout": ("eval", dropping, contextlib.nullcontext),
    "autocast": ("train", lambda method: method, lambda: torch.autocast("cpu", torch.bfloat16)),
}


@pytest.mark.parametrize("change", CHANGES)
@every_method
def test_the_second_pass_repeats_the_first(name: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, gradients and running statistics are those of the same parts with their activations kept."""
    policy, changed, context = CHANGES[change]
    results = []
    for kept in (False, True):
        if kept:
            monkeypatch.setattr(models, "checkpoint", lambda function, part, **_: function(part))
        torch.manual_seed(3)
        method = changed(build(name, 4, 3, policy))
        torch.manual_seed(4)
        with context():
            results.append(gradients(method, 4))
    close(*results, tolerance=0)


@pytest.mark.parametrize("policy", ["train", "affine_frozen", "eval"])
def test_running_statistics_move_once_a_part(policy: str) -> None:
    net = with_statistics(network(policy))
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    images = torch.rand(4, 3, H, W)
    for frames_at_once, parts in ((0, 1), (4, 1), (9, 1), (3, 2), (1, 4)):
        net.frames_at_once = frames_at_once
        before = [int(norm.num_batches_tracked) for norm in norms]
        loss = net(images).square().mean()
        after_forward = [norm.running_mean.clone() for norm in norms]
        loss.backward()
        counted = {int(norm.num_batches_tracked) - n for norm, n in zip(norms, before, strict=True)}
        assert counted == {parts if policy != "eval" else 0}
        assert all(torch.equal(norm.running_mean, x) for norm, x in zip(norms, after_forward, strict=True))
        assert {norm.momentum for norm in norms} == {0.1}


def test_a_graph_that_is_kept_can_be_gone_back_twice() -> None:
    net = with_statistics(network("train"))
    net.frames_at_once = 1
    loss = net(torch.rand(2, 3, H, W)).square().mean()
    parameters = list(net.parameters())
    once, again = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_all_frames_go_at_once(mode: Callable[[], Any]) -> None:
    net = with_statistics(network("eval"))
    sizes = list[int]()
    net.body.layer1.register_forward_hook(lambda _, given, result: sizes.append(len(given[0])))
    images = torch.rand(3, 3, H, W)
    with mode():
        joint = net(images)
        net.frames_at_once = 1
        assert torch.equal(net(images), joint)
    assert sizes == [3, 3]
    net(images)
    assert sizes == [3, 3, 1, 1, 1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_stays(layout: torch.memory_format) -> None:
    net = network("eval").to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.rand(4, 3, H, W)
    joint = net.features(images), net(images)
    net.frames_at_once = 1
    parts = net.features(images), net(images)
    for found, wanted in zip((*parts[0], parts[1]), (*joint[0], joint[1]), strict=True):
        assert found.stride() == wanted.stride()
        assert found.is_contiguous(memory_format=layout)


def test_eight_frames_need_less_than_two() -> None:
    """The peak of a pass forwards and backwards: frame by frame over eight frames, and jointly over two."""

    def passes(frames: int, frames_at_once: int) -> Callable[[], None]:
        net, images = with_statistics(network("eval")), torch.rand(frames, 3, 128, 192)
        net.frames_at_once = frames_at_once
        return lambda: net(images).square().mean().backward()

    assert memory.growth(passes(2, 0), passes(8, 1)) < 0


@pytest.mark.parametrize("name", ["vat", "adaptsegnet"])
def test_a_longer_tube_needs_little_more(name: str) -> None:
    """In a step of a method a frame more costs its maps and what Python keeps of its graph, but no activations."""

    def steps(T: int, frames_at_once: int) -> Callable[[], None]:
        method, both = build(name, T, frames_at_once, width=16), [larger(b) for b in batches(T)]
        step(method, both)  # gradients exist from now on
        return lambda: step(method, both)

    in_parts, jointly = (memory.growth(steps(2, n), steps(4, n)) for n in (1, 0))
    assert in_parts < 0.5 * jointly


def larger(b: Batch) -> Batch:
    """Twice as high and wide."""

    def grown(x: Tensor | None) -> Tensor:
        assert x is not None
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    return replace(b, frames=grown(b.frames), labels=grown(b.labels), flows=grown(b.flows))
