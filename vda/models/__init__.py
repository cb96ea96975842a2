"""Networks. A new segmentation network is one factory and one line in NETWORKS."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vda.errors import UsageError
from vda.models.deeplab import ASPP, BatchNorm, DeepLab, VariantChoice, deeplab_resnet18, deeplab_resnet50, upsample
from vda.models.discriminator import ImageDiscriminator, SequenceDiscriminator, frozen
from vda.models.ensemble import Ensemble
from vda.models.resnet import Normalisation

NETWORKS: dict[str, Callable[..., DeepLab]] = {
    "deeplab-resnet50": deeplab_resnet50,
    "deeplab-resnet18": deeplab_resnet18,
}


def build_network(
    name: str,
    num_classes: int,
    *,
    width: int = 64,
    batch_norm: BatchNorm = "eval",
    weights: Path | None = None,
    variant: VariantChoice = "auto",
) -> DeepLab:
    """A segmentation network: RGB [N, 3, H, W] in [0, 1] -> logits [N, num_classes, about H/8, about W/8].

    width: channels of the stem (64 published). batch_norm: see `DeepLab`. weights: ImageNet weights of the
    backbone (.safetensors, or torchvision's .pth); random where None. variant: form of those weights (stride
    placement, channel order, normalisation); "auto" asks the file, and is torchvision
    without one. `build_network(**network.config)` gives the same architecture again, ready for `load_state_dict`.

    Raises UsageError for an unknown name or option and for weights that do not fit.
    """
    if name not in NETWORKS:
        near = get_close_matches(name, NETWORKS, n=1)
        hint = f", perhaps you meant {near[0]}" if near else ""
        raise UsageError(f"network: wanted one of {', '.join(NETWORKS)}, found {name!r}{hint}")
    network = NETWORKS[name](num_classes, width=width, batch_norm=batch_norm, weights=weights, variant=variant)
    config: dict[str, Any] = {
        "name": name,
        "num_classes": num_classes,
        "width": width,
        "batch_norm": batch_norm,
    }
    network.config = config | {"variant": network.body.variant}
    return network


__all__ = [
    "ASPP",
    "NETWORKS",
    "DeepLab",
    "Ensemble",
    "ImageDiscriminator",
    "Normalisation",
    "SequenceDiscriminator",
    "build_network",
    "frozen",
    "upsample",
]
