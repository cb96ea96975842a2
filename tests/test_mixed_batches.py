"""Batches of source and target tubes together, as CBST, CRST and CCM train on: one pass cut in two, and hard cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from method_cases import CASES, K, network
from resnets import with_statistics
from torch import Tensor, nn

from vda.data.tubes import Batch
from vda.methods.crst import CRST, CRSTSettings
from vda.methods.self_training import mixed_logits, of_target

PARTS = [[1], [0], [0, 1], [1, 0], [1, 1, 1], [0, 0], [0, 1, 0, 1], [1, 0, 0, 1, 1], [0, 1, 1, 0]]
MIXING = ["cbst", "crst", "crst:lrent", "ccm"]


def mixed(part: list[int], T: int = 2, H: int = 33, W: int = 41) -> Batch:
    generator = torch.Generator().manual_seed(len(part))
    images = torch.rand(len(part), T, 3, H, W, generator=generator)
    labels = torch.randint(0, K + 1, (len(part), T, H, W), generator=generator)
    labels[labels == K] = 255
    return Batch(images, labels.to(torch.uint8), None, [], torch.tensor(part))


def statistics(net: nn.Module) -> Tensor:
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    return torch.cat([x.clone() for norm in norms for x in (norm.running_mean, norm.running_var)])


def plain(net: nn.Module, images: Tensor) -> Tensor:
    return F.interpolate(net(images), images.shape[-2:], mode="bilinear", align_corners=True)


def test_frames_know_their_domain() -> None:
    assert of_target(mixed([0, 1, 1], T=2)).flatten().tolist() == [False, False, True, True, True, True]
    assert of_target(mixed([1, 0], T=1)).shape == (2, 1, 1)


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("part", PARTS)
def test_mixed_logits_are_the_plain_ones_with_frozen_batch_norm(part: list[int], T: int) -> None:
    """In the order of the batch, whatever the order of its parts."""
    net = with_statistics(network("eval")).train()
    batch = mixed(part, T)
    before = statistics(net)
    found = mixed_logits(net, batch)
    torch.testing.assert_close(found, plain(net, batch.frames.flatten(0, 1)), rtol=1e-5, atol=1e-6)
    assert torch.equal(statistics(net), before)
    if len(found) > 1:  # frames differ, so another order would show
        assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("part", PARTS)
def test_each_domain_has_statistics_of_its_own(part: list[int]) -> None:
    """Batch norm in training: a tube is normalised with those of its domain, and the target's alone are remembered."""
    batch = mixed(part)
    net = network("train").train()
    found = mixed_logits(net, batch)
    domains, untouched = torch.tensor(part).repeat_interleave(2), statistics(network("train"))
    alone = {domain: network("train").train() for domain in part}
    for domain, own in alone.items():
        images = batch.frames.flatten(0, 1)[domains == domain]
        torch.testing.assert_close(found[domains == domain], plain(own, images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics(net), statistics(alone[1]) if 1 in part else untouched)
    assert torch.equal(statistics(net), untouched) == (1 not in part)


@pytest.mark.parametrize("part", [[0, 1], [0], [1]])
@pytest.mark.parametrize("name", MIXING)
def test_no_label_at_all_costs_nothing(name: str, part: list[int]) -> None:
    """0 and no gradient, where a mean over no pixel would be NaN. CCM's entropy needs no label."""
    batch = mixed(part)
    assert batch.labels is not None
    batch = replace(batch, labels=torch.full_like(batch.labels, 255))
    method = CASES[name].build()
    if name == "crst:lrent":  # with thresholds of 1, which nothing passes
        method = CRST(method.network, CRSTSettings(regulariser="lrent"), torch.ones(K))
    (group,) = method.losses(None, batch)
    entropy = group.pop("ent", None)
    assert (entropy is not None) == (name == "ccm")
    assert entropy is None or entropy.isfinite()
    assert [loss.item() for loss in group.values()] == [0.0] * len(group)
    torch.stack(list(group.values())).sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in method.parameters())  # NaN counts as any


@pytest.mark.parametrize("part", [[0], [1], [0, 0], [1, 1]])
@pytest.mark.parametrize("name", MIXING)
def test_one_domain_alone(name: str, part: list[int]) -> None:
    method = CASES[name].build()
    (group,) = method.losses(None, mixed(part))
    assert all(loss.isfinite() for loss in group.values())
    torch.stack(list(group.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in method.network.parameters())
    if "reg" in group:  # the regulariser is the target's
        assert (group["reg"] > 0) == (part[0] == 1)


def changed(batch: Batch, part: int, change: Callable[[Tensor], Tensor]) -> Batch:
    assert batch.labels is not None
    chosen = (batch.part == part)[:, None, None, None]
    return replace(batch, labels=torch.where(chosen, change(batch.labels), batch.labels))


def test_soft_labels_replace_those_of_the_target_alone() -> None:
    method, batch = CASES["crst:lrent"].build("eval"), mixed([1, 0])
    before = next(method.losses(None, batch))["seg"]

    def others(labels: Tensor) -> Tensor:
        return torch.where(labels == 0, 1, 0).to(torch.uint8)

    assert torch.equal(next(method.losses(None, changed(batch, 1, others)))["seg"], before)
    assert not torch.equal(next(method.losses(None, changed(batch, 0, others)))["seg"], before)


def test_soft_labels_come_from_the_network_that_labelled() -> None:
    """It is frozen, in evaluation mode whatever the method is in, and neither trained nor saved."""
    method = CASES["crst:lrent"].build()
    assert isinstance(method, CRST)
    (labeller,) = method._labeller
    assert not labeller.training
    assert not any(p is q for p in labeller.parameters() for q in method.parameters())
    assert not any(key.startswith("_labeller") for key in method.state_dict())
    before = {key: x.clone() for key, x in labeller.state_dict().items()}
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.add_(0.1)
    list(method.losses(None, mixed([1, 0])))
    assert all(torch.equal(x, before[key]) for key, x in labeller.state_dict().items())
