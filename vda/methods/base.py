"""What every method is to the training loop, and the few parts that all methods share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from vda.data.tubes import Batch, Samples
from vda.errors import UsageError
from vda.fused import cross_entropy
from vda.models import upsample
from vda.ops import segmentation_sums
from vda.options import Optimiser

if TYPE_CHECKING:
    from vda.run import Run

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Adam:
    """Optimiser of the discriminators; its rate follows the schedule of the network's."""

    lr: float = 1e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Momenta; those of AdaptSegNet and ADVENT."""


@dataclass(frozen=True)
class Settings:
    """What the settings of every method have."""

    start: str = "source_only"
    """Method whose last weights the network starts from; empty: the backbone's weights and a new head."""
    optimiser: Optimiser = field(default_factory=Optimiser)


class Method(nn.Module):
    """A segmentation network and the losses that train it.

    `losses` yields groups of named scalars; the loop sums a group and back-propagates it before it asks for the next,
    so that the activations behind one group are freed before the next is computed. After the last group every
    optimiser steps once. `discriminators` have an optimiser of their own; no loss may reach both it and the network.
    `auxiliary` are heads that learn with the network and are thrown away after the training.
    """

    network: Any  # a SegmentationNetwork; in a few rounds of a few methods something else with parameter_groups
    title: ClassVar[str]  # in tables and reports
    settings_type: ClassVar[type[Any]] = Settings
    leaves_network: ClassVar[bool] = True  # whether the result is a segmentation network, to be scored
    mixes: ClassVar[bool] = False  # whether a batch holds frames of both domains, how many of each is chance
    ceiling: ClassVar[bool] = False  # whether it learns from the target's labels: no rival, but what there is to gain

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.discriminators = nn.ModuleDict()
        self.auxiliary = nn.ModuleDict()
        self.discriminator_optimiser = Adam()

    def losses(self, source: Any, target: Any) -> Iterator[Losses]:
        """One step on a `Batch` of each domain, None where the round has none of it."""
        raise NotImplementedError

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        """The trainings of the method, one after another; what lies between two of them happens in between.

        Everything here is a function of the run's settings and files, so that a stopped run goes on where it was.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        """Raises UsageError, before any training, for data that the method cannot do with."""


@dataclass(frozen=True)
class Round:
    """One training: where its checkpoints go, what is trained, and on which batches (None: of that domain, none)."""

    folder: Path
    method: Method
    optimiser: Optimiser
    source: Samples | None
    target: Samples | None


def wants_tubes(run: Run, name: str) -> None:
    """For methods that look at more than one frame at a time."""
    if run.config.data.tube_length < 2:
        raise UsageError(f"{name}: wanted data.tube_length of at least 2 frames, found {run.config.data.tube_length}")


def frames(batch: Batch) -> Tensor:
    """All frames of a batch, [B T, 3, H, W]: an image method takes a tube of T frames as T images."""
    return batch.frames.flatten(0, 1)


def frame_labels(batch: Batch) -> Tensor:
    """All labels of a batch that must have them, [B T, H, W]."""
    return tube_labels(batch).flatten(0, 1)


def full_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Logits [N, K, H, W] at the size of the images [N, 3, H, W]."""
    return upsample(network(images), (images.shape[-2], images.shape[-1]))


def supervised(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the network on images [N, 3, H, W] with labels [N, H, W], 255 where there is none."""
    return cross_entropy(segmentation_sums(network(images), labels))


def tube_labels(batch: Batch) -> Tensor:
    """The labels of a batch that must have them, [B, T, H, W]."""
    if batch.labels is None:
        raise ValueError("labels: wanted a labelled batch, got one without labels")
    return batch.labels
