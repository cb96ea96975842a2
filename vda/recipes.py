"""Recipes: named runs, each a small difference from the defaults of `vda/config.py`."""

from __future__ import annotations

from vda.config import VAT, VST, Config, Data, Network, Optimiser, Pseudo, Supervised
from vda.data.transforms import Augment

# Minutes on two CPU cores: ResNet-18 of a quarter of the width, trained from scratch, hence learning batch norm.
_embedded = Config(
    recipe="embedded",
    flow="exact",
    checkpoint_every=200,
    data=Data(size=(96, 192)),
    network=Network(name="deeplab-resnet18", width=32, batch_norm="train"),
    supervised=Supervised(Optimiser(iterations=300, batch=2, name="adam", lr=1e-3, schedule="poly", weight_decay=1e-4)),
    vat=VAT(optimiser=Optimiser(iterations=200, batch=2, name="adam", lr=2e-4, schedule="poly", weight_decay=1e-4)),
    pseudo=Pseudo(),
    vst=VST(
        optimiser=Optimiser(iterations=200, batch=2, name="adam", lr=2e-4, schedule="cosine", weight_decay=1e-4),
        augment=Augment(flip=0.5, brightness=0.2, contrast=0.2, jitter=0.5),
    ),
)

# Sunny to dusk on CamVid, the paper's network, the schedules of facts the paper leaves open at their defaults.
_camvid = Config(
    recipe="camvid",
    data=Data(source="camvid/sunny", target="camvid/dusk-train", validation="camvid/dusk-val", size=(360, 480)),
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
}
