"""Recipes: the rows of the paper's tables, on each of the scenarios.

A scenario is data, network and one budget for all methods; a recipe lists methods, each a small difference from its
defaults. A new row is one function and one line in RECIPES.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from vda.config import Config
from vda.data.transforms import Augment
from vda.errors import UsageError
from vda.methods.adaptsegnet import AdaptSegNetSettings
from vda.methods.advent import AdventSettings, MinEntSettings
from vda.methods.cbst import CBSTSettings
from vda.methods.ccm import CCMSettings
from vda.methods.crst import CRSTSettings
from vda.methods.fda import FDASettings
from vda.methods.flow import FlowTrainingSettings
from vda.methods.iast import IASTSettings
from vda.methods.iat import IATSettings
from vda.methods.intrada import IntraDASettings
from vda.methods.supervised import SupervisedSettings
from vda.methods.vat import VATSettings
from vda.methods.videogan import VideoGANSettings
from vda.methods.vst import VSTSettings
from vda.options import Data, Flow, Network, Optimiser, Pseudo

DEFAULT_SCENARIO = "embedded"
Methods = dict[str, Any]  # method -> its settings


@dataclass(frozen=True)
class Scenario:
    """Where the methods are compared, with the budget that all of them get."""

    help: str
    base: Config
    supervised: Optimiser = field(default_factory=Optimiser)
    """Source-only, the oracle, and VideoGAN's segmentation network."""
    adversarial: Optimiser = field(default_factory=Optimiser)
    """AdaptSegNet, ADVENT, MinEnt, IAT, VAT, IntraDA."""
    self_training: Optimiser = field(
        default_factory=lambda: Optimiser(iterations=10_000, batch=4, name="adam", lr=3e-6, schedule="cosine")
    )
    """CBST, CRST, CCM, FDA (each network), IAST, VST: all rounds together."""
    recipe: str = "ours"
    """What `python train.py SCENARIO` runs."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """Settings that every method that has them gets here."""
    pseudo: dict[str, Any] = field(default_factory=dict)
    """Settings of pseudo labels that every method gets here."""

    def of(self, settings: type[Any], optimiser: Optimiser, **changes: Any) -> Any:
        """Settings of a method: its defaults, the row's changes, then the budget and what the scenario fixes."""
        fixed = {k: v for k, v in self.fixed.items() if k in settings.__dataclass_fields__}
        made = settings(**{"optimiser": optimiser, **changes, **fixed})
        return replace(made, pseudo=replace(made.pseudo, **self.pseudo)) if hasattr(made, "pseudo") else made


@dataclass(frozen=True)
class Recipe:
    """One row of a table: a line of --help, the methods that end in it, and its network where it is not DeepLab."""

    help: str
    methods: Callable[[Scenario], Methods]
    pspnet: bool = False


def _share(optimiser: Optimiser, rounds: int) -> Optimiser:
    """The budget of one of several trainings."""
    return replace(optimiser, iterations=max(1, round(optimiser.iterations / rounds)))


# --- what recipes are put together from: scenario -> methods


def _source_only(s: Scenario) -> Methods:
    return {"source_only": s.of(SupervisedSettings, s.supervised)}


def _oracle(s: Scenario) -> Methods:
    return {"oracle": s.of(SupervisedSettings, s.supervised)}


def _adversarial(name: str, settings: type[Any], **changes: Any) -> Callable[[Scenario], Methods]:
    return lambda s: _source_only(s) | {name: s.of(settings, s.adversarial, **changes)}


_iat = _adversarial("iat", IATSettings)
_vat = _adversarial("vat", VATSettings)


def _intrada(s: Scenario) -> Methods:
    return _adversarial("advent", AdventSettings)(s) | {"intrada": s.of(IntraDASettings, s.adversarial)}


