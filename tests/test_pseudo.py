"""Algorithm 1 against a loop written from the paper, and the files: resumable, refused where foreign."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import ArrayClip, dataset, scrolling_clip
from torch import Tensor, nn

from vda import pseudo
from vda.data.clip import VideoDataset
from vda.errors import UsageError
from vda.options import Occlusion, Pseudo

K = 3
CPU = torch.device("cpu")


class ColourNet(nn.Module):
    """Logits that are fixed random functions of the colour: confidences of all sizes, at full resolution."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.mix = 6 * torch.randn(K, 3, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("kc,nchw->nkhw", self.mix, images - 0.5)


def noisy(clip: ArrayClip, seed: int) -> ArrayClip:
    rng = np.random.default_rng(seed)
    frames = np.clip(clip.frames.astype(int) + rng.integers(-25, 26, clip.frames.shape), 0, 255)
    return replace(clip, frames=frames.astype(np.uint8))


def clips() -> VideoDataset:
    return dataset(*(noisy(scrolling_clip(f"clip{n}", length=3 + n, seed=n), n) for n in range(3)))


def generator(**settings: object) -> pseudo.Generator:
    wanted = Pseudo(**{"aggregate": True, **settings})  # type: ignore[arg-type]
    return pseudo.Generator(ColourNet(), lambda clip, i, j: clip.exact_flow(i, j), wanted, Occlusion(), CPU)


def run(folder: Path, **settings: object) -> pseudo.PseudoLabels:
    return pseudo.generate(generator(**settings), clips(), folder, model="m", flow_name="exact", seed=4)


def softmax_of(clip: ArrayClip, i: int) -> np.ndarray:
    x = torch.from_numpy(clip.frames[i]).permute(2, 0, 1)[None].float() / 255
    return ColourNet()(x).softmax(1)[0].numpy()


def aggregated(clip: ArrayClip, i: int) -> np.ndarray:
    """Eq. 10, pixel by pixel, for the integer horizontal flow of the scrolling clip."""
    total, count = softmax_of(clip, i).copy(), np.ones(clip.frames.shape[1:3])
    image = clip.frames[i] / 255
    H, W = count.shape
    for j in (i - 1, i + 1):
        if not 0 <= j < len(clip):
            continue
        p, other = softmax_of(clip, j), clip.frames[j] / 255
        u = int(clip.flow[0] * (j - i))
        for x in range(W):
            if not 0 <= x + u < W:
                continue
            for y in range(H):
                error = np.sum((image[y, x] - other[y, x + u]) ** 2)
                if np.exp(-50 * error) > 0.7:
                    total[:, y, x] += p[:, y, x + u]
                    count[y, x] += 1
    return total / count


@pytest.mark.parametrize("aggregate", [True, False])
def test_algorithm_1(aggregate: bool, tmp_path: Path) -> None:
    labels = run(tmp_path, aggregate=aggregate, gamma=2.0)
    data = clips()
    theta = np.full(K, 0.9)
    for c in np.random.default_rng(4).permutation(len(data.clips)):
        clip = data.clips[c]
        maps = np.stack([(aggregated if aggregate else softmax_of)(clip, i) for i in range(len(clip))])
        value, index = maps.max(1).astype(np.float16).astype(float), maps.argmax(1)
        for k in range(K):
            ordered = np.sort(value[index == k])[::-1]
            if len(ordered):
                place = min(int(0.2 * theta[k] ** 2.0 * len(ordered)), len(ordered) - 1)
                theta[k] = min(0.9 * theta[k] + 0.1 * ordered[place], 0.999)
        wanted = np.where(value > theta[index], index, 255)
        found = np.stack([labels(clip, i) for i in range(len(clip))])
        # 16-bit confidences of two orders of summation may differ in the last bit on a pixel here and there
        assert (found != wanted).mean() < 2e-3
        entry = next(e for e in labels.manifest[1:] if e["clip"] == clip.name)
        np.testing.assert_allclose(entry["theta"], theta, atol=2e-4)
        assert entry["coverage"] == [float((found == k).mean()) for k in range(K)]
    assert 0 < labels.coverage < 1


def test_policies_share_thresholds_over_different_units(tmp_path: Path) -> None:
    by_clip, by_frame = (
        run(tmp_path / "c", gamma=1.0),
        run(tmp_path / "i", policy="instance_adaptive", gamma=1.0),
    )
    assert by_clip.manifest[-1]["theta"] != by_frame.manifest[-1]["theta"]
    single = dataset(*(replace(c, frames=c.frames[:1], labels=None) for c in clips().clips))
    thetas = []
    for policy in ("clip_adaptive", "instance_adaptive"):  # one frame a clip: the two are the same
        labels = pseudo.generate(
            generator(policy=policy), single, tmp_path / policy, model="m", flow_name="exact", seed=0
        )
        thetas.append([e["theta"] for e in labels.manifest[1:]])
    assert thetas[0] == thetas[1]


