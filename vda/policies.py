"""Which predictions become labels: one policy for each way that the methods have.

A policy sees one clip after another and thresholds theta [K] that go from clip to clip. Those of a `set_wide` policy
come from a first pass over the whole set (vda/pseudo.py) and stay. A `relative` policy also sees max_k P_k / theta_k
and the class that attains it, which need not be the most likely one. A new policy is one function and one line in
POLICIES.

Several processes share the frames of a clip (vda/distributed.py). A policy sees those of its own process, which may be
none, and brings the thresholds together: every process ends with those that one alone would have found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vda import distributed
from vda.data.clip import IGNORE
from vda.matching import image_quantile
from vda.ops import ClassThresholds, apply_thresholds
from vda.options import Pseudo


@dataclass(frozen=True)
class Confident:
    """The predictions of the N frames of one clip that are this process's.

    label [N, H, W] uint8 (argmax of P), confidence [N, H, W] float16 (max of P). relative_label, ratio: the same of
    P / theta; None where the policy does not ask for it.
    """

    label: Tensor
    confidence: Tensor
    relative_label: Tensor | None = None
    ratio: Tensor | None = None


@dataclass(frozen=True)
class Policy:
    """label: (clip, theta [K], settings) -> (labels [N, H, W] uint8, 255 where none; theta to go on with)."""

    label: Callable[[Confident, Tensor, Pseudo], tuple[Tensor, Tensor]]
    set_wide: bool = False
    relative: bool = False


def clip_adaptive(clip: Confident, theta: Tensor, settings: Pseudo) -> tuple[Tensor, Tensor]:
    """Algorithm 1, Eq. 11: all frames of the clip are one instance and share its thresholds."""
    counts = _counted(clip.confidence, clip.label, len(theta), settings)
    counts.histogram = distributed.total(counts.histogram)
    theta = counts.finish(theta)
    return _kept(clip, theta.expand(len(clip.label), -1), settings.rule), theta


def instance_adaptive(clip: Confident, theta: Tensor, settings: Pseudo) -> tuple[Tensor, Tensor]:
    """Eq. 4 (IAST): every frame is an instance.

    Frames come clip by clip, in their order; the published code shuffles all frames of the set. So here the thresholds
    follow a clip more closely. Processes take turns, each with the thresholds after the last frame of the one before.
    """
    thetas = theta.new_empty(len(clip.label), len(theta))
    for turn in range(distributed.size()):
        if turn == distributed.rank():
            for i, of_frame in enumerate(zip(clip.confidence, clip.label, strict=True)):
                thetas[i] = theta = _counted(*of_frame, len(theta), settings).finish(theta)
        theta = distributed.gather(theta.cpu())[turn].to(theta.device)
    return _kept(clip, thetas, settings.rule), theta


def class_balanced(clip: Confident, theta: Tensor, settings: Pseudo) -> tuple[Tensor, Tensor]:
    """CBST: argmax of P / theta, where that is at least 1.

    Confidences are 16 bits wide, 5e-4 apart near 1. So a class that is surer than that on more than its portion has
    theta = 1, and all its pixels that round to 1 are labelled.
    """
    assert clip.relative_label is not None
    assert clip.ratio is not None
    return torch.where(clip.ratio >= 1, clip.relative_label, IGNORE), theta


def class_or_image(clip: Confident, theta: Tensor, settings: Pseudo) -> tuple[Tensor, Tensor]:
    """CCM: where any class reaches its threshold, or the pixel is among the surest alpha of its frame.

    Published is "exceeds", for 32-bit confidences; 16 bits tie at 1, where nothing would exceed.
    """
    assert clip.ratio is not None
    kept = clip.ratio >= 1
    for of_frame, confidence in zip(kept, clip.confidence, strict=True):
        of_frame |= confidence >= image_quantile(confidence, settings.alpha)
    return torch.where(kept, clip.label, IGNORE), theta


def top_portion(clip: Confident, theta: Tensor, settings: Pseudo) -> tuple[Tensor, Tensor]:
    """FDA: the surest alpha of the pixels of a class, and whatever reaches the confidence `cap`."""
    return _kept(clip, theta.clamp(max=settings.cap).expand(len(clip.label), -1), "iast"), theta


def everything(clip: Confident, theta: Tensor, settings: Pseudo) -> tuple[Tensor, Tensor]:
    """IntraDA: the most likely class of every pixel."""
    return clip.label, theta


POLICIES: dict[str, Policy] = {
    "clip_adaptive": Policy(clip_adaptive),
    "instance_adaptive": Policy(instance_adaptive),
    "class_balanced": Policy(class_balanced, set_wide=True, relative=True),
    "class_or_image": Policy(class_or_image, set_wide=True, relative=True),
    "top_portion": Policy(top_portion, set_wide=True),
    "all": Policy(everything),
}


def _counted(confidence: Tensor, label: Tensor, K: int, settings: Pseudo) -> ClassThresholds:
    thresholds = ClassThresholds(
        K,
        alpha=settings.alpha,
        beta=settings.beta,
        gamma=settings.gamma,
        rule=settings.rule,
        device=confidence.device,
    )
    thresholds.update(confidence, label)
    return thresholds


def _kept(clip: Confident, thetas: Tensor, rule: str) -> Tensor:
    """Labels where the confidence passes the threshold [N, K] of the label's class: > (paper) or >= (iast)."""
    return apply_thresholds(clip.label, clip.confidence, thetas.to(clip.label.device), rule=rule, ignore_index=IGNORE)
