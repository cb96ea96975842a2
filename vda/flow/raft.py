r"""RAFT (Teed and Deng, ECCV 2020) as torchvision implements it: an optional extra, `pip install -e ".[raft]"`.

Weights are torchvision's own files or princeton-vl's checkpoints: both are the same networks under other names, and
`torchvision_names` translates. torchvision is imported only when a network is built; which tensors the two variants
have is written down here (`VARIANTS`), so that weights are recognised and imported without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vda.errors import UsageError
from vda.flow.flownet2 import Estimator, check_pair

UPDATES = 12  # of the recurrent unit; torchvision's default, and what RAFT was trained with
STRIDE = 8  # features have an eighth of the resolution
MIN_SIDE = 128  # the coarsest of four correlation levels is a sixteenth of that: below 2 x 2 its lookup divides by zero

Shape = tuple[int, ...]


class Raft(Estimator):
    """torchvision's network behind the interface of all flow networks.

    network: raft_small or raft_large, or what is called like them.
    """

    # The network keeps the correlation volume of the pair at hand in itself, so two threads must not be in it at once.
    LOCK = Lock()

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def prepared(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both images in [-1, 1], their borders repeated to the right and below, up to multiples of 8 from 128 on."""
        check_pair(first, second)
        below, right = (max(MIN_SIDE, side + -side % STRIDE) - side for side in first.shape[-2:])
        first, second = (F.pad(2 * x.float() - 1, (0, right, 0, below), mode="replicate") for x in (first, second))
        return first, second

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Like `forward`, of images that are `prepared`; takes (HW)^2 / 768 bytes per pair, 0.36 GB at 512 x 1024."""
        # In float32 under autocast too: the flow is the sum of many small steps.
        with self.LOCK, torch.autocast(first.device.type, enabled=False):
            flow: Tensor = self.network(first, second, num_flow_updates=UPDATES)[-1]
            self.network.corr_block.corr_pyramid = []  # hundreds of megabytes, else kept until the next pair
        return flow


def build(variant: str, state: Mapping[str, Tensor]) -> Raft:
    """The network with these weights, under torchvision's names. UsageError where torchvision cannot be imported."""
    try:
        from torchvision.models import optical_flow
    except (ImportError, RuntimeError) as error:  # RuntimeError: it was built for another torch
        raise UsageError(
            "RAFT: wanted torchvision in the version that fits torch, cannot import it "
            f'({str(error).splitlines()[0]}); install it with `pip install -e ".[raft]"`'
        ) from None
    make = {"raft-small": optical_flow.raft_small, "raft-large": optical_flow.raft_large}[variant]
    with torch.device("meta"):
        network = make(weights=None, progress=False)
    network.load_state_dict(state, strict=True, assign=True)
    return Raft(network)


# ---- names and shapes of the weights ----


def _conv(name: str, channels: int, out: int, *kernel: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, channels, *(kernel if len(kernel) == 2 else kernel * 2))
    yield f"{name}.bias", (out,)


def _conv_norm(name: str, channels: int, out: int, kernel: int, norm: bool) -> Iterator[tuple[str, Shape]]:
    """A convolution and, where norm, its batch norm; instance norm, the other kind, has no tensors."""
    yield from _conv(f"{name}.0", channels, out, kernel)
    if norm:
        yield from ((f"{name}.1.{part}", (out,)) for part in ("weight", "bias", "running_mean", "running_var"))
        yield f"{name}.1.num_batches_tracked", ()


def _encoder(
    name: str, widths: Sequence[int], out: int, kernels: Sequence[int], norm: bool
) -> Iterator[tuple[str, Shape]]:
    """widths: channels of the stem and of three stages. kernels: of a block; three of them are a bottleneck."""
    yield from _conv_norm(f"{name}.convnormrelu", 3, widths[0], 7, norm)
    for stage, (channels, wide) in enumerate(pairwise((widths[0], *widths[1:])), 1):
        for block, first in enumerate((channels, wide)):
            narrow = wide // 4 if len(kernels) == 3 else wide
            chain = (first, *[narrow] * (len(kernels) - 1), wide)
            for i, kernel in enumerate(kernels):
                where = f"{name}.layer{stage}.{block}.convnormrelu{i + 1}"
                yield from _conv_norm(where, chain[i], chain[i + 1], kernel, norm)
            if block == 0 and stage > 1:
                yield from _conv_norm(f"{name}.layer{stage}.0.downsample", channels, wide, 1, norm)
    yield from _conv(f"{name}.conv", widths[-1], out, 1)


