"""PSPNet's head: against a second computation, one image at a time, published sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vda.models import build_network
from vda.models.pspnet import PyramidPooling


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def average(x: Tensor, size: int) -> Tensor:
    """[N, C, h, w] -> [N, C, size, size]; where h is no multiple of size, parts overlap."""
    h, w = x.shape[-2:]

    def part(i: int, n: int) -> slice:
        return slice(i * n // size, -(-(i + 1) * n // size))

    rows = [torch.stack([x[..., part(i, h), part(j, w)].mean((-2, -1)) for j in range(size)], -1) for i in range(size)]
    return torch.stack(rows, -2)


def stretch(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners, as two matrix products."""

    def matrix(n: int, m: int) -> Tensor:
        if n == 1:
            return torch.ones(m, 1, dtype=x.dtype)
        at = torch.arange(m, dtype=x.dtype) * (n - 1) / max(1, m - 1)
        return (1 - (at[:, None] - torch.arange(n)).abs()).clamp(min=0)

    return matrix(x.shape[-2], size[0]) @ x @ matrix(x.shape[-1], size[1]).T


def unit(x: Tensor, s: dict[str, Tensor], key: str, group: int) -> Tensor:
    w = s[key + ".0.weight"]
    x = F.conv2d(x, w, padding=w.shape[-1] // 2)
    grouped = x.unflatten(1, (-1, group)).flatten(2)
    grouped = (grouped - grouped.mean(-1, True)) / (grouped.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return (grouped.view_as(x) * s[key + ".1.weight"][:, None, None] + s[key + ".1.bias"][:, None, None]).clamp(min=0)


@pytest.mark.parametrize("size", [(12, 18), (7, 11), (1, 1), (5, 1)])
@pytest.mark.parametrize(("channels", "group"), [(32, 8), (64, 16), (256, 16), (40, 2)])
def test_head_equals_a_plain_computation(channels: int, group: int, size: tuple[int, int]) -> None:
    head = PyramidPooling(channels, 5).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    s, x = head.state_dict(), torch.randn(2, channels, *size, dtype=torch.float64)
    levels = [stretch(unit(average(x, n), s, f"contexts.{i}", group), size) for i, n in enumerate((1, 2, 3, 6))]
    merged = unit(torch.cat([x, *levels], 1), s, "merge", group)
    torch.testing.assert_close(head(x), F.conv2d(merged, s["classify.weight"], s["classify.bias"]))


def test_published_sizes() -> None:
    head = PyramidPooling(2048, 19)  # on ResNet-50
    shapes = {k: tuple(v.shape) for k, v in head.named_parameters() if v.ndim == 4}
    assert shapes == {f"contexts.{i}.0.weight": (512, 2048, 1, 1) for i in range(4)} | {
        "merge.0.weight": (512, 4096, 3, 3),
        "classify.weight": (19, 512, 1, 1),
    }
    norms = [m for m in head.modules() if isinstance(m, nn.GroupNorm)]
    assert [(m.num_groups, m.num_channels) for m in norms] == [(32, 512)] * 5
    assert head.dropout.p == 0.1


@pytest.mark.parametrize("policy", ["train", "affine_frozen", "eval"])
@pytest.mark.parametrize("name", ["pspnet-resnet18", "pspnet-resnet50"])
def test_one_image_teaches_all_of_the_head(name: str, policy: str) -> None:
    network = build_network(name, 3, width=8, batch_norm=policy)
    logits = network(torch.rand(1, 3, 61, 83))
    F.cross_entropy(logits, torch.randint(3, (1, *logits.shape[2:]))).backward()
    for key, parameter in network.head.named_parameters():
        assert parameter.requires_grad, key
        assert parameter.grad.any(), key
    assert network.body.conv1.weight.grad.any()


def test_an_image_does_not_depend_on_its_batch_and_training_adds_dropout_alone() -> None:
    network = build_network("pspnet-resnet18", 3, width=8).double()
    images = torch.rand(3, 3, 40, 56, dtype=torch.float64)
    together = network.eval()(images)
    torch.testing.assert_close(torch.cat([network(x) for x in images.split(1)]), together)
    network.train()
    assert not torch.allclose(network(images), together)
    network.head.dropout.p = 0.0
    torch.testing.assert_close(network(images), together)


def test_every_pixel_sees_the_whole_map() -> None:
    features = torch.randn(1, 32, 24, 30, requires_grad=True)
    PyramidPooling(32, 2).eval()(features)[0, :, 0, 0].sum().backward()
    assert features.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    network = build_network("pspnet-resnet18", 3, width=8).eval()
    images = torch.rand(1, 3, 33, 49)
    with torch.autocast("cpu", dtype):
        found = network(images)
    torch.testing.assert_close(found.float(), network(images), rtol=0.1, atol=0.05)
