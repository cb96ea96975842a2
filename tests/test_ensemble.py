"""Several networks as one: the mean of their softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vda.losses import entropy
from vda.models import Ensemble, build_network


class Fixed(nn.Module):
    """The same logits for every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), *self.logits.shape)


IMAGES = torch.zeros(2, 3, 8, 8)


def test_mean_of_softmax_by_hand() -> None:
    """(0.9, 0.1) and (0.2, 0.8) give (0.55, 0.45); the mean of the logits would prefer the second class."""
    networks = [Fixed(torch.tensor(p).log().view(2, 1, 1)) for p in ([0.9, 0.1], [0.2, 0.8], [0.4, 0.6])]
    assert torch.allclose(Ensemble(networks[:2])(IMAGES).softmax(1)[0].flatten(), torch.tensor([0.55, 0.45]))
    assert torch.allclose(Ensemble(networks)(IMAGES).softmax(1)[1].flatten(), torch.tensor([0.5, 0.5]))


def test_equals_its_formula_and_knows_no_order() -> None:
    logits = [7 * torch.randn(5, 6, 9) for _ in range(3)]
    wanted = torch.stack([x.double().softmax(0) for x in logits]).mean(0).expand(2, 5, 6, 9)
    for order in ([0, 1, 2], [2, 0, 1]):
        found = Ensemble([Fixed(logits[i]) for i in order])(IMAGES)
        assert found.shape == (2, 5, 6, 9)
        torch.testing.assert_close(found.softmax(1).double(), wanted, rtol=1e-5, atol=1e-7)
        sureness = torch.distributions.Categorical(wanted.movedim(1, -1)).entropy()
        torch.testing.assert_close(entropy(found).double(), sureness, rtol=1e-4, atol=1e-6)


def test_one_network_is_itself() -> None:
    logits = torch.randn(4, 3, 5)
    torch.testing.assert_close(Ensemble([Fixed(logits)])(IMAGES).softmax(1)[0], logits.softmax(0))


def test_sixteen_bit_and_saturated_logits() -> None:
    """Sums run in float32; a class that is impossible for all stays impossible, without NaN."""
    sure = torch.tensor([0.0, 3e4, -3e4]).view(3, 1, 1)
    found = Ensemble([Fixed(sure.half()), Fixed(sure.roll(1, 0).half())])(IMAGES)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert found.softmax(1)[0].flatten().tolist() == [0.0, 0.5, 0.5]


def test_of_segmentation_networks() -> None:
    """It follows train() and eval(), holds its networks' weights, and is as large as they put out."""
    networks = [build_network("deeplab-resnet18", 3, width=4, batch_norm="train") for _ in range(2)]
    ensemble = Ensemble(networks).eval()
    assert not any(module.training for network in networks for module in network.modules())
    images = torch.rand(2, 3, 40, 52)
    with torch.inference_mode():
        mean = (networks[0](images).softmax(1) + networks[1](images).softmax(1)) / 2
        torch.testing.assert_close(ensemble(images).softmax(1), mean)
    assert len(list(ensemble.parameters())) == sum(len(list(network.parameters())) for network in networks)