def test_class_balanced_is_cbst(tmp_path: Path) -> None:
    """Thresholds of the whole set at one portion, labels by the largest P / theta."""
    labels = run(tmp_path, policy="class_balanced", aggregate=False, alpha=0.3)
    data = clips()
    maps = np.stack([softmax_of(c, i) for c in data.clips for i in range(len(c))])
    value, index = maps.max(1).astype(np.float16), maps.argmax(1)
    theta = np.ones(K)
    for k in range(K):
        ordered = np.sort(value[index == k])[::-1]
        if (m := int(0.3 * len(ordered))) > 0:
            theta[k] = float(ordered[m - 1])
    ratio = maps / theta[None, :, None, None]
    wanted = np.where(ratio.max(1).astype(np.float16) >= 1, ratio.argmax(1), 255)
    found = np.stack([labels(c, i) for c in data.clips for i in range(len(c))])
    assert (found != wanted).mean() < 5e-3
    assert labels.manifest[1]["theta"] == theta.tolist()
    assert len({tuple(e["theta"]) for e in labels.manifest[1:]}) == 1


class Given(nn.Module):
    """The same probabilities [K, W] for every frame [1, W]."""

    def __init__(self, *rows: list[float]) -> None:
        super().__init__()
        self.probs = torch.tensor(rows)

    def forward(self, images: Tensor) -> Tensor:
        return self.probs.log()[None, :, None]


def given(*rows: list[float], **settings: object) -> tuple[pseudo.Generator, VideoDataset]:
    blank = ArrayClip("blank", np.zeros((1, 1, len(rows[0]), 3), np.uint8))
    balanced = generator(policy="class_balanced", aggregate=False, **settings)
    return replace(balanced, network=Given(*rows)), dataset(blank, classes=len(rows))


# golden example 7, and which pixels are labelled
@pytest.mark.parametrize(("portion", "theta", "labelled"), [(0.2, 0.9, 1), (0.5, 0.8, 2), (0.1, 1.0, 0)])
def test_thresholds_of_cbst_by_hand(portion: float, theta: float, labelled: int, tmp_path: Path) -> None:
    """The last of the floor(5 p) highest of five confidences, which is labelled; 1 where that is none, or no pixel."""
    source, data = given([0.9, 0.8, 0.7, 0.6, 0.55], [0.1, 0.2, 0.3, 0.4, 0.45], alpha=portion)
    found = pseudo.portion_thresholds(source, data)
    assert found.tolist() == [torch.tensor(theta).half().item(), 1.0]
    labels = pseudo.generate(source, data, tmp_path, model="m", flow_name="none", seed=0)
    assert labels(data.clips[0], 0).tolist() == [[0] * labelled + [255] * (5 - labelled)]


