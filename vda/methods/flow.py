"""Training of a flow network on exact flow: the multi-scale end-point error of FlowNet (Dosovitskiy et al., ICCV 2015).

Weights and units are those of FlowNet2's published PyTorch training: level l of 2 .. 6 (a quarter of the resolution to
a 64th) counts 0.32 / 2^(l - 2), in twentieths of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vda.data.tubes import Batch, known_flow
from vda.distributed import by_first, mean_over
from vda.errors import UsageError
from vda.flow import score_command as flow_scores
from vda.flow.flownet2 import STRIDE, UNIT, Estimator, Refinement, build_estimator, normalised
from vda.flow.providers import DISFlow, NetworkFlow
from vda.flow.weights import save_weights
from vda.methods.base import Losses, Method, Round, Settings
from vda.options import Optimiser, wanted
from vda.scoring import write_scores

if TYPE_CHECKING:
    from vda.run import Run

FINEST = 0.32
FLOW_WEIGHTS, FLOW_SCORES = "flow.safetensors", "flow-scores.json"  # what the training leaves in its folder
HELD_OUT_PAIRS = 100  # on which the network is scored at most


@dataclass(frozen=True)
class FlowTrainingSettings(Settings):
    """A flow network of our own, trained on data whose flow is known."""

    start: str = ""
    variant: Literal["flownet2-c", "flownet2-s", "flownet2-sd"] = "flownet2-c"
    """Which of the family."""
    width: int = 16
    """Channels of the first layer; 64 is published, 16 has 2.4 million weights."""
    optimiser: Optimiser = field(
        default_factory=lambda: Optimiser(
            iterations=200_000, batch=4, name="adam", lr=4e-4, schedule="cosine", weight_decay=0.0
        )
    )
    """No weight decay: the loss is a mean over pixels, and FlowNet's 4e-4, made for sums, would end at zero flow."""

    def __post_init__(self) -> None:
        wanted(self.width >= 4 and self.width % 4 == 0, "flow.width", "a multiple of 4", self.width)


class FlowTraining(Method):
    """L = sum over levels of 0.32 / 2^(l - 2) times the mean end-point error; both directions of every pair count.

    The network is one of the family's parts that estimate flow at all levels (C, S, SD). Flow that is not known is NaN
    in the batch and takes no part.
    """

    title = "flow"
    settings_type = FlowTrainingSettings
    leaves_network = False
    network: Refinement

    def losses(self, source: Batch, target: Batch | None = None) -> Iterator[Losses]:
        if source.flows is None or source.frames.shape[1] != 2:
            raise ValueError("source: wanted pairs of frames with their flows")
        first, second = normalised(source.frames[:, 0], source.frames[:, 1])
        truth = torch.cat([source.flows[:, 0, 0], source.flows[:, 0, 1]])
        pyramid = self.network.both_pyramids(first, second)
        yield {"flow": multi_scale_error(pyramid, truth)}

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        torch.manual_seed(run.config.seed)
        network = build_estimator(settings.variant, settings.width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        yield Round(folder, cls(network), settings.optimiser, run.tubes(run.source, None, flow=known_flow), None)
        by_first(cls._graded, run, settings, folder, network)

    @classmethod
    def _graded(cls, run: Run, settings: Any, folder: Path, network: Estimator) -> None:
        """Leaves the weights, and their scores beside those of DIS."""
        path, sha256 = save_weights(folder / FLOW_WEIGHTS, settings.variant, network.state_dict(), "flow_training")
        trained = NetworkFlow(network.eval(), f"{settings.variant}-{sha256[:12]}", run.device)
        pairs = flow_scores.choose_pairs(run.validation, 1, HELD_OUT_PAIRS)
        scores = {source.name: flow_scores.score_pairs(source, pairs) for source in (trained, DISFlow())}
        print(flow_scores.table(scores))
        write_scores(folder / FLOW_SCORES, {name: flow_scores.means(rows) for name, rows in scores.items()})
        print(f"use it with --flow.provider flownet2 --flow.weights {path}")

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        data = run.config.data
        clip, indices = run.tubes(run.source, None).tubes[0]
        if data.tube_length != 2 or clip.exact_flow(*indices[:2]) is None:
            raise UsageError(
                f"flow: wanted tubes of 2 frames of a data set that knows its flow (motion, pairs, embedded), "
                f"found {data.source} with tubes of {data.tube_length}"
            )


def multi_scale_error(pyramid: list[Tensor], truth: Tensor) -> Tensor:
    """pyramid: flows [B, 2, h, w] at levels 2, 3, .., in units of the networks; truth [B, 2, H, W] pixels, NaN unknown.

    The truth of a level is the mean of what is known in a cell, where that is at least half of it.
    """
    H, W = truth.shape[-2:]
    truth = F.pad(truth, (0, -W % STRIDE, 0, -H % STRIDE), value=torch.nan)
    known = truth.isfinite().all(1, keepdim=True)
    truth = torch.where(known, truth / UNIT, 0.0)
    total = truth.new_zeros(())
    for level, estimate in enumerate(pyramid):
        cell = truth.shape[-1] // estimate.shape[-1]
        share = F.avg_pool2d(known.float(), cell)
        level_truth = F.avg_pool2d(truth, cell) / share.clamp(min=1e-6)
        error = torch.linalg.vector_norm(estimate.float() - level_truth, dim=1, keepdim=True)
        counts = share >= 0.5
        total = total + FINEST / 2**level * mean_over((error * counts).sum(), counts.sum())
    return total