def _gru(name: str, channels: int, hidden: int, *kernel: int) -> Iterator[tuple[str, Shape]]:
    for gate in "zrq":
        yield from _conv(f"{name}.conv{gate}", channels, hidden, *kernel)


def _small() -> Iterator[tuple[str, Shape]]:
    yield from _encoder("feature_encoder", (32, 32, 64, 96), 128, (1, 3, 1), norm=False)
    yield from _encoder("context_encoder", (32, 32, 64, 96), 160, (1, 3, 1), norm=False)
    motion = "update_block.motion_encoder"
    yield from _conv(f"{motion}.convcorr1.0", 4 * 7**2, 96, 1)
    yield from _conv(f"{motion}.convflow1.0", 2, 64, 7)
    yield from _conv(f"{motion}.convflow2.0", 64, 32, 3)
    yield from _conv(f"{motion}.conv.0", 128, 80, 3)
    yield from _gru("update_block.recurrent_block.convgru1", 242, 96, 3)
    yield from _conv("update_block.flow_head.conv1", 96, 128, 3)
    yield from _conv("update_block.flow_head.conv2", 128, 2, 3)


def _large() -> Iterator[tuple[str, Shape]]:
    yield from _encoder("feature_encoder", (64, 64, 96, 128), 256, (3, 3), norm=False)
    yield from _encoder("context_encoder", (64, 64, 96, 128), 256, (3, 3), norm=True)
    motion = "update_block.motion_encoder"
    yield from _conv(f"{motion}.convcorr1.0", 4 * 9**2, 256, 1)
    yield from _conv(f"{motion}.convcorr2.0", 256, 192, 3)
    yield from _conv(f"{motion}.convflow1.0", 2, 128, 7)
    yield from _conv(f"{motion}.convflow2.0", 128, 64, 3)
    yield from _conv(f"{motion}.conv.0", 256, 126, 3)
    yield from _gru("update_block.recurrent_block.convgru1", 384, 128, 1, 5)
    yield from _gru("update_block.recurrent_block.convgru2", 384, 128, 5, 1)
    yield from _conv("update_block.flow_head.conv1", 128, 256, 3)
    yield from _conv("update_block.flow_head.conv2", 256, 2, 3)
    yield from _conv("mask_predictor.convrelu.0", 128, 256, 3)
    yield from _conv("mask_predictor.conv", 256, 8 * 8 * 9, 1)


VARIANTS: dict[str, dict[str, Shape]] = {"raft-small": dict(_small()), "raft-large": dict(_large())}

# From princeton-vl/RAFT to torchvision, applied in this order.
_NAMES = (
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"(\.layer\d\.0)\.norm3\.", r"\1.downsample.1."),  # the same layer, which is registered twice there
    (r"(\.layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(\.layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.gru\.conv([zrq])\.", r"update_block.recurrent_block.convgru1.conv\1."),
    (r"^update_block\.gru\.conv([zrq])(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


def torchvision_names(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """princeton-vl's tensors under torchvision's names; any other state dict as it is.

    Raises UsageError where two tensors that are one layer in RAFT differ.
    """
    if not any(name.startswith("fnet.") for name in state):
        return dict(state)
    result: dict[str, Tensor] = {}
    for name, x in state.items():
        new = name
        for pattern, replacement in _NAMES:
            new = re.sub(pattern, replacement, new)
        if new in result and not torch.equal(result[new], x):
            raise UsageError(f"{where}: wanted weights of RAFT, {name} differs from {new}, which is the same layer")
        result[new] = x
    return result
