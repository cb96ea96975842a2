"""Weight files of the backbone: both variants, what tells them apart, and every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from resnets import plain_resnet50, with_statistics
from safetensors.torch import save_file
from shared import shared_data
from torch import Tensor, nn

from vda.errors import UsageError
from vda.models import NETWORKS, build_network
from vda.models.resnet import resnet18, resnet50


def published(path: Path, network: str = "deeplab-resnet50", width: int = 64, images: float = 1.0) -> dict[str, Tensor]:
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
    torch.testing.assert_close(network.normalise(red).flatten(), torch.tensor([-103.939, -116.779, 255 - 123.68]))
    assert (
        build_network("deeplab-resnet50", 5, width=4, weights=path, variant="torchvision").body.variant == "torchvision"
    )


def test_undecided_weights_want_an_explicit_variant(tmp_path) -> None:
    path = tmp_path / "resnet50.pth"
    state = published(path, width=4)
    energy = state["conv1.weight"].flatten(1).square().sum(1)
    torch.save(state | {"bn1.running_var": 100 * energy}, path)
    with pytest.raises(UsageError, match=r"resnet50\.pth: cannot tell which variant .* torchvision or caffe"):
        build_network("deeplab-resnet50", 5, width=4, weights=path)
    assert build_network("deeplab-resnet50", 5, width=4, weights=path, variant="caffe").body.variant == "caffe"


def test_caffe_weights_do_not_fit_resnet18(tmp_path) -> None:
    path = tmp_path / "resnet18.pth"
    published(path, "deeplab-resnet18", width=4, images=58.0)
    with pytest.raises(UsageError, match=r"resnet18\.pth: wanted weights of the torchvision variant, found caffe"):
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
    torch.save(state | {"layer3.6.conv1.weight": torch.zeros(1), "layer3.6.conv2.weight": torch.zeros(1)}, path)
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
