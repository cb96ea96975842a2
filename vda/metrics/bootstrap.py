"""Bootstrap confidence intervals: how far a score would move on other clips of the same kind.

Clips, not frames, are drawn, since the frames of a clip are alike (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13: the percentile interval). Scores are functions of counts that add up over clips, so a draw
is a vector of how often each clip is taken, and all draws are one matrix product; nothing is scored again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vda.metrics.confusion import ConfusionMatrix, nanmean, ratio
from vda.metrics.vpq import VideoPanopticQuality

SAMPLES = 1000
LEVEL = 0.95


def intervals(
    confusions: Sequence[ConfusionMatrix],
    vpqs: Sequence[VideoPanopticQuality],
    *,
    samples: int = SAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Any] | None:
    """{"level", "samples", "miou": [low, high], "vpq": [low, high]} from the counts of each clip, in one order.

    None for fewer than two clips, of whose spread nothing is known; None in place of a score that no draw has.
    """
    count = len(confusions)
    if count < 2:
        return None
    taken = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)

    def drawn(per_clip: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """Sums over the clips of each draw, [samples, ...]."""
        return np.tensordot(taken, np.stack(per_clip).astype(np.float64), axes=1)

    hits, unions = zip(*(confusion.hit_and_union() for confusion in confusions), strict=True)
    iou = ratio(drawn(hits), drawn(unions))
    per_window = ratio(2 * drawn([vpq.iou_sum for vpq in vpqs]), drawn([vpq.weight for vpq in vpqs]))
    return {
        "level": level,
        "samples": samples,
        "miou": _percentiles(nanmean(iou), level),
        "vpq": _percentiles(nanmean(nanmean(per_window)), level),
    }


def _percentiles(scores: NDArray[np.float64], level: float) -> list[float] | None:
    known = scores[~np.isnan(scores)]
    return np.quantile(known, [(1 - level) / 2, (1 + level) / 2]).tolist() if known.size else None
