"""mIoU, pixel accuracy and VPQ^s against torchmetrics, on random data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vda.metrics import ConfusionMatrix, VideoPanopticQuality

classification = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is not installed")
detection = pytest.importorskip("torchmetrics.detection", reason="torchmetrics is not installed")

VOID = 255


def random_clip(seed: int, K: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels [6, 9, 14]; some labels void, the last class nowhere, the one before it only predicted."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.repeat(rng.integers(0, K - 2, (6, 3, 5)), 3, 1), 3, 2)[:, :, :14]
    keep = rng.random(label.shape) < 1 - 0.2 * label  # the higher the class, the worse it is recognised
    pred = np.where(keep, label, rng.integers(0, K - 1, label.shape))
    label[rng.random(label.shape) < 0.15] = VOID
    label[:, : rng.integers(0, 4)] = VOID
    return torch.from_numpy(pred), torch.from_numpy(label)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("K", [3, 8, 19])
def test_miou_equals_torchmetrics(seed: int, K: int) -> None:
    ours = ConfusionMatrix(K)
    per_class = classification.MulticlassJaccardIndex(K, average=None, ignore_index=VOID)
    mean = classification.MulticlassJaccardIndex(K, average="macro", ignore_index=VOID)
    accuracy = classification.MulticlassAccuracy(K, average="micro", ignore_index=VOID)
    for part in range(3):
        pred, label = random_clip(10 * seed + part, K)
        ours.update(pred, label)
        for metric in (per_class, mean, accuracy):
            metric.update(pred, label)
    assert np.isnan(ours.iou()[-1])
    np.testing.assert_allclose(np.nan_to_num(ours.iou()), per_class.compute().numpy(), atol=1e-6)  # float32 there
    assert ours.miou() == pytest.approx(float(mean.compute()), abs=1e-6)
    assert ours.pixel_accuracy() == pytest.approx(float(accuracy.compute()), abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_vpq_equals_panoptic_quality_of_tubes(seed: int, k: int) -> None:
    """A window of k frames, one above the other, is an image whose stuff segments are the tubes."""
    K = 6
    oracle = detection.PanopticQuality(
        things=set(), stuffs=set(range(K)), allow_unknown_preds_category=True, return_per_class=True
    )
    ours = VideoPanopticQuality(K)
    for part in range(2):
        pred, label = random_clip(100 * seed + part, K)
        ours.add_clip(pred, label)
        for start in range(len(pred) - k + 1):
            tubes = [x[start : start + k].flatten(0, 1) for x in (pred, label)]
            oracle.update(*(torch.stack([tube, torch.zeros_like(tube)], -1)[None] for tube in tubes))
    found = ours.per_window()[k - 1]
    assert np.isnan(found[-1])
    assert 0 < ours.tp[k - 1].sum() < ours.tp[k - 1].sum() + ours.fn[k - 1].sum()
    np.testing.assert_allclose(np.nan_to_num(found), oracle.compute()[0].numpy(), atol=1e-6)
