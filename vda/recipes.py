"""Recipes: named runs, each a small difference from the defaults of `vda/config.py`."""

from __future__ import annotations

from vda.config import VAT, VST, Config, Data, Flow, Network, Optimiser, Pseudo, Supervised
from vda.data.transforms import Augment

# Minutes on two CPU cores: a thin ResNet-18 trained from scratch, so batch norm learns, Adam takes the place of SGD and
# the steps are few. Adam's rates and these step counts are the same for source-only and oracle. gamma = 0 labels every
# class in the same proportion: confidences of a network this small are too low for IAST's gamma = 8.
_embedded = Config(
    recipe="embedded",
    flow=Flow(provider="exact"),
    data=Data(size=(96, 192)),
    network=Network(name="deeplab-resnet18", width=16, batch_norm="train"),
    supervised=Supervised(Optimiser(iterations=800, batch=2, name="adam", lr=1e-3, weight_decay=1e-4)),
    vat=VAT(
        optimiser=Optimiser(iterations=200, batch=2, name="adam", lr=2e-4, weight_decay=1e-4), discriminator_width=16
    ),
    pseudo=Pseudo(alpha=0.5, gamma=0.0),
    vst=VST(
        optimiser=Optimiser(iterations=900, batch=2, name="adam", lr=5e-4, schedule="cosine", weight_decay=1e-4),
        entropy_weight=0.5,
    ),
)

# Sunny to dusk on CamVid, the paper's network, the schedules of facts the paper leaves open at their defaults.
_camvid = Config(
    recipe="camvid",
    data=Data(source="camvid/sunny", target="camvid/dusk-train", validation="camvid/dusk-val", size=(360, 480)),
)

# Flow from textured layers and drives, both made on the spot: no file is needed.
_flow = Config(
    recipe="flow",
    phases=("flow",),
    flow=Flow(provider="exact"),
    data=Data(source="motion/train", target="motion/train", validation="motion/val", size=(256, 448)),
    augment=Augment(flip=0.5, jitter=0.5, brightness=0.2, contrast=0.2, noise=4.0),
)

# name -> (one line of --help, settings)
RECIPES: dict[str, tuple[str, Config]] = {
    "embedded": (
        "The whole path on the embedded driving world, in minutes on any CPU (the default).",
        _embedded,
    ),
    "camvid": (
        "CamVid, sunny to dusk (Tables 8 and 9): needs --data.source-root and --network.weights.",
        _camvid,
    ),
    "flow": (
        "A compact flow network, trained on exact flow that is made on the spot; for --flow.provider flownet2.",
        _flow,
    ),
}
