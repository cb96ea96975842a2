"""Every method and variant: finite losses, gradients that go where they should, statistics of the right domain."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from method_cases import CASES, H, K, T, W, batch, network
from torch import Tensor, nn

import train
from vda.data.tubes import Batch
from vda.methods import METHODS, Method
from vda.methods.adaptsegnet import AdaptSegNet, AdaptSegNetSettings
from vda.models import untracked
from vda.options import Optimiser

MODULES = ("network", "auxiliary", "discriminators")
every_case = pytest.mark.parametrize("name", CASES)


def test_every_method_has_a_case() -> None:
    assert {name.split(":")[0] for name in CASES} == set(METHODS)
    for name, case in CASES.items():
        known = METHODS[name.split(":")[0]]
        assert isinstance(case.build(), known) or name == "videogan:translation", name


@every_case
def test_two_steps(name: str) -> None:
    """Group by group: scalars, finite, and a gradient in the very modules that the group is for and in no other."""
    case = CASES[name]
    method, batches = case.build(), case.batches()
    trainable = {key: p for key, p in method.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(trainable.values(), lr=0.01)
    reached = set()
    for _ in range(2):
        found, gradients = {}, {key: torch.zeros_like(p) for key, p in trainable.items()}
        for group in method.losses(*batches):
            assert all(loss.shape == () and loss.isfinite() for loss in group.values()), group
            torch.stack(list(group.values())).sum().backward()
            touched = {key: p.grad for key, p in trainable.items() if p.grad is not None}
            found[" ".join(group)] = {key.split(".")[0] for key in touched}
            for key, gradient in touched.items():
                gradients[key] += gradient
            optimiser.zero_grad(set_to_none=True)
        assert found == case.groups
        assert not any({"network", "discriminators"} <= modules for modules in found.values())
        for key, p in trainable.items():
            assert gradients[key].isfinite().all()
            p.grad = gradients[key]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        reached |= {key for key, gradient in gradients.items() if gradient.any()}
    assert reached == set(trainable), "parameters that no loss reaches"


def two_steps(name: str, seed: int) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Two steps of the training loop; their losses, and everything that it would save."""
    torch.manual_seed(seed)
    method = CASES[name].build()
    optimisers = train.build_optimisers(method, Optimiser(iterations=2, lr=0.01))
    losses = [train.step(method, optimisers, *CASES[name].batches()) for _ in range(2)]
    return losses, {key: x for m in MODULES for key, x in getattr(method, m).state_dict(prefix=m + ".").items()}


@every_case
def test_one_seed_gives_one_result(name: str) -> None:
    (losses, state), (again, other) = (two_steps(name, seed=3) for _ in range(2))
    assert losses == again
    assert len(losses[0]) == sum(len(group.split()) for group in CASES[name].groups)  # no name in two groups
    assert state.keys() == other.keys()
    assert all(torch.equal(x, other[key]) for key, x in state.items())


