"""The self-training part that methods share: rounds of labelling the target and training on the labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from vda.data.transforms import Augment
from vda.data.tubes import Batch, Samples
from vda.methods.base import Method, Round, Settings, frames, full_logits, untracked
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
    """Label, train, repeat. A method says what it labels (`label`) and what it trains on (`batches`)."""

    settings_type = SelfTrainingSettings

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        model = run.result(settings.start)
        for r in range(settings.rounds):
            here = folder if settings.rounds == 1 else folder / f"round-{r + 1}"
            labels = run.pseudo_labels(here, [model], settings.in_round(r))
            source, target = cls.batches(run, settings, labels, r)
            method = cls.build(run, model, settings, labels)
            yield Round(here, method, settings.optimiser, source, target)
            model = here

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        if settings.pseudo.aggregate:
            run.check_flow({1})

    @classmethod
    def batches(cls, run: Run, settings: Any, labels: PseudoLabels, r: int) -> tuple[Samples | None, Samples | None]:
        """Training samples of a round, by default the pseudo-labelled target alone."""
        return None, run.tubes(run.target, labels, augment=settings.augment, stream=1)

    @classmethod
    def build(cls, run: Run, model: Path, settings: Any, labels: PseudoLabels) -> Self:
        """The method of a round, with the network that `model` holds."""
        return cls(run.network_at(model), settings)  # type: ignore[call-arg]


def of_target(batch: Batch) -> Tensor:
    """[B T, 1, 1] bool: which frames of a batch of `Mixed` [source, target] are the target's."""
    return (batch.part == 1).repeat_interleave(batch.frames.shape[1])[:, None, None]


def mixed_logits(network: nn.Module, batch: Batch) -> Tensor:
    """Logits [B T, K, H, W] of a batch of `Mixed` [source, target].

    The source goes through the network apart, so that batch norm neither averages over two domains nor follows the
    source; with frozen batch norm this is one pass cut in two.
    """
    images, ours = frames(batch), of_target(batch).flatten()
    if ours.all():
        return full_logits(network, images)
    with untracked(network):
        source = full_logits(network, images[~ours])
    if not ours.any():
        return source
    target = full_logits(network, images[ours])
    order = torch.cat([ours.nonzero(), (~ours).nonzero()]).flatten().argsort()
    return torch.cat([target, source])[order]
