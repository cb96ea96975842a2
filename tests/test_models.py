"""Networks: shapes, strides against two independent computations, batch norm, discriminators, gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from resnets import plain_resnet50, with_statistics
from torch import Tensor, nn

from vda.errors import UsageError
from vda.losses import discriminator_loss, generator_loss
from vda.models import ASPP, NETWORKS, ImageDiscriminator, SequenceDiscriminator, build_network, frozen, upsample
from vda.models.resnet import Bottleneck, ResNet, resnet18, resnet50


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few kilobytes: on a busy machine the threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ceil_div(n: int, d: int) -> int:
    return -(-n // d)


def small_resnet50(variant: str = "torchvision") -> ResNet:
    torch.manual_seed(0)
    return with_statistics(resnet50(8, variant)).double().eval()


# ---- stride placement


@pytest.mark.parametrize("variant", ["torchvision", "caffe"])
@pytest.mark.parametrize("size", [(67, 95), (64, 96)])
def test_resnet50_equals_a_plain_computation(variant, size) -> None:
    body = small_resnet50(variant)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(body(x), plain_resnet50(body.state_dict(), x, variant == "caffe"))


def strided_twin(body: ResNet) -> ResNet:
    """The network before dilation: layer3 and layer4 halve the map, nothing is dilated. Output stride 32."""
    twin = copy.deepcopy(body)
    for layer in (twin.layer3, twin.layer4):
        block = layer[0]
        block.stride = 2
        block.downsample[0].stride = (2, 2)
        if isinstance(block, Bottleneck):
            (block.conv1 if body.variant == "caffe" else block.conv2).stride = (2, 2)
        else:
            block.conv1.stride = (2, 2)
    for module in twin.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation = module.padding = (1, 1)
    return twin


@pytest.mark.parametrize(
    ("make", "variant"), [(resnet50, "torchvision"), (resnet50, "caffe"), (resnet18, "torchvision")]
)
def test_dilated_network_holds_the_strided_one(make, variant) -> None:
    # Dilation instead of a stride computes the same numbers, on a finer grid.
    torch.manual_seed(1)
    body = with_statistics(make(4, variant)).double().eval()
    x = torch.randn(1, 3, 101, 75, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(body(x)[:, :, ::4, ::4], strided_twin(body)(x))


# ---- shapes


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("H", "W"), [(96, 192), (65, 97), (33, 41), (1, 1)])
def test_output_stride_is_eight(name, H, W) -> None:
    network = build_network(name, 7, width=4).eval()
    assert network(torch.rand(2, 3, H, W)).shape == (2, 7, ceil_div(H, 8), ceil_div(W, 8))


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_what_layer3_and_layer4_put_out(name) -> None:
    network = build_network(name, 7, width=4).eval()
    seen = {}
    for layer in ("layer3", "layer4"):
        getattr(network.body, layer).register_forward_hook(lambda _m, _x, y, layer=layer: seen.update({layer: y}))
    images = torch.rand(2, 3, 65, 97)
    third, fourth = network.features(images)
    assert third is seen["layer3"]
    assert fourth is seen["layer4"]
    assert third.shape == (2, network.body.layer3_channels, 9, 13)
    assert fourth.shape == (2, network.body.channels, 9, 13)
    assert torch.equal(network.head(fourth), network(images))
    assert network.body.layer3_channels == {"18": 4 * 4, "50": 16 * 4}[name[-2:]]  # of width 64 in ResNet-50: 1024


def test_an_auxiliary_head_teaches_what_lies_below_it() -> None:
    network = build_network("deeplab-resnet18", 3, width=4)
    auxiliary = ASPP(network.body.layer3_channels, 3)
    auxiliary(network.features(torch.rand(1, 3, 48, 48))[0]).sum().backward()
    assert auxiliary.branches[0].weight.grad.any()
    assert network.body.conv1.weight.grad.any()
    assert network.body.layer3[1].conv2.weight.grad.any()
    assert all(p.grad is None for p in network.body.layer4.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_config_builds_the_network_again(name) -> None:
    network = with_statistics(build_network(name, 7, width=4, batch_norm="affine_frozen"))
    twin = build_network(**network.config)
    assert twin.batch_norm == "affine_frozen"
    twin.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 41, 50)
    assert torch.equal(twin.eval()(images), network.eval()(images))


def test_sizes_of_both_variants() -> None:
    # facts of the published networks: 360 x 480 gives 45 x 60 with floor pooling, 46 x 61 with ceil pooling
    for variant, size in (("torchvision", (45, 60)), ("caffe", (46, 61))):
        assert (
            build_network("deeplab-resnet50", 2, width=2, variant=variant)(torch.rand(1, 3, 360, 480)).shape[2:] == size
        )


def test_upsample_aligns_corners_and_widens() -> None:
    ramp = torch.arange(5.0).view(1, 1, 1, 5)
    torch.testing.assert_close(upsample(ramp, (1, 9)), torch.arange(0, 4.5, 0.5).view(1, 1, 1, 9))
    assert upsample(ramp.half(), (2, 9)).dtype == torch.float32
    assert upsample(ramp.double(), (2, 9)).dtype == torch.float64


def test_head_sums_four_dilated_branches() -> None:
    network = build_network("deeplab-resnet18", 3, width=8)
    with torch.no_grad():
        for branch in network.head.branches:
            branch.bias.uniform_(-1, 1)
    x = torch.randn(1, 64, 27, 31)
    expected = sum(
        F.conv2d(x, b.weight, b.bias, padding=d, dilation=d)
        for b, d in zip(network.head.branches, (6, 12, 18, 24), strict=True)
    )
    torch.testing.assert_close(network.head(x), expected)
    weights = torch.cat([b.weight.flatten() for b in build_network("deeplab-resnet18", 9).head.branches])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)


def test_images_are_checked() -> None:
    network = build_network("deeplab-resnet18", 3, width=4)
    for bad in (
        torch.rand(3, 32, 32),
        torch.rand(1, 4, 32, 32),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match=r"images: wanted \[N, 3, H, W\] float"):
            network(bad)


# ---- names and options


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match="found 'deeplab-resnet5', perhaps you meant deeplab-resnet50"):
        build_network("deeplab-resnet5", 3)
    with pytest.raises(UsageError, match="batch_norm: wanted one of train, affine_frozen, eval, found 'off'"):
        build_network("deeplab-resnet18", 3, batch_norm="off")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="variant: wanted one of auto, torchvision for this network, found 'caffe'"):
        build_network("deeplab-resnet18", 3, variant="caffe")
    with pytest.raises(UsageError, match="num_classes: wanted at least 1, found 0"):
        build_network("deeplab-resnet18", 0)
    with pytest.raises(UsageError, match="width: wanted at least 1, found 0"):
        build_network("deeplab-resnet18", 3, width=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_groups_hold_every_trainable_parameter_once(name) -> None:
    network = build_network(name, 3, width=4, batch_norm="train")
    body, head = network.parameter_groups(2.5e-4)
    assert (body["lr"], head["lr"]) == (2.5e-4, pytest.approx(2.5e-3))
    listed = [id(p) for group in (body, head) for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    torch.optim.SGD([body, head])


# ---- batch norm


def statistics(network: nn.Module) -> list[Tensor]:
    return [m.running_mean.clone() for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("policy", ["train", "affine_frozen", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norm_policy(name, policy) -> None:
    network = build_network(name, 3, width=4, batch_norm=policy)
    network.eval()
    network.train()
    before = statistics(network)
    network(torch.rand(2, 3, 48, 48)).sum().backward()
    moved = [not torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True)]
    assert all(moved) if policy != "eval" else not any(moved)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    learns = [m.weight.grad is not None and m.bias.grad is not None for m in norms]
    assert all(learns) if policy == "train" else not any(learns)
    assert network.body.conv1.weight.grad is not None
    before = statistics(network.eval())
    network(torch.rand(2, 3, 48, 48))
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True))


# ---- discriminators


# golden example 2: 512 x 1024 -> 16 x 32, 720 x 1280 -> 22 x 40, 360 x 480 -> 11 x 15, also with IAST's first kernel
@pytest.mark.parametrize(
    ("size", "out"),
    [
        ((512, 1024), (16, 32)),
        ((720, 1280), (22, 40)),
        ((360, 480), (11, 15)),
        ((96, 192), (3, 6)),
        ((33, 63), (1, 1)),
    ],
)
def test_discriminator_sizes(size, out) -> None:
    image = ImageDiscriminator(15, width=2)
    with torch.no_grad():
        assert image(torch.rand(1, 15, *size)).shape == (1, 1, *out)
        assert SequenceDiscriminator(15, width=2)(torch.rand(1, 15, 2, *size)).shape == (1, 1, *out)
        if not any(n % 2 for n in size):
            image.first = nn.Conv2d(15, 2, 3, stride=2, padding=1)
            assert image(torch.rand(1, 15, *size)).shape == (1, 1, *out)


def test_discriminator_layers() -> None:
    image, sequence = ImageDiscriminator(15), SequenceDiscriminator(15)
    convs = [m for m in image.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [
        (15, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, 1),
    ]
    assert all((c.kernel_size, c.stride, c.padding) == ((4, 4), (2, 2), (1, 1)) for c in convs)
    assert [m.negative_slope for m in image.modules() if isinstance(m, nn.LeakyReLU)] == [0.2] * 4
    assert sum(p.numel() for p in sequence.first.parameters()) == 30_784


# golden example 3: of two frames of 15 classes an image discriminator with 30 input channels
@pytest.mark.parametrize(("K", "frames"), [(15, 2), (5, 3), (5, 5)])
def test_sequence_discriminator_is_an_image_discriminator_of_stacked_channels(K, frames) -> None:
    torch.manual_seed(0)
    sequence, image = SequenceDiscriminator(K, frames, width=4), ImageDiscriminator(K * frames, width=4)
    image.trunk.load_state_dict(sequence.trunk.state_dict())
    with torch.no_grad():  # slice t of the 3-D kernel sees the channels of frame t
        image.first.weight.copy_(torch.cat(sequence.first.weight.unbind(2), 1))
        image.first.bias.copy_(sequence.first.bias)
    maps = torch.rand(2, K, frames, 45, 70)
    torch.testing.assert_close(sequence(maps), image(torch.cat(maps.unbind(2), 1)), rtol=1e-4, atol=1e-5)


def test_sequence_discriminator_sees_every_frame() -> None:
    maps = torch.rand(1, 3, 4, 32, 32, requires_grad=True)
    SequenceDiscriminator(3, frames=4, width=4)(maps).sum().backward()
    assert (maps.grad.abs().sum((0, 1, 3, 4)) > 0).all()


def test_discriminator_input_is_checked() -> None:
    with pytest.raises(ValueError, match="maps: wanted at least 32 x 32 pixels, got 31 x 64"):
        ImageDiscriminator(3, width=2)(torch.rand(1, 3, 31, 64))
    with pytest.raises(ValueError, match=r"maps: wanted \[N, K, H, W\] with K = 3, got \[1, 4, 32, 32\]"):
        ImageDiscriminator(3, width=2)(torch.rand(1, 4, 32, 32))
    with pytest.raises(ValueError, match="maps: wanted tubes of 2 frames, got 3"):
        SequenceDiscriminator(3, width=2)(torch.rand(1, 3, 3, 32, 32))
    with pytest.raises(ValueError, match="frames: wanted a tube of at least 2, got 1"):
        SequenceDiscriminator(3, frames=1)


def test_adversarial_gradients_reach_one_network_each() -> None:
    torch.manual_seed(0)
    network = build_network("deeplab-resnet18", 3, width=4)
    judge = SequenceDiscriminator(3, width=4)
    logits = upsample(network(torch.rand(4, 3, 32, 32)), (32, 32))
    tubes = logits.softmax(1).view(2, 2, 3, 32, 32).transpose(1, 2)
    with frozen(judge):
        loss = generator_loss(judge(tubes))
    loss.backward()
    assert all(p.grad is None for p in judge.parameters())
    gradient = network.head.branches[0].weight.grad.clone()
    assert gradient.abs().sum() > 0
    scores = judge(tubes.detach())
    discriminator_loss(scores[:1], scores[1:]).backward()
    assert all(p.grad is not None and p.requires_grad for p in judge.parameters())
    assert torch.equal(network.head.branches[0].weight.grad, gradient)
