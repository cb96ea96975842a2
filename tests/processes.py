"""What each process does in test_processes.py: trains every method on its share of the batches.

    torchrun --nproc-per-node 2 tests/processes.py FOLDER

Run in one process by the test itself, it gives what several must reach.
"""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from method_cases import CASES
from torch import Tensor

import train
from vda import distributed
from vda.data.tubes import Batch
from vda.models.synced import synchronise_batch_norm
from vda.options import Optimiser

STEPS = 2
SINGLE = ("crst:lrent", "videogan:segmentation", "flow_training")  # have a part that is float32, whatever the weights
# Frozen batch norm for all; batch statistics over both processes where methods differ in how they use the network. Not
# for mixed batches, in which one process may have no frame of a domain.
SYNCED = ("adaptsegnet", "fda", "iast:source", "source_only", "vat:tube-sequence", "videogan:translation", "vst:source")
VARIANTS = [(name, "eval") for name in CASES] + [(name, "train") for name in SYNCED]

Result = tuple[list[dict[str, float]], dict[str, Tensor]]  # losses of each step; all parameters and buffers at the end


def shared(batch: Batch | None, dtype: torch.dtype = torch.float32) -> Batch | None:
    """This process's tubes of a batch."""
    if batch is None:
        return None

    def part(value: Any) -> Any:
        return value if value is None else distributed.share(value)

    found = replace(batch, **{field.name: part(getattr(batch, field.name)) for field in fields(batch)})
    return replace(found, frames=found.frames.to(dtype))


def trained(name: str, batch_norm: str) -> Result:
    dtype = torch.float32 if name.startswith(SINGLE) else torch.float64
    method = CASES[name].build(batch_norm).to(dtype)
    synchronise_batch_norm(method)
    optimisers = train.build_optimisers(method, Optimiser(iterations=STEPS, lr=0.01))
    batches = [shared(batch, dtype) for batch in CASES[name].batches()]
    torch.manual_seed(0)
    losses = [train.step(method, optimisers, *batches) for _ in range(STEPS)]
    return losses, {key: value.clone() for key, value in method.state_dict().items()}


def all_trained() -> dict[str, Result]:
    return {f"{name}, {batch_norm}": trained(name, batch_norm) for name, batch_norm in VARIANTS}


def moved_apart() -> tuple[Tensor, Tensor]:
    """Running means and variances after one step in which every process uses the statistics of its own frames."""
    method = CASES["source_only"].build("train")
    batches = [shared(batch) for batch in CASES["source_only"].batches()]
    train.step(method, train.build_optimisers(method, Optimiser(iterations=1)), *batches)
    norms = [m for m in method.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    means, variances = ([getattr(norm, f"running_{what}") for norm in norms] for what in ("mean", "var"))
    return torch.cat(means), torch.cat(variances)


def primitives() -> dict[str, Any]:
    """What vda.distributed gives in this process, from values that depend on its rank."""
    rank = distributed.rank()
    values = [torch.full((3,), float(rank)), torch.full((2, 2), 10.0 * rank, dtype=torch.float64)]
    distributed.average(values)
    a, b, c = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad = torch.full((2,), 1.0 + rank)
    b.grad = torch.ones(2) if rank == 0 else None
    distributed.average_gradients([a, b, c])
    done = []
    distributed.by_first(done.append, rank)
    return {
        "size": distributed.size(),
        "share": list(distributed.share([0, 1, 2])),
        "none of one": list(distributed.share([0])),
        "gather": distributed.gather({"rank": rank, "more": [rank] * (1 + 1000 * rank)}),
        "first": distributed.from_first(rank + 5),
        "any": [distributed.any_of(rank == 1), distributed.any_of(False)],
        "total": distributed.total(torch.tensor([2**53 + 1, rank])),
        "mean over": distributed.mean_over(torch.tensor(3.0 * rank), torch.tensor(4 * rank)),
        "mean over none": distributed.mean_over(torch.tensor(0.0), torch.tensor(0)),
        "average": values,
        "gradients": [a.grad, b.grad, c.grad],
        "done": done,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.start("cpu")
    found = {"primitives": primitives(), "trained": all_trained(), "statistics": moved_apart()}
    torch.save(found, Path(sys.argv[1]) / f"{distributed.rank()}.pt")
    distributed.leave()
