"""The kernels. Each file holds, in this order: the equation, the plain-torch reference, the checks, the call."""

from .aggregate import aggregate, aggregate_reference
from .aggregate_labels import aggregate_labels, aggregate_labels_reference
from .apply_thresholds import apply_thresholds, apply_thresholds_reference
from .consensus import Predictions, consensus, consensus_reference
from .correlation import correlation, correlation_reference
from .segmentation_sums import SegmentationSums, segmentation_sums, segmentation_sums_reference
from .thresholds import ClassThresholds, class_thresholds, class_thresholds_reference
from .warp import warp, warp_occlusion, warp_occlusion_reference, warp_reference

# What `python -m vda doctor` lists and the tests iterate over.
OPS = (
    "aggregate",
    "aggregate_labels",
    "apply_thresholds",
    "class_thresholds",
    "consensus",
    "correlation",
    "segmentation_sums",
    "warp",
    "warp_occlusion",
)

__all__ = [
    "OPS",
    "ClassThresholds",
    "Predictions",
    "SegmentationSums",
    "aggregate",
    "aggregate_labels",
    "aggregate_labels_reference",
    "aggregate_reference",
    "apply_thresholds",
    "apply_thresholds_reference",
    "class_thresholds",
    "class_thresholds_reference",
    "consensus",
    "consensus_reference",
    "correlation",
    "correlation_reference",
    "segmentation_sums",
    "segmentation_sums_reference",
    "warp",
    "warp_occlusion",
    "warp_occlusion_reference",
    "warp_reference",
]
