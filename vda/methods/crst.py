"""CRST: confidence-regularised self-training (Zou et al., ICCV 2019, arXiv 1908.09822). CBST with a regulariser.

    MRKLD: L = CE + lambda mean over the labelled target pixels of -(1/K) sum_k log P_k
    LRENT: soft labels y_k = (P_k / theta_k)^(1/a) / sum_j (P_j / theta_j)^(1/a), P of the network that labelled;
           kept where sum_k [-y_k log P_k + a y_k log y_k] < sum_k -y_k log theta_k;  L = mean of -sum_k y_k log P_k

MRKLD is the default, the stronger one in the paper. Its published weight is 0.1, but the published code multiplies by
it twice; the authors kept what worked, so the default here is the effective 0.01. LRENT takes its soft labels from a
frozen copy of the labelling network instead of from probability maps on disk (31 MB a frame at 512 x 1024 with 15
classes), at the price of one more forward pass a step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from vda.data.clip import IGNORE
from vda.data.tubes import Batch
from vda.errors import UsageError
from vda.losses import cross_entropy, lrent_labels, mrkld, one_hot, soft_cross_entropy
from vda.methods.base import Losses, frame_labels, frames, full_logits
from vda.methods.cbst import CBST, CBSTSettings
from vda.methods.self_training import Labelled, mixed_logits, of_target
from vda.policies import POLICIES

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class CRSTSettings(CBSTSettings):
    """Class-balanced self-training with a confidence regulariser."""

    regulariser: Literal["mrkld", "lrent"] = "mrkld"
    """mrkld: of the model, towards uniform predictions; lrent: of the labels, which become soft."""
    lambda_reg: float = 0.01
    """mrkld: its weight."""
    softness: float = 0.25
    """lrent: a, how soft the labels are."""


class CRST(CBST):
    """CBST with a regulariser on the target's part of the batch."""

    title = "CRST"
    settings_type = CRSTSettings
    settings: CRSTSettings
    theta: Tensor

    def __init__(self, network: nn.Module, settings: CRSTSettings, theta: Tensor) -> None:
        super().__init__(network, settings)
        self.register_buffer("theta", theta.float(), persistent=False)
        # kept out of the module tree: it is neither trained nor saved, and train() must not reach it
        self._labeller = [copy.deepcopy(network).eval()] if settings.regulariser == "lrent" else []

    def losses(self, source: None, target: Batch) -> Iterator[Losses]:
        logits, labels, ours = (
            mixed_logits(self.network, target),
            frame_labels(target),
            of_target(target).to(target.frames.device),
        )
        if self.settings.regulariser == "mrkld":
            reg = self.settings.lambda_reg * mrkld(logits, labels.masked_fill(~ours, IGNORE))
            yield {"seg": cross_entropy(logits, labels), "reg": reg}
            return
        images = frames(target)
        with torch.no_grad():
            soft, kept = lrent_labels(full_logits(self._labeller[0], images), self.theta, self.settings.softness)
        hard = one_hot(labels, soft.shape[1])
        yield {"seg": soft_cross_entropy(logits, torch.where(ours[:, None], soft * kept[:, None], hard))}

    @classmethod
    def build(cls, run: Run, settings: Any, found: Labelled) -> Self:
        return cls(run.network_at(found.model), settings, torch.tensor(found.labels.theta))

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        super().check(run, settings)
        policy = settings.pseudo.policy
        if settings.regulariser == "lrent" and not POLICIES[policy].set_wide:
            raise UsageError(f"crst: lrent wants thresholds of the whole set, policy {policy} has none")