# golden example 8: theta (0.9, 0.5) and P (0.6, 0.4), (0.45, 0.55); theta (0.9, 0.4) and P (0.52, 0.48)
@pytest.mark.parametrize(
    ("theta", "first", "wanted"),
    [((0.9, 0.5), [0.6, 0.45, 0.5], [255, 1, 1]), ((0.9, 0.4), [0.52, 0.92, 0.7], [1, 0, 255])],
)
def test_labels_of_cbst_by_hand(
    theta: tuple[float, float], first: list[float], wanted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class of the largest P / theta, argmax or not, where that reaches 1: of 0.6 / 0.9 and 0.4 / 0.5 neither."""
    source, data = given(first, [1 - p for p in first])
    monkeypatch.setattr(pseudo, "portion_thresholds", lambda generator, dataset: torch.tensor(theta))
    labels = pseudo.generate(source, data, tmp_path, model="m", flow_name="none", seed=0)
    assert labels(data.clips[0], 0).tolist() == [wanted]


def test_certain_pixels_reach_their_threshold(tmp_path: Path) -> None:
    """16-bit confidences that are all 1 have the threshold 1; nothing may be lost for it."""
    source, data = given([1.0, 1.0, 1e-6, 0.6], [1e-6, 1e-6, 1.0, 0.4], alpha=0.5)
    labels = pseudo.generate(source, data, tmp_path, model="m", flow_name="none", seed=0)
    assert labels.manifest[1]["theta"] == [1.0, 1.0]
    assert labels(data.clips[0], 0).tolist() == [[0, 0, 1, 255]]


def test_class_without_a_pixel_is_never_labelled(tmp_path: Path) -> None:
    net = ColourNet()
    net.mix[2] = 0.0  # logit 0 never wins against colours on both sides of grey
    net.mix[1] = -net.mix[0]
    source = replace(generator(policy="class_balanced"), network=net)
    labels = pseudo.generate(source, clips(), tmp_path, model="m", flow_name="exact", seed=0)
    assert all(e["coverage"][2] == 0 for e in labels.manifest[1:])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("policy", list(pseudo.POLICIES))
def test_interrupted_run_ends_with_identical_files(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", policy=policy)
    written = []
    original = pseudo.write_label

    def failing(path: Path, label: np.ndarray) -> None:
        if len(written) >= 7:  # labels are written by several threads
            raise KeyboardInterrupt
        written.append(path)
        original(path, label)

    monkeypatch.setattr(pseudo, "write_label", failing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", policy=policy)
    monkeypatch.setattr(pseudo, "write_label", original)
    done = len((tmp_path / "stopped" / "manifest.jsonl").read_text().splitlines()) - 1
    assert 0 < done < 3
    run(tmp_path / "stopped", policy=policy)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    run(tmp_path / "stopped", policy=policy)  # a finished run is left as it is
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_foreign_manifest_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(
        UsageError, match=r"manifest\.jsonl: these pseudo labels are of another model: wanted n, found m"
    ):
        pseudo.generate(generator(), clips(), tmp_path, model="n", flow_name="exact", seed=4)
    with pytest.raises(UsageError, match=r"another settings"):
        run(tmp_path, alpha=0.5)
    (tmp_path / "manifest.jsonl").write_text("{half")
    with pytest.raises(UsageError, match=r"manifest\.jsonl: wanted a manifest"):
        run(tmp_path)


def test_labels_are_read_back(tmp_path: Path) -> None:
    assert pseudo.read_labels(tmp_path) is None
    labels, again = run(tmp_path), pseudo.read_labels(tmp_path)
    assert again is not None
    assert again.manifest == labels.manifest
    assert again.theta == labels.manifest[-1]["theta"]
    (tmp_path / "manifest.jsonl").write_text("[]")
    with pytest.raises(UsageError, match=r"manifest\.jsonl: wanted a manifest of pseudo labels"):
        pseudo.read_labels(tmp_path)


def test_what_a_set_is_predicted_as(tmp_path: Path) -> None:
    """Shares of all pixels and entropies of frames, against the network's own predictions."""
    labels, data = run(tmp_path, aggregate=False), clips()
    maps = {(c.name, i): softmax_of(c, i) for c in data.clips for i in range(len(c))}
    index = np.concatenate([p.argmax(0).ravel() for p in maps.values()])
    assert labels.predicted == pytest.approx([float((index == k).mean()) for k in range(K)], abs=1e-3)
    assert sum(labels.predicted) == pytest.approx(1)
    found = np.concatenate([labels(c, i).ravel() for c in data.clips for i in range(len(c))])
    assert labels.coverage == pytest.approx((found != 255).mean())

    for clip in data.clips:
        for i in range(len(clip)):
            p = maps[clip.name, i]
            wanted = float(-(p * np.log(p)).sum(0).mean() / np.log(K))
            assert labels.entropy(clip, i) == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(IndexError):
        labels.entropy(data.clips[0], len(data.clips[0]))


def test_shares_and_entropies_by_hand(tmp_path: Path) -> None:
    """A clip weighs by its frames."""
    manifest = [
        {"model": "m"},
        {"clip": "a", "frames": 1, "predicted": [1.0, 0.0], "coverage": [0.5, 0.0], "entropy": [0.25], "theta": [0.9]},
        {
            "clip": "b",
            "frames": 3,
            "predicted": [0.2, 0.8],
            "coverage": [0.1, 0.3],
            "entropy": [0.5, 0.25, 1.0],
            "theta": [0.7],
        },
    ]
    labels = pseudo.PseudoLabels(tmp_path, manifest)
    assert labels.predicted == pytest.approx([0.4, 0.6])
    assert labels.coverage == pytest.approx((0.5 + 3 * 0.4) / 4)
    assert labels.theta == [0.7]
    one, three = (ArrayClip(name, np.zeros((n, 1, 1, 3), np.uint8)) for name, n in (("a", 1), ("b", 3)))
    assert labels.entropy(one, 0) == 0.25
    assert [labels.entropy(three, i) for i in range(3)] == [0.5, 0.25, 1.0]


def test_entropy_is_that_of_the_network_not_of_its_neighbourhood(tmp_path: Path) -> None:
    """Aggregation changes labels and confidences; how sure the network itself is stays."""
    alone, together = run(tmp_path / "a", aggregate=False), run(tmp_path / "b", aggregate=True)
    assert [e["entropy"] for e in alone.manifest[1:]] == [e["entropy"] for e in together.manifest[1:]]
    assert alone.predicted != together.predicted


def test_labels_are_eight_bit_png(tmp_path: Path) -> None:
    from PIL import Image

    labels = run(tmp_path)
    with Image.open(labels.path(clips().clips[0], 0)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (40, 24))
    head = json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[0])
    assert head["model"] == "m"
    assert head["flow"] == "exact"


def test_memory_is_the_logits_of_three_frames() -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    class Spy(ColourNet):
        def forward(self, images: Tensor) -> Tensor:
            nonlocal most
            logits = super().forward(images)
            alive.add(logits)
            most = max(most, len(alive))
            return logits

    data = dataset(scrolling_clip(length=9))
    assert len(list(pseudo.predictions(replace(generator(), network=Spy()), data.clips[0]))) == 9
    assert most == 3


def test_one_frame_clip_has_no_neighbours(tmp_path: Path) -> None:
    single = dataset(replace(scrolling_clip(), frames=scrolling_clip().frames[:1]))
    assert len(list(pseudo.predictions(generator(), single.clips[0]))) == 1
