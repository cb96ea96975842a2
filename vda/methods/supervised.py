"""Source-only and oracle: cross entropy on labelled frames.

The two differ in the batches that they are given (source labels, or target labels as an upper bound) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vda.data.clip import VideoDataset
from vda.data.tubes import Batch, true_labels
from vda.errors import UsageError
from vda.methods.base import Losses, Method, Round, Settings, frame_labels, frames, supervised

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class SupervisedSettings(Settings):
    """Cross entropy on labelled frames: the source's (source_only), or the target's as an upper bound (oracle)."""

    start: str = ""


class SourceOnly(Method):
    """L = CE(P, y), mean over the labelled pixels of all frames of the batch."""

    title = "source-only"
    settings_type = SupervisedSettings

    def losses(self, source: Batch, target: Batch | None = None) -> Iterator[Losses]:
        yield {"seg": supervised(self.network, frames(source), frame_labels(source))}

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        batches = run.tubes(run.source, true_labels)
        yield Round(folder, cls(run.network(settings.start)), settings.optimiser, batches, None)

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        _wants_labels(run.source, "source_only")


class Oracle(SourceOnly):
    """The same on the target with its labels."""

    title = "oracle"
    ceiling = True

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        batches = run.tubes(run.labelled_target, true_labels)
        yield Round(folder, cls(run.network(settings.start)), settings.optimiser, batches, None)

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        run.tubes(run.labelled_target, None)  # refuses clips that are shorter than a tube
        _wants_labels(run.labelled_target, "oracle")


def _wants_labels(dataset: VideoDataset, name: str) -> None:
    """Looks at one clip: a data set without labels, or with some frames of each clip labelled, is told at once."""
    clip = dataset.clips[0]
    for i in range(min(len(clip), 10)):
        if true_labels(clip, i) is None:
            raise UsageError(
                f"{name}: wanted labels of all frames, {dataset.name} has none of {clip.name}/{clip.frame_names[i]}"
            )