@every_case
def test_optimisers_hold_every_trainable_parameter_once(name: str) -> None:
    method = CASES[name].build()
    optimisers = train.build_optimisers(method, Optimiser())
    listed = [id(p) for opt in optimisers.values() for group in opt.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    critics = {id(p) for p in method.discriminators.parameters()}
    held = {id(p) for group in optimisers["network"].param_groups for p in group["params"]}
    assert not critics & held
    assert ("discriminators" in optimisers) == bool(critics)


# ---- batch norm

SEGMENTING = [name for name in CASES if not name.startswith(("flow_training", "videogan:translation"))]
POLICIES = [("eval", name) for name in SEGMENTING]
POLICIES += [("affine_frozen", name) for name in ("source_only", "advent", "crst", "vst:strict")]


@pytest.mark.parametrize(("policy", "name"), POLICIES)
def test_frozen_batch_norm_does_not_learn(policy: str, name: str) -> None:
    method = CASES[name].build(policy)
    before = {key: x.clone() for key, x in method.network.state_dict().items()}
    optimisers = train.build_optimisers(method, Optimiser(iterations=1, lr=0.01))
    train.step(method, optimisers, *CASES[name].batches())
    after = method.network.state_dict()
    moved = {key for key, x in before.items() if not torch.equal(x, after[key])}
    norms = {key for key, m in method.network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    statistics = {f"{key}.{what}" for key in norms for what in ("running_mean", "running_var", "num_batches_tracked")}
    parameters = {key for key, p in method.network.named_parameters() if p.requires_grad}
    assert moved == parameters | (statistics if policy == "affine_frozen" else set())
    assert not {f"{key}.{what}" for key in norms for what in ("weight", "bias")} & moved


def statistics(method: Method, source: Batch | None, target: Batch | None) -> Tensor:
    """All running means and variances after the losses of one step."""
    list(method.losses(source, target))
    norms = [m for m in method.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    return torch.cat([x for norm in norms for x in (norm.running_mean, norm.running_var)])


def brighter(of: Batch | None, part: int | None = None) -> Batch | None:
    """The batch, or the tubes of one of its parts, in other colours."""
    if of is None:
        return None
    chosen = torch.ones_like(of.part) if part is None else of.part == part
    return replace(of, frames=torch.where(chosen.bool()[:, None, None, None, None], of.frames.sqrt(), of.frames))


@pytest.mark.parametrize("name", SEGMENTING)
def test_running_statistics_follow_the_target_once_it_is_seen(name: str) -> None:
    """Whether the statistics change with the frames of each domain. Those of FDA take on the target's colours."""
    case = CASES[name]
    source, target = case.batches()
    before = statistics(case.build(), source, target)
    if case.target == "mixed":
        other_source = statistics(case.build(), source, brighter(target, part=0))
        other_target = statistics(case.build(), source, brighter(target, part=1))
    else:
        other_source = statistics(case.build(), brighter(source), target)
        other_target = statistics(case.build(), source, brighter(target))
    # IntraDA's source is the easy part of the target
    follows_source = (case.source is not None and case.target is None) or name == "intrada"
    assert torch.equal(before, other_source) != follows_source
    assert torch.equal(before, other_target) != (case.target is not None)


def test_untracked_puts_the_momenta_back() -> None:
    net = network()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for i, norm in enumerate(norms):
        norm.momentum = None if i == 0 else i / 100
    before = [norm.momentum for norm in norms]
    inside = []
    with contextlib.suppress(KeyboardInterrupt), untracked(net):
        inside += [norm.momentum for norm in norms]
        raise KeyboardInterrupt
    assert set(inside) == {0.0}
    assert [norm.momentum for norm in norms] == before


# ---- what methods refuse, and other networks


LABELLED = [name for name in SEGMENTING if {"labelled", "mixed"} & {CASES[name].source, CASES[name].target}]


@pytest.mark.parametrize("name", LABELLED)
def test_a_batch_without_its_labels_is_refused(name: str) -> None:
    method, batches = CASES[name].build(), CASES[name].batches()
    with pytest.raises(ValueError, match="labels: wanted a labelled batch, got one without labels"):
        list(method.losses(*(b and replace(b, labels=None) for b in batches)))


def test_an_auxiliary_head_fits_any_network() -> None:
    net = network(name="pspnet-resnet18")
    method = AdaptSegNet(net, AdaptSegNetSettings(discriminator_width=4), K).eval()
    main, aux = method.levels(torch.rand(T, 3, H, W))
    assert main.shape == aux.shape == (T, K, H, W)
    groups = list(method.losses(batch(), batch("bare", seed=2)))
    assert [list(group) for group in groups] == [["seg", "seg_aux"], ["adv", "adv_aux"], ["disc", "disc_aux"]]


def test_auxiliary_heads_are_no_part_of_the_network() -> None:
    """What is scored and handed on is the network alone, which the head of the lower level does not change."""
    method = CASES["adaptsegnet"].build().eval()
    images = torch.rand(2, 3, H, W)
    before = method.network(images)
    with torch.no_grad():
        for parameter in method.auxiliary.parameters():
            parameter.add_(1)
    assert torch.equal(method.network(images), before)
    assert not set(method.network.state_dict()) & set(method.auxiliary.state_dict())
