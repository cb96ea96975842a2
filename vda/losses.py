"""Losses. Equation numbers are the paper's; 255 is the label of a pixel that takes no part.

Sums run in float32 at least, also under autocast: sums over an image leave the range of half precision. In a run of
several processes (vda/distributed.py) the mean of a loss over the processes is the loss of their batches together.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vda.data.clip import IGNORE
from vda.distributed import mean_over

Reduction = Literal["sum", "mean", "present"]
Gan = Literal["vanilla", "least_squares"]

SOURCE, TARGET = 0.0, 1.0  # what the discriminators are taught to answer


def _wide(x: Tensor) -> Tensor:
    return x if x.element_size() >= 4 else x.float()


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(_wide(logits), dim=1)


def _check_labels(logits: Tensor, labels: Tensor, name: str = "logits") -> None:
    wanted = [logits.shape[0], *logits.shape[2:]]
    if list(labels.shape) != wanted:
        raise ValueError(f"labels: wanted {wanted} for {name} {list(logits.shape)}, got {list(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels: wanted an integer type, got {labels.dtype}")


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Mean cross entropy over the labelled pixels; the segmentation term of Eq. 9 and 12.

    logits [N, K, ...], labels [N, ...] integer. Without a labelled pixel the result is 0 with zero gradient,
    where the mean would be NaN.
    """
    _check_labels(logits, labels)
    total = F.cross_entropy(_wide(logits), labels.long(), ignore_index=ignore_index, reduction="sum")
    return mean_over(total, (labels != ignore_index).sum())


def tube_loss(
    probs: Tensor,
    labels: Tensor,
    *,
    reduction: Reduction = "sum",
    ignore_index: int = IGNORE,
    eps: float = 1e-6,
) -> Tensor:
    """Tube matching loss: sum over classes of 1 - Dice over time and space (Eq. 6, 7), mean over the batch.

        Dice(p, q) = 2 sum(p q) / (sum p^2 + sum q^2)

    probs [N, K, T, H, W] softmax maps of T frames, labels [N, T, H, W] integer; T = 1 is the single-frame
    loss. Ignored pixels count neither in p nor in q. The guard `eps` sits in the denominator alone: a class
    that the tube does not show adds the constant 1 and no gradient.

    reduction over classes: sum (the paper, 0..K), mean (0..1), or present (mean over the classes the tube
    shows; 0 without any).
    """
    if probs.ndim != 5:
        raise ValueError(f"probs: wanted [N, K, T, H, W], got {list(probs.shape)}")
    _check_labels(probs, labels, "probs")
    valid = labels != ignore_index
    overlap, square, count = [], [], []
    # Class by class: besides the probabilities one mask a class is kept for the way back, no one-hot tensor.
    for k, plane in enumerate(probs.unbind(1)):
        p = _wide(plane)
        hit = labels == k
        overlap.append((p * hit).sum((1, 2, 3)))
        square.append((p.square() * valid).sum((1, 2, 3)))
        count.append(hit.sum((1, 2, 3)))
    sums = (torch.stack(x, 1) for x in (overlap, square, count))
    return dice_loss(*sums, reduction=reduction, eps=eps)


def dice_loss(
    overlap: Tensor, square: Tensor, count: Tensor, *, reduction: Reduction = "sum", eps: float = 1e-6
) -> Tensor:
    """`tube_loss` from its sums [N, K]: sum(p q), sum p^2 and sum q^2, which is the number of pixels of each class."""
    if reduction not in ("sum", "mean", "present"):
        raise ValueError(f"reduction: wanted sum, mean or present, got {reduction!r}")
    loss = 1 - 2 * overlap / (square + count + eps)
    if reduction == "sum":
        return loss.sum(1).mean()
    if reduction == "mean":
        return loss.mean()
    present = count > 0
    return ((loss * present).sum(1) / present.sum(1).clamp(min=1)).mean()


def frame_loss(probs: Tensor, labels: Tensor, *, reduction: Reduction = "sum", ignore_index: int = IGNORE) -> Tensor:
    """Tube matching degraded to single frames (Table 3, row 3): each frame a tube of its own, then the mean.

    Arguments as `tube_loss`; the mean over frames keeps the range, so the weight can stay.
    """
    if probs.ndim != 5:
        raise ValueError(f"probs: wanted [N, K, T, H, W], got {list(probs.shape)}")
    frames = probs.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    return tube_loss(frames, labels.flatten(0, 1).unsqueeze(1), reduction=reduction, ignore_index=ignore_index)


def _gan(scores: Tensor, answer: float, gan: Gan) -> Tensor:
    scores = _wide(scores)
    wanted = torch.full_like(scores, answer)
    if gan == "vanilla":
        return F.binary_cross_entropy_with_logits(scores, wanted)
    if gan == "least_squares":
        return F.mse_loss(scores, wanted)
    raise ValueError(f"gan: wanted vanilla or least_squares, got {gan!r}")


def discriminator_loss(source: Tensor, target: Tensor, gan: Gan = "vanilla") -> Tensor:
    """What the discriminator minimises: half the sum of its errors on source and target scores (Eq. 1 and 8).

    source, target: raw scores of any shapes, computed from detached maps. Source is 0 and target 1, the
    reverse of the paper's letters and the habit of the published code; the game is the same. gan: "vanilla"
    is binary cross entropy (the paper's form), "least_squares" the squared distance of raw scores (Mao et
    al., arXiv 1611.04076).
    """
    return 0.5 * (_gan(source, SOURCE, gan) + _gan(target, TARGET, gan))


