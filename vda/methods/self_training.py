"""The self-training part that methods share: rounds of labelling the target and training on the labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from vda.data.transforms import Augment
from vda.data.tubes import Batch, Samples, true_labels
from vda.fused import iast_regulariser
from vda.methods.base import Losses, Method, Round, Settings, frame_labels, frames, full_logits, supervised
from vda.models import untracked
from vda.ops import SegmentationSums
from vda.options import Optimiser, Pseudo, wanted
from vda.pseudo import PseudoLabels

if TYPE_CHECKING:
    from vda.run import Run


def _self_training_augment() -> Augment:
    return Augment(flip=0.5, brightness=0.2, contrast=0.2, jitter=0.3)


@dataclass(frozen=True)
class SelfTrainingSettings(Settings):
    """What the settings of every self-training method have."""

    rounds: int = 3
    """Times that the target is labelled and trained on; each round starts from the last one's network."""
    optimiser: Optimiser = field(
        default_factory=lambda: Optimiser(iterations=10_000, batch=4, name="adam", lr=3e-6, schedule="cosine")
    )
    """Of one round."""
    pseudo: Pseudo = field(default_factory=Pseudo)
    """Which predictions become labels, in the first round."""
    alpha_step: float = 0.05
    """How much pseudo.alpha grows with each round, up to 0.5."""
    augment: Augment = field(default_factory=_self_training_augment)
    """Augmentation of the pseudo-labelled frames."""

    def __post_init__(self) -> None:
        wanted(self.rounds >= 1, "rounds", "at least 1", self.rounds)
        wanted(self.alpha_step >= 0, "alpha_step", "0 or more", self.alpha_step)

    def in_round(self, r: int) -> Pseudo:
        """The pseudo-label settings of round r = 0, 1, .."""
        alpha = self.pseudo.alpha + r * self.alpha_step
        return replace(self.pseudo, alpha=max(self.pseudo.alpha, min(alpha, 0.5)))


class SelfTraining(Method):
    """Label, train, repeat. A method says what it trains on (`batches`) and how it is made (`build`)."""

    settings_type = SelfTrainingSettings

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        model = run.result(settings.start)
        for r in range(settings.rounds):
            here = folder if settings.rounds == 1 else folder / f"round-{r + 1}"
            labels = run.pseudo_labels(here, [model], settings.in_round(r))
            found = Labelled(here, model, labels, r)
            source, target = cls.batches(run, settings, found)
            yield Round(here, cls.build(run, settings, found), cls.optimiser(settings, r), source, target)
            model = here

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        if settings.pseudo.aggregate:
            run.check_flow({1})

    @classmethod
    def batches(cls, run: Run, settings: Any, found: Labelled) -> tuple[Samples | None, Samples | None]:
        """Training samples of a round, by default the pseudo-labelled target alone."""
        return None, run.tubes(run.target, found.labels, augment=settings.augment, stream=1, number=found.r)

    @classmethod
    def build(cls, run: Run, settings: Any, found: Labelled) -> Self:
        """The method of a round, with the network that labelled."""
        return cls(run.network_at(found.model), settings)  # type: ignore[call-arg]

    @classmethod
    def optimiser(cls, settings: Any, r: int) -> Optimiser:
        """The optimiser of round r."""
        optimiser: Optimiser = settings.optimiser
        return optimiser


@dataclass(frozen=True)
class Labelled:
    """What a round begins with: its folder, the model that labelled the target, the labels, and its number 0, 1, .."""

    folder: Path
    model: Path
    labels: PseudoLabels
    r: int


class TargetTraining(SelfTraining):
    """Self-training on the target alone, with the source's cross entropy as an option: IAST and VST."""

    def __init__(self, network: nn.Module, settings: RegularisedSettings) -> None:
        super().__init__(network)
        self.settings = settings

    def regulariser(self, sums: SegmentationSums) -> Tensor:
        """L_reg of Eq. 5 and 12."""
        weights = self.settings
        return iast_regulariser(sums, entropy_weight=weights.entropy_weight, kld_weight=weights.kld_weight)

    def source_losses(self, source: Batch | None) -> Iterator[Losses]:
        """The cross entropy on the source, where it has a weight."""
        if source is not None:
            with untracked(self.network):
                loss = supervised(self.network, frames(source), frame_labels(source))
            yield {"source": self.settings.source_weight * loss}

    @classmethod
    def batches(cls, run: Run, settings: Any, found: Labelled) -> tuple[Samples | None, Samples | None]:
        source = run.tubes(run.source, true_labels, number=found.r) if settings.source_weight else None
        return source, super().batches(run, settings, found)[1]


@dataclass(frozen=True)
class RegularisedSettings(SelfTrainingSettings):
    """What the settings of IAST and VST have."""

    entropy_weight: float = 3.0
    """Weight of the entropy of the unlabelled pixels."""
    kld_weight: float = 0.1
    """Weight of the divergence from uniform of the labelled pixels."""
    source_weight: float = 0.0
    """Weight of the cross entropy on the source; 0 in Eq. 12 and in every published configuration."""


def of_target(batch: Batch) -> Tensor:
    """[B T, 1, 1] bool: which frames of a batch of `Mixed` [source, target] are the target's."""
    return (batch.part == 1).repeat_interleave(batch.frames.shape[1])[:, None, None]


def mixed_logits(network: nn.Module, batch: Batch) -> Tensor:
    """Logits [B T, K, H, W] of a batch of `Mixed` [source, target].

    The source goes through the network apart, so that batch norm neither averages over two domains nor follows the
    source; with frozen batch norm this is one pass cut in two.
    """
    images, ours = frames(batch), of_target(batch).flatten().tolist()
    target = [i for i, of in enumerate(ours) if of]
    source = [i for i, of in enumerate(ours) if not of]
    logits: list[Tensor] = []
    if target:
        logits.append(full_logits(network, images[target]))
    if source:
        with untracked(network):
            logits.append(full_logits(network, images[source]))
    order = sorted(range(len(ours)), key=[*target, *source].__getitem__)
    return torch.cat(logits)[order]
