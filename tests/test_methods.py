"""Every method: two steps, finite losses, and gradients that go where they should."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from vda import config
from vda.data.tubes import Batch
from vda.flow.flownet2 import build_estimator
from vda.methods import METHODS, Method
from vda.methods.vst import refine
from vda.models import build_network

K, T, H, W = 3, 2, 32, 48


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network("deeplab-resnet18", K, width=8, batch_norm="train")


def flow_network(variant: str) -> nn.Module:
    torch.manual_seed(0)
    return build_estimator(variant, width=4)


def batch(labelled: bool = True, flow: float = 0.0, frames: int = T) -> Batch:
    generator = torch.Generator().manual_seed(1)
    flows = torch.zeros(2, frames - 1, 2, 2, H, W)
    flows[:, :, 0, 0], flows[:, :, 1, 0] = flow, -flow
    labels = torch.randint(0, K + 1, (2, frames, H // 8, W // 8), generator=generator)
    labels = labels.repeat_interleave(8, 2).repeat_interleave(8, 3).to(torch.uint8)
    labels[labels == K] = 255
    return Batch(torch.rand(2, frames, 3, H, W, generator=generator), labels if labelled else None, flows, [])


def methods() -> Iterator[pytest.param]:
    for name in METHODS:
        if name == "vat":
            for tube in ("tube", "frame", "none"):
                for discriminator in ("sequence", "image", "none"):
                    settings = config.VAT(tube=tube, discriminator=discriminator)  # type: ignore[arg-type]
                    yield pytest.param(
                        lambda s=settings: METHODS["vat"](network(), s, K, T),
                        id=f"vat-{tube}-{discriminator}",
                    )
            lsgan = config.VAT(gan="least_squares")
            yield pytest.param(lambda s=lsgan: METHODS["vat"](network(), s, K, T), id="vat-least_squares")
        elif name == "vst":
            for mode in ("strict", "lenient", "fill_in", "none"):
                settings = config.VST(refine=mode, source_weight=0.5 if mode == "none" else 0.0)  # type: ignore[arg-type]
                yield pytest.param(
                    lambda s=settings: METHODS["vst"](network(), s, config.Occlusion()), id=f"vst-{mode}"
                )
        elif name == "flow":
            for variant in ("flownet2-c", "flownet2-s", "flownet2-sd"):
                yield pytest.param(lambda v=variant: METHODS["flow"](flow_network(v)), id=variant)
        else:
            yield pytest.param(lambda n=name: METHODS[n](network()), id=name)


@pytest.mark.parametrize("build", list(methods()))
def test_two_steps(build: object) -> None:
    method: Method = build()  # type: ignore[operator]
    method.train()
    optimiser = torch.optim.SGD(method.parameters(), lr=0.01)
    before = [p.clone() for p in method.parameters()]
    for _ in range(2):
        optimiser.zero_grad()
        for group in method.losses(batch(), batch()):
            assert all(loss.ndim == 0 and loss.isfinite() for loss in group.values())
            torch.stack(list(group.values())).sum().backward()
        optimiser.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True)]
    assert all(moved), "a parameter that no loss reaches"


@pytest.mark.parametrize("discriminator", ["sequence", "image"])
def test_each_loss_reaches_its_own_parameters_alone(discriminator: str) -> None:
    method = METHODS["vat"](network(), config.VAT(discriminator=discriminator), K, T)  # type: ignore[arg-type]

    def touched() -> set[str]:
        names = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        method.zero_grad(set_to_none=True)
        return names

    reached = {}
    for group in method.losses(batch(), batch()):
        torch.stack(list(group.values())).sum().backward()
        reached[next(iter(group))] = touched()
    assert reached == {"seg": {"network"}, "adv": {"network"}, "disc": {"discriminators"}}


@pytest.mark.parametrize("discriminator", ["sequence", "none"])
def test_running_statistics_follow_the_target_once_it_is_seen(discriminator: str) -> None:
    """Black source, white target: the first norm's running mean tells whose statistics it holds."""
    source, target = batch(), batch(labelled=False)
    source.frames.zero_()
    target.frames.fill_(1.0)
    found = {}
    for name, only in (("both", target), ("source", source)):
        method = METHODS["vat"](network(), config.VAT(discriminator=discriminator), K, T).train()  # type: ignore[arg-type]
        list(method.losses(source, only))
        norm = next(m for m in method.network.modules() if isinstance(m, nn.BatchNorm2d))
        found[name] = norm.running_mean.clone()
        assert norm.momentum == 0.1
    assert torch.equal(found["both"], found["source"]) == (discriminator == "none")
    assert found["source"].abs().sum() > 0


def test_vat_source_loss_is_eq_9_by_hand() -> None:
    """Cross entropies of the frames added, not averaged, plus the tube loss over both frames."""
    method = METHODS["vat"](network(), config.VAT(discriminator="none"), K, T)
    method.eval()
    source = batch()
    (group,) = method.losses(source, source)
    logits = torch.stack(
        [
            nn.functional.interpolate(method.network(source.frames[:, t]), (H, W), mode="bilinear", align_corners=True)
            for t in range(T)
        ],
        2,
    )
    assert source.labels is not None
    y = source.labels.long()
    seg = sum(nn.functional.cross_entropy(logits[:, :, t], y[:, t], ignore_index=255) for t in range(T))
    assert float(group["seg"].detach()) == pytest.approx(float(seg.detach()), rel=1e-5)
    p, valid = logits.softmax(1), (y != 255)
    tube = 0.0
    for b in range(2):
        for k in range(K):
            q = (y[b] == k).float()
            pk = p[b, k] * valid[b]
            tube += float((1 - 2 * (pk * q).sum() / ((pk**2).sum() + (q**2).sum())).detach()) / 2
    assert float(group["tube"].detach()) == pytest.approx(tube, rel=1e-5)


def test_refinement_cuts_out_what_the_other_frame_denies() -> None:
    still = batch()
    assert still.labels is not None
    refined = refine(still, "strict", config.Occlusion())
    agree = still.labels[:, 0] == still.labels[:, 1]
    for t in range(2):  # both directions, zero flow: kept exactly where the two agree
        wanted = torch.where(agree, still.labels[:, t], torch.full_like(still.labels[:, t], 255))
        assert torch.equal(refined[:, t], wanted)
    assert torch.equal(refine(still, "none", config.Occlusion()), still.labels)


def test_refinement_follows_the_flow() -> None:
    moving = batch(flow=8.0, frames=3)
    assert moving.labels is not None
    for t in (1, 2):
        moving.labels[:, t] = moving.labels[:, 0].roll(8 * t, -1)
    refined = refine(moving, "strict", config.Occlusion())
    # frame 1 looks back 8 pixels: its first 8 columns have no reference, the rest agrees
    assert (refined[:, 1, :, :8] == 255).all()
    assert torch.equal(refined[:, 1, :, 8:], moving.labels[:, 1, :, 8:])
    # frame 0 looks forward 8 pixels: its last 8 columns have no reference
    assert (refined[:, 0, :, -8:] == 255).all()
    assert torch.equal(refined[:, 0, :, :-8], moving.labels[:, 0, :, :-8])