def generator_loss(target: Tensor, gan: Gan = "vanilla") -> Tensor:
    """What the segmentation network minimises to pass target for source (adversarial term of Eq. 2 and 9).

    The non-saturating form: minimising log(1 - D) as printed would lose its gradient as soon as D wins. A
    weight belongs to one flavour: 0.001 with vanilla is about 0.01 with least_squares.
    """
    return _gan(target, SOURCE, gan)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of each pixel, in nats: [N, K, ...] -> [N, ...], 0..log K."""
    log_p = _log_softmax(logits)
    return -(log_p.exp() * log_p).sum(1)


def self_information(logits: Tensor) -> Tensor:
    """Weighted self-information maps -P log2 P / log2 K (Vu et al., ADVENT, arXiv 1811.12833).

    [N, K, ...] -> [N, K, ...]; the sum over K is the normalised entropy, 0..1. K must be at least 2.
    """
    log_p = _log_softmax(logits)
    return -(log_p.exp() * log_p) / math.log(logits.shape[1])


def min_entropy(logits: Tensor) -> Tensor:
    """MinEnt: normalised entropy, 0..1, mean over pixels (Vu et al., ADVENT, arXiv 1811.12833)."""
    return entropy(logits).mean() / math.log(logits.shape[1])


def iast_regulariser(
    logits: Tensor,
    labels: Tensor,
    *,
    entropy_weight: float = 3.0,
    kld_weight: float = 0.1,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Confidence regulariser of Eq. 12 (Mei et al., IAST, arXiv 2008.12197).

    Sharpens the unlabelled pixels and smooths the labelled ones:

        entropy_weight * mean over unlabelled pixels and K of -P log P
      + kld_weight     * mean over labelled pixels and K of -(1/K) log P

    Both means run over K x pixels, as the weights 3.0 and 0.1 expect; a region without pixels adds 0. The
    second term is the divergence from uniform up to a constant. logits [N, K, ...], labels [N, ...].
    """
    _check_labels(logits, labels)
    log_p = _log_softmax(logits)
    K = logits.shape[1]
    labelled = labels != ignore_index
    n_labelled = labelled.sum()
    n_ignored = labels.numel() - n_labelled
    sharpen = mean_over((-(log_p.exp() * log_p).sum(1) * ~labelled).sum(), K * n_ignored)
    smooth = mean_over((-log_p.sum(1) / K * labelled).sum(), K * n_labelled)
    return entropy_weight * sharpen + kld_weight * smooth


def mrkld(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Model regulariser MRKLD of CRST (Zou et al., arXiv 1908.09822).

    Mean over the labelled pixels of -(1/K) sum_k log P_k, the divergence from uniform up to a constant; 0
    without any. CRST's effective weight is 0.01. logits [N, K, ...], labels [N, ...].
    """
    _check_labels(logits, labels)
    labelled = labels != ignore_index
    return mean_over((-_log_softmax(logits).mean(1) * labelled).sum(), labelled.sum())


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """[N, ...] integer -> [N, K, ...] float32; a label outside the classes, 255 among them, gives zeros."""
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, *[1] * (labels.ndim - 1))
    return (labels.unsqueeze(1) == classes).float()


def soft_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """Mean of -sum_k y_k log P_k over the pixels that are labelled at all.

    logits, soft [N, K, ...]; a pixel whose y is zero takes no part. 0 with zero gradient where none does.
    """
    if soft.shape != logits.shape:
        raise ValueError(f"soft: wanted {list(logits.shape)}, got {list(soft.shape)}")
    labelled = (soft > 0).any(1)
    return mean_over(-(soft * _log_softmax(logits)).sum(), labelled.sum())


def lrent_labels(logits: Tensor, theta: Tensor, softness: float = 0.25) -> tuple[Tensor, Tensor]:
    """Soft labels of CRST's label regulariser LRENT (Zou et al., arXiv 1908.09822), and where they are kept.

    logits [N, K, ...] of the labelling network, theta [K] class thresholds, a = softness:

        y_k = (P_k / theta_k)^(1/a) / sum_j (P_j / theta_j)^(1/a)
        kept where sum_k [-y_k log P_k + a y_k log y_k] < sum_k -y_k log theta_k

    Returns y [N, K, ...] and kept [N, ...] bool.
    """
    if theta.shape != logits.shape[1:2]:
        raise ValueError(f"theta: wanted [{logits.shape[1]}], got {list(theta.shape)}")
    log_p = _log_softmax(logits)
    log_theta = theta.to(log_p).clamp(min=1e-6).log().view(1, -1, *[1] * (logits.ndim - 2))
    log_y = F.log_softmax((log_p - log_theta) / softness, dim=1)
    y = log_y.exp()
    kept = (y * (softness * log_y - log_p + log_theta)).sum(1) < 0
    return y, kept


def robust_entropy(logits: Tensor, eta: float = 2.0) -> Tensor:
    """FDA's Charbonnier penalty on the normalised entropy e, (e^2 + 1e-8)^eta, mean over pixels (arXiv 2004.05498).

    logits [N, K, ...] -> scalar. The published code divides by log 19 whatever K; here it is log K.
    """
    normalised = entropy(logits) / math.log(logits.shape[1])
    return (normalised.square() + 1e-8).pow(eta).mean()