def _rounds(
    name: str, settings: type[Any], before: Callable[[Scenario], Methods], **changes: Any
) -> Callable[[Scenario], Methods]:
    """Self-training in rounds, which share the budget, after other methods."""

    def methods(s: Scenario) -> Methods:
        start = list(before(s))[-1]
        rounds = settings().rounds
        return before(s) | {name: s.of(settings, _share(s.self_training, rounds), start=start, **changes)}

    return methods


def _vst(before: Callable[[Scenario], Methods] = _vat, **changes: Any) -> Callable[[Scenario], Methods]:
    return lambda s: before(s) | {"vst": s.of(VSTSettings, s.self_training, **changes)}


def _ablation(policy: str, *, aggregate: bool = False, lambda_reg: float = 0.0) -> Callable[[Scenario], Methods]:
    """VST without its refinement, and without what the row of Table 4 does not have yet."""
    pseudo = Pseudo(policy=policy, aggregate=aggregate)  # type: ignore[arg-type]
    return _vst(pseudo=pseudo, lambda_reg=lambda_reg, refine="none")


def _videogan(s: Scenario) -> Methods:
    translation = replace(VideoGANSettings().translation, iterations=s.self_training.iterations)
    return {"videogan": s.of(VideoGANSettings, s.supervised, translation=translation)}


_image_adversarial = _adversarial("vat", VATSettings, tube="none", discriminator="image")
_frame_dice = _adversarial("vat", VATSettings, tube="frame")
_tube_image = _adversarial("vat", VATSettings, discriminator="image")

RECIPES: dict[str, Recipe] = {
    "whole-path": Recipe("Source-only, VAT, VST, and the oracle as a ceiling.", lambda s: _vst()(s) | _oracle(s)),
    # Tables 1 and 2, 8 and 9, 10 and 11
    "source-only": Recipe("No adaptation.", _source_only),
    "adaptsegnet": Recipe(
        "Adversarial alignment of softmax maps, two levels (Tsai et al.).",
        _adversarial("adaptsegnet", AdaptSegNetSettings),
    ),
    "adaptsegnet-ls": Recipe(
        "Its later variant: least squares, one level.",
        _adversarial("adaptsegnet", AdaptSegNetSettings, multi_level=False, gan="least_squares", lambda_adv=0.01),
    ),
    "advent": Recipe("Adversarial alignment of entropy maps (Vu et al.).", _adversarial("advent", AdventSettings)),
    "minent": Recipe("Entropy minimisation (Vu et al.).", _adversarial("minent", MinEntSettings)),
    "iat": Recipe("The image adversarial model that IAST, CBST* and CRST* start from.", _iat),
    "cbst": Recipe("Class-balanced self-training (Zou et al. 2018).", _rounds("cbst", CBSTSettings, _source_only)),
    "crst": Recipe(
        "Confidence-regularised self-training (Zou et al. 2019).", _rounds("crst", CRSTSettings, _source_only)
    ),
    "crst-lrent": Recipe("CRST with soft labels.", _rounds("crst", CRSTSettings, _source_only, regulariser="lrent")),
    "ccm": Recipe("Content-consistent matching (Li et al.).", _rounds("ccm", CCMSettings, _source_only)),
    "fda": Recipe("Fourier domain adaptation (Yang and Soatto).", _rounds("fda", FDASettings, _source_only)),
    "intrada": Recipe("ADVENT, then from easy to hard target (Pan et al.).", _intrada),
    "cbst-star": Recipe("CBST*, from the image adversarial model.", _rounds("cbst", CBSTSettings, _iat)),
    "crst-star": Recipe("CRST*, from the image adversarial model.", _rounds("crst", CRSTSettings, _iat)),
    "iast": Recipe("Instance-adaptive self-training (Mei et al.).", _rounds("iast", IASTSettings, _iat)),
    "ours": Recipe("VAT, then VST: the paper's method.", _vst()),
    "oracle": Recipe("Trained on the target's own labels.", _oracle),
    # Table 3
    "image-adversarial": Recipe("Image discriminator, no Dice (Table 3, row 2).", _image_adversarial),
    "vat-frame-dice": Recipe("Dice of single frames (Table 3, row 3).", _frame_dice),
    "vat-image": Recipe("Tube loss with an image discriminator (Table 3, row 4).", _tube_image),
    "vat": Recipe("Video adversarial training, the paper's first phase.", _vat),
    # Table 4
    "vst-class-balanced": Recipe("Table 4: class-balanced labels.", _ablation("class_balanced")),
    "vst-instance-adaptive": Recipe("Table 4: instance-adaptive labels.", _ablation("instance_adaptive")),
    "vst-clip-adaptive": Recipe("Table 4: clip-adaptive labels.", _ablation("clip_adaptive")),
    "vst-aggregated": Recipe("Table 4: and aggregated predictions.", _ablation("clip_adaptive", aggregate=True)),
    "vst-regularised": Recipe(
        "Table 4: and the regulariser; Table 6: base.", _ablation("clip_adaptive", aggregate=True, lambda_reg=1.0)
    ),
    # Tables 5 and 6
    "vst-from-image-adversarial": Recipe("Table 5: VST after row 2 of Table 3.", _vst(_image_adversarial)),
    "vst-from-frame-dice": Recipe("Table 5: VST after row 3.", _vst(_frame_dice)),
    "vst-from-image": Recipe("Table 5: VST after row 4.", _vst(_tube_image)),
    "vst-fill-in": Recipe("Table 6: labels filled in from the neighbour (Eq. 14).", _vst(refine="fill_in")),
    # Table 12
    "pspnet-source-only": Recipe("Source-only with PSPNet.", _source_only, pspnet=True),
    "pspnet-videogan": Recipe("PSPNet on source translated to the target (Chen et al.).", _videogan, pspnet=True),
    "pspnet-ours": Recipe("VAT, then VST, with PSPNet.", _vst(), pspnet=True),
}


