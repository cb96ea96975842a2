"""Networks. A new segmentation network is one head (`deeplab.py` is the example) and one line in NETWORKS."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

from vda.errors import UsageError
from vda.models.deeplab import ASPP, DeepLab
from vda.models.discriminator import ImageDiscriminator, SequenceDiscriminator, frozen
from vda.models.ensemble import Ensemble
from vda.models.network import BatchNorm, SegmentationNetwork, VariantChoice, untracked, upsample
from vda.models.pspnet import PSPNet
from vda.models.resnet import Normalisation, Normalise, ResNet, Variant, load_body, resnet18, resnet50
from vda.models.translation import PairGenerator, PatchDiscriminator

Head = Callable[[ResNet, int, BatchNorm], SegmentationNetwork]
Backbone = Callable[[int, Variant], ResNet]

NETWORKS: dict[str, tuple[Head, Backbone]] = {
    "deeplab-resnet50": (DeepLab, resnet50),
    "deeplab-resnet18": (DeepLab, resnet18),
    "pspnet-resnet50": (PSPNet, resnet50),
    "pspnet-resnet18": (PSPNet, resnet18),
}


def build_network(
    name: str,
    num_classes: int,
    *,
    width: int = 64,
    batch_norm: BatchNorm = "eval",
    weights: Path | None = None,
    variant: VariantChoice = "auto",
) -> SegmentationNetwork:
    """A segmentation network: RGB [N, 3, H, W] in [0, 1] -> logits [N, num_classes, about H/8, about W/8].

    width: channels of the stem (64 published). batch_norm: see `SegmentationNetwork`. weights: ImageNet weights of
    the backbone (.safetensors, or torchvision's .pth); random where None. variant: form of those weights (stride
    placement, channel order, normalisation); "auto" asks the file, and is torchvision without one.
    `build_network(**network.config)` gives the same architecture again, ready for `load_state_dict`.

    Raises UsageError for an unknown name or option and for weights that do not fit.
    """
    _check(name, num_classes, width, batch_norm)
    build, backbone = NETWORKS[name]
    body = backbone(width, "torchvision")
    known: Variant | None = None
    if variant != "auto":
        if variant not in body.block.variants:
            wanted = ", ".join(("auto", *body.block.variants))
            raise UsageError(f"variant: wanted one of {wanted} for this network, found {variant!r}")
        known = variant
        body.place(known)
    network = build(body, num_classes, batch_norm)
    if weights is not None:
        network.normalise = Normalise(load_body(body, weights, known))
    network.config = {"name": name, "num_classes": num_classes, "width": width, "batch_norm": batch_norm}
    network.config["variant"] = body.variant
    return network


def _check(name: str, num_classes: int, width: int, batch_norm: str) -> None:
    if name not in NETWORKS:
        near = get_close_matches(name, NETWORKS, n=1)
        hint = f", perhaps you meant {near[0]}" if near else ""
        raise UsageError(f"network: wanted one of {', '.join(NETWORKS)}, found {name!r}{hint}")
    if num_classes < 1:
        raise UsageError(f"num_classes: wanted at least 1, found {num_classes}")
    if width < 1:
        raise UsageError(f"width: wanted at least 1, found {width}")
    if batch_norm not in get_args(BatchNorm):
        raise UsageError(f"batch_norm: wanted one of {', '.join(get_args(BatchNorm))}, found {batch_norm!r}")


__all__ = [
    "ASPP",
    "NETWORKS",
    "DeepLab",
    "Ensemble",
    "ImageDiscriminator",
    "Normalisation",
    "PSPNet",
    "PairGenerator",
    "PatchDiscriminator",
    "SegmentationNetwork",
    "SequenceDiscriminator",
    "build_network",
    "frozen",
    "untracked",
    "upsample",
]
