"""Scores of a segmentation of video: accuracy (mIoU, pixel accuracy) and steadiness over time (VPQ^s, TC, mVC).

All come from integer counts that add up. A score is therefore exact: it does not depend on batch size, on the order of
the clips, or on how many processes shared the work. docs/scores.md has every formula.
"""

from vda.metrics.bootstrap import intervals
from vda.metrics.confusion import ConfusionMatrix, joint_histogram, plain
from vda.metrics.consistency import TemporalConsistency, VideoConsistency
from vda.metrics.scorer import Scorer
from vda.metrics.vpq import VideoPanopticQuality

__all__ = [
    "ConfusionMatrix",
    "Scorer",
    "TemporalConsistency",
    "VideoConsistency",
    "VideoPanopticQuality",
    "intervals",
    "joint_histogram",
    "plain",
]
