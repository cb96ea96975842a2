"""Several networks as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Mean of the softmax of networks that give maps of one size, as logits: [N, 3, H, W] -> [N, K, h, w].

    The mean is taken at the size that the networks give, as in FDA's published multi-band transfer; what enlarges it
    then enlarges its logarithm, where the published code enlarges the mean itself.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        log_p = torch.stack([network(images).float().log_softmax(1) for network in self.networks])
        return log_p.logsumexp(0)  # the sum differs from the mean by a constant, which the next softmax takes out
