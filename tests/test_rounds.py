"""The rounds of methods: which network labels and which one trains, on what, and how settings change in between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import ArrayClip, dataset, scrolling_clip
from torch import Tensor, nn

from vda.config import Config
from vda.data.labels import read_label
from vda.data.transforms import Augment
from vda.data.tubes import Mixed, Tubes, true_labels
from vda.errors import UsageError
from vda.flow.providers import ExactFlow
from vda.methods import METHODS, Round
from vda.methods.cbst import CBSTSettings
from vda.methods.ccm import CCMSettings
from vda.methods.crst import CRSTSettings
from vda.methods.fda import FDASettings
from vda.methods.iast import IASTSettings
from vda.methods.intrada import IntraDASettings
from vda.methods.self_training import SelfTrainingSettings
from vda.methods.videogan import VideoGANSettings
from vda.methods.vst import VSTSettings
from vda.models import Ensemble, build_network
from vda.options import Data, Pseudo
from vda.pseudo import PseudoLabels
from vda.run import Run
from vda.source_selection import matched_source

K, SIZE = 3, (32, 48)
DONE = Path("done")  # where results of methods are that are not trained here


class ColourNet(nn.Module):
    """A stand-in for a trained network, unsure in colours that lie between others."""

    def forward(self, images: Tensor) -> Tensor:
        return 6 * images - 3


class Paper(Run):
    """A run that notes what it is asked for. Nothing is trained; labels are of a share that each test sets."""

    def __init__(self, folder: Path, predicted: Sequence[float] = (0.5, 0.3, 0.2)) -> None:
        self.config = Config(data=Data(size=SIZE), augment=Augment(flip=0.25))
        self.folder, self.shared, self.device = folder, False, torch.device("cpu")
        clips = [scrolling_clip(f"s{n}", 11, SIZE, seed=n) for n in range(10)]  # a hundred tubes
        self.source = dataset(*clips)
        self.target = dataset(*(scrolling_clip(f"t{n}", 6, SIZE, seed=20 + n) for n in range(2)))  # ten
        self.labelled_target = self.validation = self.target
        self.flow = lambda clip, i, j: clip.exact_flow(i, j)  # type: ignore[assignment, method-assign]
        self.entropies = [[0.5, 0.1, 0.1, 0.9, 0.9, 0.2], [0.3, 0.3, 0.8, 0.1, 0.0, 0.0]]
        self.manifest: list[dict[str, Any]] = [{}]
        for clip, entropy in zip(self.target.clips, self.entropies, strict=True):
            known = {"frames": 6, "predicted": list(predicted), "coverage": [0.1] * K, "entropy": entropy}
            self.manifest.append({"clip": clip.name, "theta": [0.9, 0.8, 0.7], **known})
        self.asked: list[tuple[Any, ...]] = []
        self.settings: list[Pseudo] = []

    def result(self, name: str) -> Path:
        return DONE / name

    def network(self, start: str = "") -> nn.Module:
        self.asked.append(("network", start))
        return build_network("deeplab-resnet18", K, width=8)

    def network_at(self, folder: Path) -> nn.Module:
        self.asked.append(("network at", folder))
        return build_network("deeplab-resnet18", K, width=8)

    def pseudo_labels(self, folder: Path, models: Sequence[Path], settings: Pseudo) -> PseudoLabels:
        self.asked.append(("labels", folder, *models))
        self.settings.append(settings)
        return PseudoLabels(folder / "pseudo", self.manifest)


def rounds(run: Paper, name: str, settings: Any = None) -> list[Round]:
    return list(METHODS[name].rounds(run, settings or METHODS[name].settings_type(), run.folder / name))


# ---- self-training


@pytest.mark.parametrize(("name", "start"), [("iast", "iat"), ("cbst", "source_only"), ("crst", "source_only")])
def test_each_round_labels_and_starts_from_the_last(name: str, start: str, tmp_path: Path) -> None:
    run = Paper(tmp_path)
    found, folder = rounds(run, name), tmp_path / name
    folders = [folder / f"round-{r}" for r in (1, 2, 3)]
    assert [training.folder for training in found] == folders
    models = [DONE / start, *folders[:2]]
    pairs = zip(folders, models, strict=True)
    assert run.asked == [ask for here, model in pairs for ask in (("labels", here, model), ("network at", model))]
    assert [settings.alpha for settings in run.settings] == pytest.approx([0.2, 0.25, 0.3])
    default = METHODS[name].settings_type().pseudo
    assert {replace(settings, alpha=default.alpha) for settings in run.settings} == {default}
    assert len({training.target.seed for training in found}) == 3  # every round draws anew


def test_one_round_lies_in_the_folder_itself(tmp_path: Path) -> None:
    run = Paper(tmp_path)
    (training,) = rounds(run, "vst")
    assert training.folder == tmp_path / "vst"
    assert run.asked == [("labels", tmp_path / "vst", DONE / "vat"), ("network at", DONE / "vat")]
    assert (run.settings[0].policy, run.settings[0].aggregate, run.settings[0].alpha) == ("clip_adaptive", True, 0.2)


@pytest.mark.parametrize(
    ("alpha", "step", "wanted"), [(0.2, 0.2, [0.2, 0.4, 0.5, 0.5]), (0.6, 0.1, [0.6] * 4), (0.1, 0.0, [0.1] * 4)]
)
def test_the_portion_grows_to_a_half_or_stays_where_it_began(alpha: float, step: float, wanted: list[float]) -> None:
    settings = SelfTrainingSettings(pseudo=Pseudo(alpha=alpha), alpha_step=step)
    assert [settings.in_round(r).alpha for r in range(4)] == pytest.approx(wanted)


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("name", ["iast", "vst"])
def test_source_of_self_training(name: str, weight: float, tmp_path: Path) -> None:
    """The source is there where it counts; the target is pseudo-labelled, and augmented as the method says."""
    settings = (IASTSettings if name == "iast" else VSTSettings)(source_weight=weight)
    training = rounds(Paper(tmp_path), name, settings)[0]
    assert (training.source is None) == (weight == 0)
    assert isinstance(training.target, Tubes)
    assert training.target.augment == settings.augment
    assert isinstance(training.target.labels, PseudoLabels)
    assert (training.target.flow is not None) == (name == "vst")
    if weight:
        assert isinstance(training.source, Tubes)
        assert training.source.labels is true_labels
        assert training.source.seed != training.target.seed


def test_no_refinement_needs_no_flow(tmp_path: Path) -> None:
    (training,) = rounds(Paper(tmp_path), "vst", VSTSettings(refine="none"))
    assert isinstance(training.target, Tubes)
    assert training.target.flow is None


# ---- CBST and CRST


def test_share_of_the_source_grows(tmp_path: Path) -> None:
    assert [CBSTSettings().source_in_round(r) for r in (0, 1, 12, 20)] == pytest.approx([0.03, 0.0325, 0.06, 0.06])
    assert CBSTSettings(source_share=0.2).source_in_round(3) == 0.2
    settings = CBSTSettings(source_share=0.03, source_share_step=0.01, rounds=5)
    parts = [training.target.parts for training in rounds(Paper(tmp_path), "cbst", settings)]  # type: ignore[union-attr]
    assert [len(source) for source, _ in parts] == [3, 4, 5, 6, 6]
    assert [len(target) for _, target in parts] == [10] * 5
    drawn = [{(clip.name, indices) for clip, indices in source.tubes} for source, _ in parts]
    assert drawn[3] != drawn[4]  # another part of the same size


@pytest.mark.parametrize(
    ("predicted", "rare"), [((0.9, 0.1, 0.0), ()), ((0.9985, 0.0009, 0.0006), (1, 2)), ((0.999, 0.001, 0.0), ())]
)
def test_crops_look_for_rare_classes_of_the_target(
    predicted: tuple[float, ...], rare: tuple[int, ...], tmp_path: Path
) -> None:
    """Predicted for less than a thousandth of the pixels, but for some."""
    training = rounds(Paper(tmp_path, predicted), "cbst")[0]
    assert training.source is None
    assert isinstance(training.target, Mixed)
    source, target = training.target.parts
    assert (source.focus, target.focus) == ((), rare)
    assert source.labels is true_labels
    assert isinstance(target.labels, PseudoLabels)
    assert source.augment == target.augment == CBSTSettings().augment
    assert target.augment.focus == 0.8


def test_soft_labels_want_thresholds_of_the_whole_set(tmp_path: Path) -> None:
    run, adaptive = Paper(tmp_path), Pseudo(policy="clip_adaptive")
    METHODS["crst"].check(run, CRSTSettings(regulariser="lrent"))
    METHODS["crst"].check(run, CRSTSettings(pseudo=adaptive))
    with pytest.raises(UsageError, match="crst: lrent wants thresholds of the whole set, policy clip_adaptive"):
        METHODS["crst"].check(run, CRSTSettings(regulariser="lrent", pseudo=adaptive))


def test_soft_labels_use_the_thresholds_that_labelled(tmp_path: Path) -> None:
    method = rounds(Paper(tmp_path), "crst")[0].method
    torch.testing.assert_close(method.theta, torch.tensor([0.9, 0.8, 0.7]))
    assert "theta" not in method.state_dict()


# ---- FDA, IntraDA, VideoGAN


def test_fda_trains_a_network_for_every_band_of_every_round(tmp_path: Path) -> None:
    run, settings = Paper(tmp_path), FDASettings(betas=(0.01, 0.09), rounds=3)
    found, folder = rounds(run, "fda", settings), tmp_path / "fda"
    bands = [[folder / f"round-{r}" / f"beta-{beta}" for beta in (0.01, 0.09)] for r in (1, 2, 3)]
    assert [training.folder for training in found] == [*bands[0], *bands[1], *bands[2]]
    assert [training.method.beta for training in found] == [0.01, 0.09] * 3
    new = [("network", "source_only")] * 2
    labels = [("labels", folder / f"round-{r}", *bands[r - 2]) for r in (2, 3)]
    assert run.asked == [*new, labels[0], *new, labels[1], *new]
    assert [training.target.labels is None for training in found] == [True] * 2 + [False] * 4  # type: ignore[union-attr]
    assert run.settings == [Pseudo(policy="top_portion", alpha=0.34)] * 2
    assert len({training.target.seed for training in found}) == len({training.source.seed for training in found}) == 3


@pytest.mark.parametrize("fresh", [False, True])
def test_intrada_splits_the_target_by_its_entropy(fresh: bool, tmp_path: Path) -> None:
    run = Paper(tmp_path)
    (training,) = rounds(run, "intrada", IntraDASettings(fresh=fresh))
    easy, hard = training.source, training.target
    assert isinstance(easy, Tubes)
    assert isinstance(hard, Tubes)
    where = [{(clip.name, i) for clip, indices in part.tubes for i in indices} for part in (easy, hard)]
    assert not where[0] & where[1]  # not a frame on both sides
    # Of twelve frames four lie beyond the quantile of 0.67, which is 0.374: those of 0.5, 0.9, 0.9 and 0.8.
    assert {indices for clip, indices in easy.tubes if clip.name == "t0"} == {(1, 2)}
    assert {indices for clip, indices in easy.tubes if clip.name == "t1"} == {(0, 1), (3, 4), (4, 5)}
    assert [(clip.name, indices) for clip, indices in hard.tubes] == [("t0", (3, 4))]
    assert isinstance(easy.labels, PseudoLabels)
    assert hard.labels is None
    assert run.settings == [Pseudo(policy="all")]
    assert run.asked == [("labels", tmp_path / "intrada", DONE / "advent"), ("network", "" if fresh else "advent")]


def test_intrada_wants_frames_on_both_sides(tmp_path: Path) -> None:
    for easy in (0.1, 0.99):
        METHODS["intrada"].check(Paper(tmp_path), IntraDASettings(easy=easy))
    with pytest.raises(UsageError, match="wanted an easy and a hard part of the target's 12 frames"):
        METHODS["intrada"].check(Paper(tmp_path), IntraDASettings(easy=0.08))


def test_videogan_translates_and_then_trains(tmp_path: Path) -> None:
    run = Paper(tmp_path)
    first, second = rounds(run, "videogan", VideoGANSettings(width=4, blocks=1))
    assert [training.folder.name for training in (first, second)] == ["translation", "segmentation"]
    assert second.target is None
    assert first.optimiser.name == "adam"
    assert second.method._translator[0] is first.method.network.there
    assert run.asked == [("network", "")]
    run.config = replace(run.config, data=replace(run.config.data, tube_length=3))
    with pytest.raises(UsageError, match=r"videogan: wanted tubes of 2 frames.*found data\.tube_length 3"):
        METHODS["videogan"].check(run, VideoGANSettings())


@pytest.mark.parametrize("name", ["vat", "vst"])
def test_video_methods_want_tubes(name: str, tmp_path: Path) -> None:
    run = Paper(tmp_path)
    run.config = replace(run.config, data=replace(run.config.data, tube_length=1))
    with pytest.raises(UsageError, match=rf"{name}: wanted data.tube_length of at least 2 frames, found 1"):
        METHODS[name].check(run, METHODS[name].settings_type())


@pytest.mark.parametrize("name", ["iast", "cbst", "crst", "ccm", "fda", "vst"])
def test_labels_that_need_flow_are_refused_before_any_training(name: str, tmp_path: Path) -> None:
    run, settings = Paper(tmp_path), METHODS[name].settings_type()
    run.flow = ExactFlow()
    for aggregate in (False, True):
        settings = replace(settings, pseudo=replace(settings.pseudo, aggregate=aggregate))
        METHODS[name].check(run, settings)
    run.target = dataset(*(replace(clip, flow=None) for clip in run.target.clips))
    with pytest.raises(UsageError, match="clip t0 has no ground-truth flow"):
        METHODS[name].check(run, settings)


# ---- CCM


class Matching(Paper):
    """Labels are the target's own, and every network is a `ColourNet`."""

    def network_at(self, folder: Path) -> nn.Module:
        super().network_at(folder)
        return ColourNet()

    def pseudo_labels(self, folder: Path, models: Sequence[Path], settings: Pseudo) -> Any:
        super().pseudo_labels(folder, models, settings)
        return lambda clip, i: clip.label(i)


