"""Networks: shapes, strides against two independent computations, weight files, batch norm, gradients."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from shared import shared_data
from torch import Tensor, nn

from vda.errors import UsageError
from vda.losses import discriminator_loss, generator_loss
from vda.models import NETWORKS, ImageDiscriminator, SequenceDiscriminator, build_network, frozen, upsample
from vda.models.resnet import Bottleneck, ResNet, resnet18, resnet50

DEPTHS = {"deeplab-resnet50": (3, 4, 6, 3), "deeplab-resnet18": (2, 2, 2, 2)}


def ceil_div(n: int, d: int) -> int:
    return -(-n // d)


def with_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norm with statistics that matter, so that a forgotten or swapped one shows."""
    g = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=g))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=g))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=g))
                module.bias.copy_(0.3 * torch.randn(module.num_features, generator=g))
    return network


def small_resnet50(variant: str = "torchvision") -> ResNet:
    torch.manual_seed(0)
    return with_statistics(resnet50(8, variant)).double().eval()


# ---- an independent ResNet-50, written from the table of its layers


def plain_resnet50(s: dict[str, Tensor], x: Tensor, caffe: bool) -> Tensor:
    def conv(x: Tensor, key: str, stride: int = 1, dilation: int = 1) -> Tensor:
        w = s[key + ".weight"]
        return F.conv2d(x, w, None, stride, dilation * (w.shape[-1] // 2), dilation)

    def norm(x: Tensor, key: str) -> Tensor:
        mean, var = s[key + ".running_mean"], s[key + ".running_var"]
        scale = s[key + ".weight"] / (var + 1e-5).sqrt()
        return x * scale[:, None, None] + (s[key + ".bias"] - mean * scale)[:, None, None]

    x = norm(conv(x, "conv1", 2), "bn1").clamp(min=0)
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=caffe)
    # layer, block: stride of its 1x1, stride of its 3x3, dilation of its 3x3
    table = {(2, 0): (2, 1, 1) if caffe else (1, 2, 1), (3, 0): (1, 1, 2 if caffe else 1)}
    table[4, 0] = (1, 1, 4 if caffe else 2)
    for layer, depth in zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True):
        for block in range(depth):
            key = f"layer{layer}.{block}"
            one, three, dilation = table.get((layer, block), (1, 1, {3: 2, 4: 4}.get(layer, 1)))
            y = norm(conv(x, key + ".conv1", one), key + ".bn1").clamp(min=0)
            y = norm(conv(y, key + ".conv2", three, dilation), key + ".bn2").clamp(min=0)
            y = norm(conv(y, key + ".conv3"), key + ".bn3")
            if block == 0:
                x = norm(conv(x, key + ".downsample.0", one * three), key + ".downsample.1")
            x = (x + y).clamp(min=0)
    return x


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


def test_sizes_of_both_variants() -> None:
    # facts of the published networks: 360 x 480 gives 45 x 60 with floor pooling, 46 x 61 with ceil pooling
    for variant, size in (("torchvision", (45, 60)), ("caffe", (46, 61))):
        assert (
            build_network("deeplab-resnet50", 2, width=2, variant=variant)(torch.rand(1, 3, 360, 480)).shape[
                2:
            ]
            == size
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
    with pytest.raises(UsageError, match="variant: wanted one of torchvision, found 'caffe'"):
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


# ---- weight files


def published(
    path: Path, network: str = "deeplab-resnet50", width: int = 64, images: float = 1.0
) -> dict[str, Tensor]:
    """A file as torchvision writes it, classifier and counters included, for images of scale `images`."""
    torch.manual_seed(3)
    body = with_statistics(resnet50(width) if network.endswith("50") else resnet18(width))
    state = {k: v.clone() for k, v in body.state_dict().items() if k != "caffe"}
    state["bn1.running_var"] *= images**2
    state |= {"fc.weight": torch.randn(10, body.channels), "fc.bias": torch.randn(10)}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision_weights_load(tmp_path, name, suffix) -> None:
    path = tmp_path / f"resnet{suffix}"
    state = published(path, name, width=4)
    network = build_network(name, 5, width=4, weights=path)
    loaded = network.body.state_dict()
    assert network.body.variant == network.config["variant"] == "torchvision"
    for key, tensor in state.items():
        if not key.startswith("fc.") and "num_batches" not in key:
            torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)
    red = torch.zeros(1, 3, 1, 1)
    red[:, 0] = 1
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    torch.testing.assert_close(network.normalise(red).flatten(), torch.tensor(expected))


def test_scale_of_the_statistics_tells_caffe_weights(tmp_path) -> None:
    path = tmp_path / "resnet50.pth"
    published(path, width=4, images=58.0)
    network = build_network("deeplab-resnet50", 5, width=4, weights=path)
    assert network.body.variant == "caffe"
    red = torch.zeros(1, 3, 1, 1)
    red[:, 0] = 1
    torch.testing.assert_close(
        network.normalise(red).flatten(), torch.tensor([-103.939, -116.779, 255 - 123.68])
    )
    assert (
        build_network("deeplab-resnet50", 5, width=4, weights=path, variant="torchvision").body.variant
        == "torchvision"
    )


