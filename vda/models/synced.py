"""Batch norm whose batch is that of all processes together; torch's own wants a GPU, this runs on the CPU too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vda import distributed


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """As BatchNorm2d, with mean and variance over the batches of all processes, which must all call it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        wide = x if x.element_size() >= 4 else x.float()  # not half, also under autocast
        count = distributed.total(torch.tensor(float(x.numel() // x.shape[1]), dtype=wide.dtype, device=x.device))
        mean = distributed.differentiable_total(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = distributed.differentiable_total(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)
            self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise_batch_norm(module: nn.Module) -> None:
    """Turns every BatchNorm2d below `module` into one over all processes, with the very parameters and buffers."""
    for parent in list(module.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) is nn.BatchNorm2d:
                synced = SyncedBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
                synced.weight, synced.bias, synced.training = norm.weight, norm.bias, norm.training
                for buffer, value in norm.named_buffers():
                    setattr(synced, buffer, value)
                setattr(parent, name, synced)


def moving_statistics(module: nn.Module) -> list[Tensor]:
    """The running statistics that a step has moved, in each process on its own; others must not even be rounded."""
    norms = [m for m in module.modules() if type(m) is nn.BatchNorm2d and m.training]
    return [x for norm in norms for x in (norm.running_mean, norm.running_var) if x is not None]