def test_ccm_chooses_its_source_anew_every_round(tmp_path: Path) -> None:
    run, settings = Matching(tmp_path), CCMSettings(rounds=3, pool=0.1, matched=0.3)
    method = METHODS["ccm"]
    made = list(method.rounds(run, settings, tmp_path))
    assert [training.optimiser.lr for training in made] == pytest.approx([7.5e-5 / math.sqrt(2) ** r for r in range(3)])
    assert [s.alpha for s in run.settings] == [0.1] * 3
    chosen = []
    for r, training in enumerate(made):
        source, target = training.target.parts  # type: ignore[union-attr]
        assert (len(source), len(target)) == (3, 10)  # of a hundred tubes ten are looked at and three taken
        pool = run.tubes(run.source, None, number=r).part(0.1, r)
        assert {(c.name, i) for c, i in source.tubes} <= {(c.name, i) for c, i in pool.tubes}
        chosen.append({(c.name, i) for c, i in source.tubes})
    assert len({frozenset(tubes) for tubes in chosen}) == 3


def test_ccm_keeps_part_of_each_class(tmp_path: Path) -> None:
    """What stays of the labels is true; of each class of a frame nine tenths, or what ties with them, stay."""
    run, settings = Matching(tmp_path), CCMSettings(pool=0.1, matched=0.3)
    labels = run.pseudo_labels(tmp_path, [], settings.pseudo)
    source = matched_source(run, settings, ColourNet(), labels, tmp_path, 0)
    for clip, indices in source.tubes:
        for i in indices:
            kept, truth = source.labels(clip, i), clip.label(i)  # type: ignore[misc]
            assert np.array_equal(kept, read_label(tmp_path / clip.name / f"{clip.frame_names[i]}.png"))
            assert ((kept == truth) | (kept == 255)).all()
            for k in np.unique(truth):
                assert (kept[truth == k] == k).mean() >= 0.9 - 1e-9