# --- scenarios

# Minutes on two CPU cores: a thin ResNet-18 trained from scratch, so batch norm learns, Adam takes the place of SGD and
# the steps are few. A network this small is too unsure for the published proportions: every method labels half of the
# pixels, of every class alike (gamma = 0), and mixes in source as 1 to 4, which is what 3 % of GTA5 is to Cityscapes.
_embedded = Scenario(
    help="The embedded driving world: minutes on any CPU (the default).",
    base=Config(
        flow=Flow(provider="exact"),
        data=Data(size=(96, 192)),
        network=Network(name="deeplab-resnet18", width=16, batch_norm="train"),
    ),
    supervised=Optimiser(iterations=800, batch=2, name="adam", lr=1e-3, weight_decay=1e-4),
    adversarial=Optimiser(iterations=200, batch=2, name="adam", lr=2e-4, weight_decay=1e-4),
    self_training=Optimiser(iterations=900, batch=2, name="adam", lr=5e-4, schedule="cosine", weight_decay=1e-4),
    recipe="whole-path",
    fixed={"discriminator_width": 16, "entropy_weight": 0.5, "source_share": 0.25, "width": 8, "blocks": 3},
    pseudo={"alpha": 0.5, "gamma": 0.0},
)

SCENARIOS: dict[str, Scenario] = {
    "embedded": _embedded,
    "camvid": Scenario(
        help="CamVid, sunny to dusk (Tables 8, 9 and 12): needs --data.source-root and --network.weights.",
        base=Config(
            data=Data(source="camvid/sunny", target="camvid/dusk-train", validation="camvid/dusk-val", size=(360, 480))
        ),
    ),
    # Labels of neighbouring frames lie a second apart, and DIS needs no weights; Adam, since the steps are few.
    "camvid-reduced": Scenario(
        help="CamVid at a sixth of the pixels, a few hundred steps: an hour for Table 8 on two CPU cores.",
        base=Config(
            data=Data(source="camvid/sunny", target="camvid/dusk-train", validation="camvid/dusk-val", size=(144, 192))
        ),
        supervised=Optimiser(iterations=250, name="adam", lr=5e-5),
        adversarial=Optimiser(iterations=80, name="adam", lr=2e-5),
        self_training=Optimiser(iterations=150, name="adam", lr=1e-5, schedule="cosine"),
    ),
    "viper-cityscapes-vps": Scenario(
        help="VIPER to Cityscapes-VPS (Tables 1 to 7): needs both roots and --network.weights.",
        base=Config(
            data=Data(
                source="viper/day",
                target="cityscapes-vps/train",
                oracle="cityscapes-vps/train:labelled",
                validation="cityscapes-vps/val",
            )
        ),
    ),
    "synthia-cityscapes-vps": Scenario(
        help="SYNTHIA-Seq to Cityscapes-VPS (Tables 10 and 11): needs both roots and --network.weights.",
        base=Config(
            data=Data(
                source="synthia-seq/town",
                target="cityscapes-vps/train:paper-11",
                oracle="cityscapes-vps/train:labelled:paper-11",
                validation="cityscapes-vps/val:paper-11",
            )
        ),
    ),
    # Target frames and classes of DA-VSN and TPS. One frame of a pair is labelled, so an oracle wants tubes of 1.
    "viper-cityscapes": Scenario(
        help="VIPER to Cityscapes, frames and classes of DA-VSN and TPS: needs both roots and --network.weights.",
        base=Config(
            data=Data(
                source="viper/train:davsn-15",
                target="cityscapes/train:pairs:davsn-15",
                oracle="cityscapes/train:labelled:davsn-15",
                validation="cityscapes/val:pairs:davsn-15",
            )
        ),
    ),
    "synthia-cityscapes": Scenario(
        help="SYNTHIA-Seq to Cityscapes, frames and classes of DA-VSN and TPS: needs both roots and --network.weights.",
        base=Config(
            data=Data(
                source="synthia-seq/04-DAWN:davsn-12",
                target="cityscapes/train:pairs:davsn-12",
                oracle="cityscapes/train:labelled:davsn-12",
                validation="cityscapes/val:pairs:davsn-12",
            )
        ),
    ),
    # Flow from textured layers and drives, both made on the spot: no file is needed.
    "flow": Scenario(
        help="A compact flow network, trained on exact flow that is made on the spot; for --flow.provider flownet2.",
        base=Config(
            methods={"flow_training": FlowTrainingSettings()},
            flow=Flow(provider="exact"),
            data=Data(source="motion/train", target="motion/train", validation="motion/val", size=(256, 448)),
            augment=Augment(flip=0.5, jitter=0.5, brightness=0.2, contrast=0.2, noise=4.0),
        ),
    ),
}


# Scenarios on which the rows of the tables can be trained: all but those that bring a method of their own.
COMPARED = tuple(name for name, scenario in SCENARIOS.items() if not scenario.base.methods)


def check_name(name: str, known: Collection[str], what: str) -> None:
    """Raises UsageError, with the nearest name, for a recipe or a scenario that there is not."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", perhaps you meant {near[0]}" if near else ""
        raise UsageError(f"{what}: wanted one of {', '.join(known)}, found {name!r}{hint}")


def recipe(name: str, scenario: str) -> Config:
    """The settings of a recipe on a scenario; its run folder is named after both."""
    check_name(scenario, SCENARIOS, "scenario")
    base, row = SCENARIOS[scenario].base, RECIPES[name]
    if scenario == "flow":
        return replace(base, recipe="flow")
    network = base.network
    if row.pspnet:
        network = replace(network, name="pspnet-resnet18" if "18" in network.name else "pspnet-resnet50")
    label = scenario if name == SCENARIOS[scenario].recipe else f"{scenario}-{name}"
    return replace(base, recipe=label, network=network, methods=row.methods(SCENARIOS[scenario]))