def test_undecided_weights_want_an_explicit_variant(tmp_path) -> None:
    path = tmp_path / "resnet50.pth"
    state = published(path, width=4)
    energy = state["conv1.weight"].flatten(1).square().sum(1)
    torch.save(state | {"bn1.running_var": 100 * energy}, path)
    with pytest.raises(UsageError, match=r"resnet50\.pth: cannot tell which variant .* torchvision or caffe"):
        build_network("deeplab-resnet50", 5, width=4, weights=path)
    assert (
        build_network("deeplab-resnet50", 5, width=4, weights=path, variant="caffe").body.variant == "caffe"
    )


def test_caffe_weights_do_not_fit_resnet18(tmp_path) -> None:
    path = tmp_path / "resnet18.pth"
    published(path, "deeplab-resnet18", width=4, images=58.0)
    with pytest.raises(
        UsageError, match=r"resnet18\.pth: wanted weights of the torchvision variant, found caffe"
    ):
        build_network("deeplab-resnet18", 5, width=4, weights=path)


def test_unfit_weights_are_refused(tmp_path) -> None:
    path = tmp_path / "w.pth"
    state = published(path, width=4)

    def refused(match: str, **options: object) -> None:
        with pytest.raises(UsageError, match=r"w\.pth: " + match):
            build_network("deeplab-resnet50", 5, **{"width": 4, "weights": path, **options})

    refused(r"conv1.weight: wanted shape \(6, 3, 7, 7\), found \(4, 3, 7, 7\)", width=6)
    torch.save({k: v for k, v in state.items() if k != "layer2.1.bn2.running_var"}, path)
    refused(r"wanted the \d+ tensors of this ResNet, found a file that lacks 'layer2.1.bn2.running_var'$")
    torch.save(
        state | {"layer3.6.conv1.weight": torch.zeros(1), "layer3.6.conv2.weight": torch.zeros(1)}, path
    )
    refused(r".*has besides 'layer3.6.conv1.weight' and 1 more")
    torch.save([1, 2], path)
    refused("wanted a state dict")
    torch.save(nn.Linear(1, 1), path)
    refused(".*pickled objects")
    path.write_bytes(b"not weights")
    refused("wanted a")
    refused("wanted a file of network weights, found none", weights=tmp_path / "none" / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.5, 0.01, 0.0])
def test_truncated_weights_are_refused(tmp_path, suffix, share) -> None:
    path = tmp_path / f"cut{suffix}"
    published(path, width=4)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UsageError, match=r"cut.*: wanted .*damaged"):
        build_network("deeplab-resnet50", 5, width=4, weights=path)


def test_checkpoint_carries_variant_and_normalisation(tmp_path) -> None:
    path = tmp_path / "resnet50.pth"
    published(path, width=4, images=58.0)
    network = with_statistics(build_network("deeplab-resnet50", 5, width=4, weights=path)).eval()
    plain = build_network("deeplab-resnet50", 5, width=4).eval()  # built for torchvision
    plain.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 45, 53)
    assert plain.body.variant == "caffe"
    assert torch.equal(plain(x), network(x))
    again = build_network(**network.config).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x), network(x))


def test_shared_caffe_weights() -> None:
    path = shared_data("weights", "resnet50_imagenet_caffe.safetensors")
    network = build_network("deeplab-resnet50", 11, weights=path).eval()
    assert network.body.variant == "caffe"
    with pytest.raises(
        UsageError, match="wanted weights of the torchvision variant, found caffe in the file's metadata"
    ):
        build_network("deeplab-resnet50", 11, weights=path, variant="torchvision")
    x = torch.rand(1, 3, 49, 65, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    with torch.no_grad():
        expected = plain_resnet50(network.body.state_dict(), x.flip(1) * 255 - mean, caffe=True)
        found = network.body(network.normalise(x))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    # Images of the scale the statistics were made for leave the first batch norm with variance about one.
    assert 0.05 < network.body.bn1(network.body.conv1(network.normalise(x))).var() < 20


# ---- discriminators


@pytest.mark.parametrize(
    ("size", "out"),
    [((512, 1024), (16, 32)), ((360, 480), (11, 15)), ((96, 192), (3, 6)), ((33, 63), (1, 1))],
)
def test_discriminator_sizes(size, out) -> None:
    with torch.no_grad():
        assert ImageDiscriminator(15, width=2)(torch.rand(1, 15, *size)).shape == (1, 1, *out)
        assert SequenceDiscriminator(15, width=2)(torch.rand(1, 15, 2, *size)).shape == (1, 1, *out)


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


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_sequence_discriminator_is_an_image_discriminator_of_stacked_channels(frames) -> None:
    torch.manual_seed(0)
    sequence, image = SequenceDiscriminator(5, frames, width=4), ImageDiscriminator(5 * frames, width=4)
    image.trunk.load_state_dict(sequence.trunk.state_dict())
    with torch.no_grad():  # slice t of the 3-D kernel sees the channels of frame t
        image.first.weight.copy_(torch.cat(sequence.first.weight.unbind(2), 1))
        image.first.bias.copy_(sequence.first.bias)
    maps = torch.rand(2, 5, frames, 45, 70)
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
