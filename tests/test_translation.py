"""Translation networks against second computations, by their counts of weights, and by what sees what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vda.histogram import histogram_loss
from vda.losses import discriminator_loss, generator_loss
from vda.models import PairGenerator, PatchDiscriminator, frozen


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def norm(x: Tensor) -> Tensor:
    return (x - x.mean((2, 3), True)) / (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()


def reflected(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(F.pad(x, (weight.shape[-1] // 2,) * 4, mode="reflect"), weight, bias)


def plain_generator(generator: PairGenerator, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The X, frame by frame, from the list of weights in the order of the layers."""
    weights = iter(generator.parameters())
    stem, down1, down2, join = (next(weights) for _ in range(4))
    maps = []
    for frame in (first, second):
        x = norm(reflected(frame, stem)).relu()
        for w in (down1, down2):
            x = norm(F.conv2d(x, w, stride=2, padding=1)).relu()
        maps.append(x)
    x = norm(torch.einsum("oc,nchw->nohw", join[:, :, 0, 0], torch.cat(maps, 1))).relu()
    for _ in range(generator.config["blocks"]):
        y = norm(reflected(x, next(weights))).relu()
        x = x + norm(reflected(y, next(weights)))
    up1, up2, last, bias = weights
    frames = []
    for half in (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]):
        for w in (up1, up2):
            half = norm(F.conv_transpose2d(half, w, stride=2, padding=1, output_padding=1)).relu()
        frames.append(1 / (1 + torch.exp(-reflected(half, last, bias))))
    H, W = first.shape[-2:]
    return frames[0][..., :H, :W], frames[1][..., :H, :W]