def halves(name: str, mirrored: bool, painted: bool = False) -> ArrayClip:
    """Two frames, left red and of class 0, right green and of class 1, or mirrored; one column painted otherwise."""
    label = np.zeros((2, *SIZE), np.uint8)
    label[:, :, 24:] = 1
    frames = np.where(label[..., None] == 0, [230, 20, 20], [20, 230, 20]).astype(np.uint8)
    if painted:
        frames[:, :, 30] = [230, 20, 20]  # red in the middle of the green
    if mirrored:
        frames, label = frames[:, :, ::-1].copy(), label[:, :, ::-1].copy()
    return ArrayClip(name, frames, label)


def test_ccm_takes_what_lies_and_looks_like_the_target(tmp_path: Path) -> None:
    """Source tubes with the target's left and right, without the pixels that look like another class there."""
    run, settings = Matching(tmp_path), CCMSettings(pool=1.0, matched=0.34, pixels=0.95)
    run.target = dataset(halves("t", mirrored=False))
    run.source = dataset(*(halves(f"s{n}", mirrored=n % 3 > 0, painted=True) for n in range(6)))
    labels = run.pseudo_labels(tmp_path, [], settings.pseudo)
    source = matched_source(run, settings, ColourNet(), labels, tmp_path, 0)
    assert sorted(clip.name for clip, _ in source.tubes) == ["s0", "s3"]
    for clip, _ in source.tubes:
        kept = source.labels(clip, 0)
        wanted = clip.label(0).copy()
        wanted[:, 30] = 255  # one of the 24 columns of its class, 4.2 %
        assert np.array_equal(kept, wanted)


