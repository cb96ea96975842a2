"""The losses of every method against its equation, written a second time with torch's own functions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_cases import CASES, THETA, H, K, T, W, batch
from torch import Tensor, nn

from vda.data.tubes import Batch
from vda.histogram import soft_histogram
from vda.methods import Method
from vda.methods.vst import refine
from vda.options import Occlusion

Values = dict[str, float]


def frozen(name: str) -> Method:
    """The method of a case, with batch norm in evaluation mode, so that every forward pass is the same function."""
    return CASES[name].build().eval()


def losses(method: Method, name: str) -> Values:
    found: Values = {}
    for group in method.losses(*CASES[name].batches()):
        found |= {key: float(loss.detach()) for key, loss in group.items()}
    return found


def same(found: Values, wanted: dict[str, Tensor], rel: float = 2e-5) -> None:
    assert found == {key: pytest.approx(float(x.detach()), rel=rel, abs=1e-7) for key, x in wanted.items()}
    assert all(abs(x) > 1e-8 for x in found.values()), "a loss that would equal anything"


def images(of: Batch) -> Tensor:
    return of.frames.flatten(0, 1)


def labels(of: Batch) -> Tensor:
    assert of.labels is not None
    return of.labels.flatten(0, 1).long()


def large(logits: Tensor) -> Tensor:
    return F.interpolate(logits, (H, W), mode="bilinear", align_corners=True).double()


def ce(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, ignore_index=255)


def per_pixel(of: Tensor) -> Tensor:
    """Entropy [N, H, W] of logits, in nats."""
    p = of.softmax(1)
    return -(p * p.log()).sum(1)


def inputs(name: str) -> tuple[Method, Batch, Batch]:
    source, target = CASES[name].batches()
    return frozen(name), source or batch(), target or batch()


def adversarial(critic: nn.Module, x: Tensor, is_target: bool, gan: str) -> Tensor:
    score = critic(x.float()).double()
    if gan == "least_squares":
        return (score - float(is_target)).square().mean()
    return -torch.log(score.sigmoid() if is_target else 1 - score.sigmoid()).mean()


def contest(critic: nn.Module, source: Tensor, target: Tensor, weight: float, gan: str) -> tuple[Tensor, Tensor]:
    """Adversarial loss of the network, passing target for source, and loss of the discriminator."""
    own = adversarial(critic, source, False, gan) + adversarial(critic, target, True, gan)
    return weight * adversarial(critic, target, False, gan), own / 2


def information(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return -p * torch.log2(p) / np.log2(K)


@pytest.mark.parametrize(
    ("name", "weights", "gan"),
    [
        ("adaptsegnet", (0.001, 0.0002), "vanilla"),
        ("adaptsegnet:single_level", (0.001,), "vanilla"),
        ("adaptsegnet:least_squares", (0.01,), "least_squares"),
        ("advent", (0.001, 0.0002), "vanilla"),
        ("advent:single_level", (0.001,), "vanilla"),
        ("intrada", (0.001, 0.0002), "vanilla"),
        ("iat", (0.01,), "least_squares"),
        ("iat:multi_level", (0.01, 0.0002), "least_squares"),
    ],
)
def test_adversarial_image_methods(name: str, weights: tuple[float, ...], gan: str) -> None:
    method, source, target = inputs(name)
    maps = information if name.startswith(("advent", "intrada")) else lambda logits: logits.softmax(1)
    wanted = {}
    for level, weight in zip(("", "_aux"), weights, strict=False):

        def logits(x: Tensor, level: str = level) -> Tensor:
            third, fourth = method.network.features(x)
            return large(method.auxiliary["aux"](third) if level else method.network.head(fourth))

        ours, theirs = logits(images(source)), logits(images(target))
        wanted["seg" + level] = (0.1 if level else 1.0) * ce(ours, labels(source))
        critic = method.discriminators["aux" if level else "main"]
        wanted["adv" + level], wanted["disc" + level] = contest(critic, maps(ours), maps(theirs), weight, gan)
    same(losses(method, name), wanted)


@pytest.mark.parametrize("name", ["minent", "minent:single_level"])
def test_minent(name: str) -> None:
    method, source, target = inputs(name)
    third, fourth = method.network.features(images(source))
    wanted = {"seg": ce(large(method.network.head(fourth)), labels(source))}
    third_t, fourth_t = method.network.features(images(target))
    wanted["ent"] = 0.001 * per_pixel(large(method.network.head(fourth_t))).mean() / np.log(K)
    if name == "minent":
        wanted["seg1"] = 0.1 * ce(large(method.auxiliary["aux"](third)), labels(source))
        wanted["ent1"] = 0.0002 * per_pixel(large(method.auxiliary["aux"](third_t))).mean() / np.log(K)
    assert not method.discriminators
    same(losses(method, name), wanted)


@pytest.mark.parametrize("name", ["source_only", "oracle"])
def test_supervised(name: str) -> None:
    method, source, _ = inputs(name)
    same(losses(method, name), {"seg": ce(large(method.network(images(source))), labels(source))})


@pytest.mark.parametrize("name", ["cbst", "crst", "ccm"])
def test_mixed_self_training(name: str) -> None:
    """One sum over the labelled pixels of both domains; MRKLD over those of the target, the first tube."""
    method, _, target = inputs(name)
    logits, y = large(method.network(images(target))), labels(target)
    wanted = {"seg": ce(logits, y)}
    if name == "crst":
        labelled = (y != 255)[:T]
        wanted["reg"] = 0.01 * -logits.log_softmax(1).mean(1)[:T][labelled].mean()
    if name == "ccm":
        wanted["ent"] = 0.5 * per_pixel(logits).mean()  # labelled or not
    same(losses(method, name), wanted)


def test_lrent() -> None:
    """Pixel by pixel; at its first step the network is the one that labelled."""
    method, _, target = inputs("crst:lrent")
    p = large(method.network(images(target))).softmax(1).detach().numpy()
    y, theta, total, count, dropped = labels(target), THETA.double().numpy(), 0.0, 0, 0
    for n, r, c in np.ndindex(2 * T, H, W):
        own = p[n, :, r, c]
        if n >= T:  # the second tube, of the source
            if y[n, r, c] == 255:
                continue
            soft = np.eye(K)[int(y[n, r, c])]
        else:
            soft = (own / theta) ** 4
            soft /= soft.sum()
            if not (-soft * np.log(own) + 0.25 * soft * np.log(soft)).sum() < (-soft * np.log(theta)).sum():
                dropped += 1
                continue
        total -= (soft * np.log(own)).sum()
        count += 1
    assert 0.05 < dropped / (T * H * W) < 0.95
    same(losses(method, "crst:lrent"), {"seg": torch.tensor(total / count)}, rel=2e-4)  # a pixel at the bar


@pytest.mark.parametrize("name", ["fda", "fda:later_round"])
def test_fda(name: str) -> None:
    """Frame by frame of the two batches; the entropy at the resolution that the network puts out."""
    method, source, target = inputs(name)
    s, t = (np.fft.fftshift(np.fft.fft2(images(x).double().numpy()), axes=(-2, -1)) for x in (source, target))
    b = int(0.05 * min(H, W))
    window = (..., slice(H // 2 - b, H // 2 + b + 1), slice(W // 2 - b, W // 2 + b + 1))
    amplitude = np.abs(s)
    amplitude[window] = np.abs(t)[window]
    styled = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(s)), axes=(-2, -1))).real
    logits = method.network(images(target)).double()
    wanted = {
        "seg": ce(large(method.network(torch.from_numpy(styled).float())), labels(source)),
        "ent": 0.005 * ((per_pixel(logits) / np.log(K)) ** 2 + 1e-8).pow(2).mean(),
    }
    if target.labels is not None:
        wanted["pseudo"] = ce(large(logits), labels(target))
    same(losses(method, name), wanted)


def iast_regulariser(logits: Tensor, y: Tensor) -> Tensor:
    p = logits.softmax(1)
    ignored = (y == 255)[:, None].expand_as(p)
    return 3.0 * -(p * p.log())[ignored].mean() + 0.1 * -p.log()[~ignored].mean() / K


@pytest.mark.parametrize("name", ["iast", "iast:source"])
def test_iast(name: str) -> None:
    method, source, target = inputs(name)
    logits = large(method.network(images(target)))
    wanted = {"seg": ce(logits, labels(target)), "reg": iast_regulariser(logits, labels(target))}
    if name == "iast:source":
        wanted["source"] = 0.5 * ce(large(method.network(images(source))), labels(source))
    same(losses(method, name), wanted)


def tube_loss(p: Tensor, y: Tensor) -> Tensor:
    """Eq. 6 and 7: probabilities [B, K, T, H, W], labels [B, T, H, W]."""
    q = torch.stack([y == k for k in range(K)], 1).double()
    p = p * (y != 255)[:, None]
    dice = 2 * (p * q).flatten(2).sum(2) / (p**2 + q**2).flatten(2).sum(2)
    return (1 - dice).sum(1).mean()


@pytest.mark.parametrize("name", [name for name in CASES if name.split(":")[0] == "vat"])
def test_vat(name: str) -> None:
    """Eq. 9: cross entropies of the frames added, not averaged, and the tube loss; Eq. 8 or Eq. 1."""
    method, source, target = inputs(name)
    assert source.labels is not None
    gan, weight = ("least_squares", 0.01) if name == "vat:least_squares" else ("vanilla", 0.001)
    y = source.labels.long()
    ours, theirs = (large(method.network(images(x))).unflatten(0, (2, T)) for x in (source, target))
    wanted = {"seg": torch.stack([ce(ours[:, t], y[:, t]) for t in range(T)]).sum()}
    tubes = [x.softmax(2).transpose(1, 2) for x in (ours, theirs)]
    if "tube-" in name or name == "vat:least_squares":
        wanted["tube"] = tube_loss(tubes[0], y)
    elif "frame-" in name:
        wanted["tube"] = torch.stack([tube_loss(tubes[0][:, :, t : t + 1], y[:, t : t + 1]) for t in range(T)]).mean()
    if "video" in method.discriminators:
        wanted["adv"], wanted["disc"] = contest(method.discriminators["video"], *tubes, weight, gan)
    elif "image" in method.discriminators:
        frames = [x.softmax(2).flatten(0, 1) for x in (ours, theirs)]
        wanted["adv"], wanted["disc"] = contest(method.discriminators["image"], *frames, weight, gan)
    else:
        assert name.endswith("none")
    same(losses(method, name), wanted)


@pytest.mark.parametrize("name", [name for name in CASES if name.split(":")[0] == "vst"])
def test_vst(name: str) -> None:
    """Eq. 12 under no flow: the reference of a pixel is the same pixel of the other frame of the tube."""
    method, source, target = inputs(name)
    assert target.labels is not None
    target = replace(target, frames=target.frames[:, :1].expand(-1, T, -1, -1, -1))  # so that all can be seen
    y, other = target.labels.long(), target.labels.long().flip(1)
    keep = {
        "vst:strict": y == other,
        "vst:source": y == other,
        "vst:lenient": (y == other) | (other == 255),
        "vst:fill_in": torch.ones_like(y, dtype=torch.bool),
        "vst:none": torch.ones_like(y, dtype=torch.bool),
    }[name]
    refined = y.where(keep, 255)
    if name == "vst:fill_in":
        refined = y.where(y != 255, other)
    assert torch.equal(refined, y) == (name == "vst:none")
    logits = large(method.network(images(target))).unflatten(0, (2, T))
    wanted = {
        "seg": torch.stack([ce(logits[:, t], refined[:, t]) for t in range(T)]).sum(),
        "reg": torch.stack([iast_regulariser(logits[:, t], refined[:, t]) for t in range(T)]).sum(),
    }
    found: Values = {}
    for group in method.losses(source if name == "vst:source" else None, target):
        found |= {key: float(loss.detach()) for key, loss in group.items()}
    if name == "vst:source":
        wanted["source"] = 0.5 * ce(large(method.network(images(source))), labels(source))
    same(found, wanted)


def test_videogan_translation() -> None:
    method, source, target = inputs("videogan:translation")
    to_target, to_source = method.network.there(source.frames), method.network.back(target.frames)
    wanted = {}
    for name, real, fake in (("target", target.frames, to_target), ("source", source.frames, to_source)):
        maps = real.flatten(0, 1), fake.flatten(0, 1)
        critic = method.discriminators[name]
        wanted[f"adv_{name}"], wanted[f"disc_{name}"] = contest(critic, *maps, 1.0, "least_squares")
    back, there = method.network.back(to_target), method.network.there(to_source)
    wanted["cycle"] = 10 * ((back - source.frames).abs().mean() + (there - target.frames).abs().mean())

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return (soft_histogram(a) - soft_histogram(b)).square().mean()

    wanted["histogram"] = sum(
        apart(fake.flatten(0, 1), real.flatten(0, 1)) + apart(fake[:, 0], fake[:, 1])
        for fake, real in ((to_target, target.frames), (to_source, source.frames))
    )
    same(losses(method, "videogan:translation"), wanted)


def test_videogan_segmentation() -> None:
    """On translated frames, with a translator that is neither trained nor saved."""
    method, source, _ = inputs("videogan:segmentation")
    translator = method._translator[0]
    styled = translator(source.frames).detach().flatten(0, 1)
    assert (styled - images(source)).abs().max() > 0.1
    before = {key: x.clone() for key, x in translator.state_dict().items()}
    same(
        losses(method.train().eval(), "videogan:segmentation"),
        {"seg": ce(large(method.network(styled)), labels(source))},
    )
    assert all(p.grad is None for p in translator.parameters())
    assert not {id(p) for p in translator.parameters()} & {id(p) for p in method.parameters()}
    assert all(torch.equal(x, before[key]) for key, x in translator.state_dict().items())


# ---- the refinement of VST


def test_refinement_cuts_out_what_the_other_frame_denies() -> None:
    still = batch()
    assert still is not None
    assert still.labels is not None
    refined = refine(still, "strict", Occlusion())
    agree = still.labels[:, 0] == still.labels[:, 1]
    for t in range(2):  # both directions, zero flow: kept exactly where the two agree
        wanted = torch.where(agree, still.labels[:, t], torch.full_like(still.labels[:, t], 255))
        assert torch.equal(refined[:, t], wanted)
    assert torch.equal(refine(still, "none", Occlusion()), still.labels)


def test_refinement_follows_the_flow() -> None:
    moving = batch(flow=8.0, frames=3)
    assert moving is not None
    assert moving.labels is not None
    for t in (1, 2):
        moving.labels[:, t] = moving.labels[:, 0].roll(8 * t, -1)
    refined = refine(moving, "strict", Occlusion())
    # frames 1 and 2 look back 8 pixels: their first 8 columns have no reference, the rest agrees
    assert (refined[:, 1:, :, :8] == 255).all()
    assert torch.equal(refined[:, 1:, :, 8:], moving.labels[:, 1:, :, 8:])
    # frame 0 looks forward 8 pixels: its last 8 columns have no reference
    assert (refined[:, 0, :, -8:] == 255).all()
    assert torch.equal(refined[:, 0, :, :-8], moving.labels[:, 0, :, :-8])


def test_refinement_wants_the_flow() -> None:
    still = batch()
    assert still is not None
    with pytest.raises(ValueError, match="flows: wanted the optical flow of the tubes for the refinement, got none"):
        refine(replace(still, flows=None), "strict", Occlusion())
