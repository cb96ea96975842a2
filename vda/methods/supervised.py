"""Source-only and oracle: cross entropy on labelled frames.

The two differ in the batches that they are given (source labels, or target labels as an upper bound) alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from vda.data.tubes import Batch
from vda.losses import cross_entropy
from vda.methods.base import Losses, Method, tube_labels, tube_logits


class Supervised(Method):
    """L = CE(P, y), mean over the labelled pixels of all frames of the batch."""

    def losses(self, source: Batch, target: Batch | None = None) -> Iterator[Losses]:
        logits = tube_logits(self.network, source.frames)
        yield {"seg": cross_entropy(logits.flatten(0, 1), tube_labels(source).flatten(0, 1))}
