"""Phase 2, video self-training: Eq. 12 with the online refinement of Eq. 13 (or Eq. 14).

    L(G) = sum_l [ CE(P_l, RF(y^_l)) + lambda_reg L_reg(P_l, RF(y^_l)) ]               Eq. 12

L_reg is IAST's pair: entropy of the unlabelled pixels (sharpen) and divergence from uniform of the labelled ones
(smooth). Pixels that the refinement cuts out count as unlabelled. The paper defines RF for frame t with reference
t - tau; the first frame of a tube takes the second as its reference, with the flow of that direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from vda.data.tubes import Batch, Samples, Tubes
from vda.fused import cross_entropy, select
from vda.methods.base import Losses, tube_labels, wants_tubes
from vda.methods.self_training import Labelled, RegularisedSettings, TargetTraining
from vda.occlusion import visible
from vda.ops import consensus, segmentation_sums
from vda.options import Occlusion, Pseudo

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class VSTSettings(RegularisedSettings):
    """Phase 2, video self-training (Eq. 12)."""

    start: str = "vat"
    rounds: int = 1
    pseudo: Pseudo = field(default_factory=lambda: Pseudo(policy="clip_adaptive", aggregate=True))
    refine: Literal["strict", "lenient", "fill_in", "none"] = "strict"
    """Temporal consensus of pseudo labels: Eq. 13, Eq. 13 only where both frames are labelled, Eq. 14, or none."""
    lambda_reg: float = 1.0
    """Weight of the regulariser, lambda_reg of Eq. 12."""


class VST(TargetTraining):
    """Self-training on refined clip-adaptive pseudo labels; the ablations of Tables 4 and 6 are settings."""

    title = "VST"
    settings_type = VSTSettings
    settings: VSTSettings

    def __init__(self, network: nn.Module, settings: VSTSettings, occlusion: Occlusion) -> None:
        super().__init__(network, settings)
        self.occlusion = occlusion

    def losses(self, source: Batch | None, target: Batch) -> Iterator[Losses]:
        labels = refine(target, self.settings.refine, self.occlusion)
        sums = segmentation_sums(self.network(target.frames.flatten(0, 1)), labels.flatten(0, 1))
        frames = [select(sums, slice(t, None, labels.shape[1])) for t in range(labels.shape[1])]
        yield {  # Eq. 12 adds the losses of the frames, it does not average them
            "seg": torch.stack([cross_entropy(frame) for frame in frames]).sum(),
            "reg": self.settings.lambda_reg * torch.stack([self.regulariser(frame) for frame in frames]).sum(),
        }
        yield from self.source_losses(source)

    @classmethod
    def batches(cls, run: Run, settings: Any, found: Labelled) -> tuple[Samples | None, Samples | None]:
        source, target = super().batches(run, settings, found)
        assert isinstance(target, Tubes)
        target.flow = None if settings.refine == "none" else run.flow
        return source, target

    @classmethod
    def build(cls, run: Run, settings: Any, found: Labelled) -> Self:
        return cls(run.network_at(found.model), settings, run.config.occlusion)

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        super().check(run, settings)
        wants_tubes(run, "vst")
        if settings.refine != "none":
            run.check_flow({run.config.data.frame_step}, in_loader=True)


def refine(batch: Batch, mode: str, occlusion: Occlusion) -> Tensor:
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
