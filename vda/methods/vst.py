"""Phase 2, video self-training: Eq. 12 with the online refinement of Eq. 13 (or Eq. 14).

    L(G) = sum_l [ CE(P_l, RF(y^_l)) + lambda_reg L_reg(P_l, RF(y^_l)) ]               Eq. 12

L_reg is IAST's pair: entropy of the unlabelled pixels (sharpen) and divergence from uniform of the labelled ones
(smooth). Pixels that the refinement cuts out count as unlabelled. The paper defines RF for frame t with reference
t - tau; the first frame of a tube takes the second as its reference, with the flow of that direction.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vda import config
from vda.data.tubes import Batch
from vda.losses import cross_entropy, iast_regulariser
from vda.methods.base import Losses, Method, tube_labels, tube_logits, untracked
from vda.occlusion import visible
from vda.ops import consensus


class VST(Method):
    """Self-training on refined clip-adaptive pseudo labels; the ablations of Tables 4 and 6 are options."""

    def __init__(self, network: nn.Module, settings: config.VST, occlusion: config.Occlusion) -> None:
        super().__init__(network)
        self.settings, self.occlusion = settings, occlusion

    def losses(self, source: Batch | None, target: Batch) -> Iterator[Losses]:
        labels = refine(target, self.settings.refine, self.occlusion)
        logits = tube_logits(self.network, target.frames)
        losses: dict[str, Tensor] = {}
        for t in range(labels.shape[1]):
            frame: Losses = {
                "seg": cross_entropy(logits[:, t], labels[:, t]),
                "reg": self.settings.lambda_reg
                * iast_regulariser(
                    logits[:, t],
                    labels[:, t],
                    entropy_weight=self.settings.entropy_weight,
                    kld_weight=self.settings.kld_weight,
                ),
            }
            losses = {k: losses.get(k, 0) + v for k, v in frame.items()}
        yield losses
        if self.settings.source_weight and source is not None:
            with untracked(self.network):
                logits = tube_logits(self.network, source.frames)
            seg = cross_entropy(logits.flatten(0, 1), tube_labels(source).flatten(0, 1))
            yield {"source": self.settings.source_weight * seg}


def refine(batch: Batch, mode: str, occlusion: config.Occlusion) -> Tensor:
    """Pseudo labels [B, T, H, W] after temporal consensus (Eq. 13, or Eq. 14 for mode "fill_in")."""
    labels = tube_labels(batch)
    if mode == "none":
        return labels
    if batch.flows is None:
        raise ValueError("flows: wanted the optical flow of the tubes for the refinement, got none")
    refined = []
    for t in range(labels.shape[1]):
        # reference frame, the flow from t to it, and the flow back
        if t:
            reference, back, flow = t - 1, *batch.flows[:, t - 1].unbind(1)
        else:
            reference, flow, back = 1, *batch.flows[:, 0].unbind(1)
        seen = None
        if mode == "fill_in":
            seen = visible(batch.frames[:, t], batch.frames[:, reference], flow, back, occlusion)
        refined.append(consensus(labels[:, t], labels[:, reference], flow, mode=mode, visible=seen))
    return torch.stack(refined, 1)