def spread(network: nn.Module) -> nn.Module:
    """Weights that do not all act alike."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("size", [(16, 24), (13, 18), (5, 7)])
def test_generator_equals_a_plain_computation(size: tuple[int, int]) -> None:
    generator = spread(PairGenerator(width=4, blocks=2)).double()
    pairs = torch.rand(3, 2, 3, *size, dtype=torch.float64)
    found = generator(pairs)
    assert found.shape == pairs.shape
    for i, wanted in enumerate(plain_generator(generator, pairs[:, 0], pairs[:, 1])):
        torch.testing.assert_close(found[:, i], wanted)


def test_weights_of_the_generator() -> None:
    """With w = width: stem and end 7x7, two halvings and two doublings, 1x1 on 8w, blocks of two 3x3 on 8w."""

    def count(w: int, blocks: int) -> int:
        ends = 2 * 3 * 49 * w + 3
        scales = 2 * (9 * w * 2 * w + 9 * 2 * w * 4 * w)
        return ends + scales + (8 * w) ** 2 + blocks * 2 * 9 * (8 * w) ** 2

    for w, blocks in ((4, 2), (6, 0), (64, 9)):
        generator = PairGenerator(w, blocks)
        assert sum(p.numel() for p in generator.parameters()) == count(w, blocks)
    convs = [m for m in generator.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert torch.cat([m.weight.flatten() for m in convs]).std().item() == pytest.approx(0.02, rel=0.01)


def test_each_frame_sees_the_other() -> None:
    generator = spread(PairGenerator(width=4, blocks=1))
    pairs = torch.rand(2, 2, 3, 16, 20, requires_grad=True)
    (gradient,) = torch.autograd.grad(generator(pairs)[0, 0].square().sum(), pairs)
    assert gradient[0].flatten(1).any(1).all()
    assert not gradient[1].any()  # another video
    swapped = generator(pairs.flip(1)).flip(1)
    assert not torch.allclose(swapped, generator(pairs))  # the trunk knows which comes first


def test_config_and_parameter_groups() -> None:
    generator = PairGenerator(width=4, blocks=1)
    twin = PairGenerator(**generator.config)
    twin.load_state_dict(generator.state_dict())
    pairs = torch.rand(1, 2, 3, 9, 10)
    assert torch.equal(twin(pairs), generator(pairs))
    (group,) = generator.parameter_groups(2e-4)
    assert group["lr"] == 2e-4
    assert [id(p) for p in group["params"]] == [id(p) for p in generator.parameters()]


@pytest.mark.parametrize(("size", "out"), [((256, 256), (30, 30)), ((24, 71), (1, 6)), ((67, 90), (6, 9))])
def test_discriminator_sizes(size: tuple[int, int], out: tuple[int, int]) -> None:
    with torch.no_grad():
        assert PatchDiscriminator(width=2)(torch.rand(2, 3, *size)).shape == (2, 1, *out)


def test_discriminator_layers() -> None:
    judge = PatchDiscriminator()
    convs = [m for m in judge.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.stride[0], c.bias is not None) for c in convs] == [
        (64, 2, True),
        (128, 2, False),
        (256, 2, False),
        (512, 1, False),
        (1, 1, True),
    ]
    assert all((c.kernel_size, c.padding) == ((4, 4), (1, 1)) for c in convs)
    assert [m.negative_slope for m in judge.modules() if isinstance(m, nn.LeakyReLU)] == [0.2] * 4
    assert [m.num_features for m in judge.modules() if isinstance(m, nn.InstanceNorm2d)] == [128, 256, 512]


def test_discriminator_equals_a_plain_computation() -> None:
    judge = spread(PatchDiscriminator(width=3)).double()
    frames = torch.rand(2, 3, 45, 52, dtype=torch.float64)
    first, bias, *middle, last, shift = judge.parameters()
    x = F.leaky_relu(F.conv2d(frames, first, bias, 2, 1), 0.2)
    for w, stride in zip(middle, (2, 2, 1), strict=True):
        x = F.leaky_relu(norm(F.conv2d(x, w, None, stride, 1)), 0.2)
    torch.testing.assert_close(judge(frames), F.conv2d(x, last, shift, 1, 1))


def test_a_score_judges_70_pixels() -> None:
    judge = spread(PatchDiscriminator(width=2))
    for i, layer in enumerate(judge.layers):
        if isinstance(layer, nn.InstanceNorm2d):
            judge.layers[i] = nn.Identity()  # it would carry a little of everything everywhere
    frames = torch.rand(1, 3, 160, 160, requires_grad=True)
    scores = judge(frames)
    (gradient,) = torch.autograd.grad(scores[0, 0, 9, 9], frames)
    touched = gradient.abs().sum((0, 1)) > 0
    assert (touched.any(0).sum().item(), touched.any(1).sum().item()) == (70, 70)


def test_a_step_of_each() -> None:
    """Gradients reach all of the generator and nothing of the discriminator, then the reverse."""
    generator, judge = PairGenerator(width=4, blocks=1), PatchDiscriminator(width=4)
    pairs, real = torch.rand(1, 2, 3, 32, 36), torch.rand(2, 3, 32, 36)
    frames = generator(pairs).flatten(0, 1)
    with frozen(judge):
        loss = generator_loss(judge(frames), "least_squares") + histogram_loss(frames, real)
    loss.backward()
    assert all(p.grad.any() for p in generator.parameters())
    assert all(p.grad is None for p in judge.parameters())
    discriminator_loss(judge(real), judge(frames.detach()), "least_squares").backward()
    assert all(p.grad.any() for p in judge.parameters())


def test_arguments_are_checked() -> None:
    generator, judge = PairGenerator(width=2, blocks=1), PatchDiscriminator(width=2)
    for shape in ((1, 3, 3, 8, 8), (2, 3, 8, 8), (1, 2, 1, 8, 8), (1, 2, 3, 8, 4)):
        with pytest.raises(ValueError, match=r"pairs: wanted \[N, 2, 3, H, W\] of at least 5 x 5 pixels, got"):
            generator(torch.rand(shape))
    for shape in ((3, 32, 32), (1, 4, 32, 32), (1, 3, 32, 23)):
        with pytest.raises(ValueError, match=r"frames: wanted \[N, 3, H, W\] of at least 24 x 24 pixels, got"):
            judge(torch.rand(shape))
