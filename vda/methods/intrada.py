"""IntraDA: the gap inside the target (Pan et al., CVPR 2020, arXiv 2004.07703).

After ADVENT, the target is ranked by the mean entropy of its predictions. The surer two thirds, with the network's
plain predictions as labels, become the source, the rest the target, of a second round of ADVENT.

    L(G) = ADVENT(easy with argmax labels -> hard); the labelled source is not seen again

Whole tubes are ranked, by the mean over their frames, so that a tube never lies on both sides. The second network
begins where the first ended (its authors tried this and the backbone's weights and saw little difference); `fresh`
begins anew, as published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vda.errors import UsageError
from vda.methods.advent import Advent, AdventSettings
from vda.methods.base import Round
from vda.options import Pseudo, wanted

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class IntraDASettings(AdventSettings):
    """A second ADVENT from the easy to the hard part of the target."""

    start: str = "advent"
    easy: float = 0.67
    """Part of the target's tubes, those of least entropy, that is labelled."""
    fresh: bool = False
    """Begin from the backbone's weights instead of the network that labels."""

    def __post_init__(self) -> None:
        wanted(0 < self.easy < 1, "intrada.easy", "between 0 and 1", self.easy)


class IntraDA(Advent):
    """ADVENT between two parts of the target."""

    title = "IntraDA"
    settings_type = IntraDASettings
    foreign_source = False

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        model = run.result(settings.start)
        labels = run.pseudo_labels(folder, [model], Pseudo(policy="all"))
        easy = run.tubes(run.target, labels)
        order = np.argsort([labels.tube_entropy(clip, indices) for clip, indices in easy.tubes], kind="stable")
        count = int(settings.easy * len(order))
        hard = run.tubes(run.target, None, stream=1)
        method = cls(run.network("" if settings.fresh else settings.start), settings, run.source.num_classes)
        yield Round(folder, method, settings.optimiser, easy.chosen(order[:count]), hard.chosen(order[count:]))

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        count = len(run.tubes(run.target, None))
        if not 0 < int(settings.easy * count) < count:
            raise UsageError(f"intrada: wanted tubes for an easy and a hard part, the target has {count}")
