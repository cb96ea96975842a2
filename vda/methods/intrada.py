"""IntraDA: the gap inside the target (Pan et al., CVPR 2020, arXiv 2004.07703).

After ADVENT, the target is ranked by the mean entropy of its predictions. The surer two thirds, with the network's
plain predictions as labels, become the source, the rest the target, of a second round of ADVENT.

    L(G) = ADVENT(easy with argmax labels -> hard); the labelled source is not seen again

Frames are ranked; a tube is easy or hard where all its frames are, and left out where they differ, so that no frame is
on both sides. The entropy is taken at the network's resolution. The second network begins where the first ended (its
authors tried this and the backbone's weights and saw little difference); `fresh` begins anew, as published.
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
    """Part of the target's frames, those of least entropy, that is labelled."""
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
        labels = run.pseudo_labels(folder, [run.result(settings.start)], Pseudo(policy="all"))
        easy, hard = run.tubes(run.target, labels), run.tubes(run.target, None, stream=1)
        of_tube = [[labels.entropy(clip, i) for i in indices] for clip, indices in easy.tubes]
        bar = np.quantile(
            [labels.entropy(clip, i) for clip in run.target.clips for i in range(len(clip))], settings.easy
        )
        easy = easy.chosen(k for k, of in enumerate(of_tube) if max(of) < bar)
        hard = hard.chosen(k for k, of in enumerate(of_tube) if min(of) >= bar)
        method = cls(run.network("" if settings.fresh else settings.start), settings, run.source.num_classes)
        yield Round(folder, method, settings.optimiser, easy, hard)

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        count = run.target.num_frames
        if not 1 <= settings.easy * (count - 1) < count - 1:
            raise UsageError(
                f"intrada: wanted an easy and a hard part of the target's {count} frames, easy is too near 0 or 1"
            )