def test_ccm_does_not_choose_twice(tmp_path: Path) -> None:
    """What a stopped run has chosen is read back; the network is not asked again."""

    class Silent(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("asked again")

    run, settings = Matching(tmp_path), CCMSettings(pool=0.1, matched=0.3)
    labels = run.pseudo_labels(tmp_path, [], settings.pseudo)
    first = matched_source(run, settings, ColourNet(), labels, tmp_path, 0)
    again = matched_source(run, settings, Silent(), labels, tmp_path, 0)
    assert [(c.name, i) for c, i in again.tubes] == [(c.name, i) for c, i in first.tubes]


def test_ccm_wants_labelled_source_and_a_pool(tmp_path: Path) -> None:
    run, settings = Matching(tmp_path), CCMSettings(pool=0.1)
    METHODS["ccm"].check(run, CCMSettings(pool=0.01))
    with pytest.raises(UsageError, match=r"ccm: wanted a pool of at least one tube, 0.009 of the source's 100 is none"):
        METHODS["ccm"].check(run, CCMSettings(pool=0.009))
    for clip in run.source.clips:
        clip.labels = None  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"ccm: source frame s\d/\d{4} has no label"):
        matched_source(run, settings, ColourNet(), lambda clip, i: clip.label(i), tmp_path, 0)  # type: ignore[arg-type]


# ---- several networks label as one


def test_labels_of_several_models_are_those_of_their_ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vda import run as module

    asked: list[Any] = []

    def generate(generator: Any, target: Any, folder: Path, **about: Any) -> Any:
        asked.append((generator.network, folder, about["model"]))
        return type("Labels", (), {"coverage": 0.5})

    run = Paper(tmp_path)
    run.flow.name = "exact"  # type: ignore[attr-defined]
    monkeypatch.setattr(run, "checkpoint", lambda model: type("Checkpoint", (), {"digest": str(model)}))
    monkeypatch.setattr(module, "network_of", lambda checkpoint, device: ColourNet())
    monkeypatch.setattr(module.pseudo, "generate", generate)
    for models in (["a"], ["a", "b"], ["b", "a"]):
        Run.pseudo_labels(run, tmp_path, [Path(m) for m in models], Pseudo())
    networks, folders, digests = zip(*asked, strict=True)
    assert [isinstance(network, Ensemble) for network in networks] == [False, True, True]
    assert set(folders) == {tmp_path / "pseudo"}
    assert len(set(digests)) == 3, "labels of other models must not pass for these"
