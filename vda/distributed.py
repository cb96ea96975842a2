"""One run in several processes, started by `torchrun`: who they are, and the few things that they tell each other.

Without torchrun, or before `start`, there is one process: nothing is sent, and every function here is trivial.

Gradients are averaged once a step, after all losses of the step were back-propagated, and not by the wrapper
`DistributedDataParallel`: a step here goes through the network several times, backwards after each group of losses, and
the wrapper would have to be told which of them is the last for which module. This way every process sends the same
tensors in the same order whatever the method does, so nothing can wait for ever.
"""

from __future__ import annotations

import io
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from vda.errors import UsageError

T = TypeVar("T")

# How long a process waits for the others. torchrun ends all as soon as one dies; this is for a machine that vanishes,
# and longer than what the first process does alone, such as CCM's choice of source frames.
PATIENCE = timedelta(hours=2)
_BUCKET = 1 << 23  # elements that are sent at once: 32 MB, large enough for the bandwidth to count

_joined = False  # a group that somebody else made is not ours to talk in
_again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def start(device: str) -> None:
    """Joins the other processes of the run where torchrun started this one. device: as `vda.device.choose_device`.

    From then on standard output and progress bars are the first process's alone.
    """
    global _joined, _again
    if _joined or launched() == 1:
        return
    if not dist.is_available():
        raise UsageError("torchrun: wanted a build of torch with torch.distributed, found one without")
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if gpus and local >= gpus:
        raise UsageError(f"torchrun: wanted at most one process for each of the {gpus} GPUs, found process {local + 1}")
    if gpus:
        torch.cuda.set_device(local)
    store, number, count = next(dist.rendezvous("env://", timeout=PATIENCE))
    backend, own = "cpu:gloo,cuda:nccl" if gpus else "gloo", dist.PrefixStore(_meet(store, number, count), store)
    dist.init_process_group(backend, store=own, rank=number, world_size=count, timeout=PATIENCE)
    _joined = True
    _again = from_first(store.add("vda/starts", 1) > 1 if is_first() else None) or any_of(_again)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


def _meet(store: dist.Store, number: int, count: int) -> str:
    """A name for this start that all its processes agree on and no other start has.

    torchrun keeps its store when it starts the processes anew, so they find what dead ones left: addresses at which
    nobody answers. Its own count of restarts differs between machines. So the first process makes a name, the others
    answer it with names of their own, and those that it has heard of know that it is alive.
    """
    mine = secrets.token_hex(8)
    if number == 0:
        store.set("vda/first", mine)
        heard = [store.get(f"vda/{mine}/{other}").decode() for other in range(1, count)]
        store.set(f"vda/{mine}/heard", ",".join(heard))
        return mine
    while True:
        first = store.get("vda/first").decode()
        store.set(f"vda/{first}/{number}", mine)
        with suppress(dist.DistStoreError):  # dead before it had heard of all
            store.wait([f"vda/{first}/heard"], timedelta(seconds=1))
            if mine in store.get(f"vda/{first}/heard").decode().split(","):
                return first
        time.sleep(0.1)


def launched() -> int:
    """How many processes torchrun started, whether they have joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def check_alone(command: str) -> None:
    """Raises UsageError where torchrun started several processes of a command that does not share its work."""
    if launched() > 1:
        raise UsageError(f"{command}: wanted one process, found {launched()} that torchrun started")


def leave() -> None:
    """Ends what `start` began."""
    global _joined
    if _joined:
        _joined = False
        dist.destroy_process_group()


def size() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if _joined else 1


def rank() -> int:
    """The number of this process, 0 .. size - 1."""
    return dist.get_rank() if _joined else 0


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return rank() == 0


def again() -> bool:
    """Whether torchrun has started the run before: after a process failed, or when machines came or went."""
    return _again


def lost_another(error: Exception) -> bool:
    """Whether this is what a process gets that talks to one that is gone."""
    return _joined and isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error))


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of what all have to do: successive items, one part after another by rank."""
    n = len(items)
    return items[n * rank() // size() : n * (rank() + 1) // size()]


# --- agreement


def by_first(do: Callable[..., T], *arguments: Any) -> T:
    """`do(*arguments)` in the first process alone; once it is done, what it returns, on every process.

    So that all go the same way where that depends on a file: machines that share a disk may see a new one at different
    times. Types as of `gather`.
    """
    return from_first(cast(T, do(*arguments) if is_first() else None))


def wait() -> None:
    """Until all processes are here."""
    if _joined:
        _sum(torch.zeros(1))  # gloo on the CPU: a barrier of NCCL would keep the GPU busy


def gather(value: T) -> list[T]:
    """What every process gives, by rank, on every process. value: tensors and plain types; no pickle is involved."""
    if not _joined:
        return [value]
    buffer = io.BytesIO()
    torch.save(value, buffer)
    data = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    dist.all_gather(lengths, torch.tensor([data.numel()]))
    parts = [torch.empty(int(max(lengths)), dtype=torch.uint8) for _ in lengths]
    dist.all_gather(parts, torch.cat([data, data.new_zeros(len(parts[0]) - len(data))]))
    cut = (part[: int(length)].numpy().tobytes() for part, length in zip(parts, lengths, strict=True))
    return [torch.load(io.BytesIO(content), weights_only=True) for content in cut]


def from_first(value: T) -> T:
    """What the first process gives, on every process; types as of `gather`."""
    return gather(value)[0]


def any_of(flag: bool) -> bool:
    """Whether it is true in any process."""
    return bool(_sum(torch.tensor([flag], dtype=torch.int64)).item())


def check_same(what: str, value: Any) -> None:
    """Raises RuntimeError where not all processes have the same value: they would drift apart without a word."""
    if any(other != value for other in gather(value)):
        raise RuntimeError(f"{what}: wanted the same in all processes, found {gather(value)}")


# --- sums


def _sum(x: Tensor) -> Tensor:
    if _joined:
        dist.all_reduce(x)
    return x


def total(x: Tensor) -> Tensor:
    """The sum of x over all processes, without a gradient; exact for integers."""
    return _sum(x.detach().clone()) if _joined else x


def mean_over(numerator: Tensor, count: Tensor) -> Tensor:
    """numerator / count, such that the mean of it over the processes is the quotient of the sums. 0 where count is 0.

    Losses that are means over pixels divide by this: processes whose frames have fewer labels must not count as much.
    """
    scaled = size() * numerator if _joined else numerator
    return scaled / total(count).clamp(min=1)


def average(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes, which all give the same shapes in the same order."""
    if not _joined:
        return
    for bucket in _buckets(tensors):
        flat = _sum(torch.cat([tensor.reshape(-1) for tensor in bucket])) / size()
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Successive tensors of one type and device, about `_BUCKET` elements together."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        alike = not bucket or (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and not (alike and sum(t.numel() for t in bucket) < _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes. None is taken for zero, but stays where all have None."""
    if not _joined:
        return
    learning = list(parameters)
    reached = total(torch.tensor([p.grad is not None for p in learning], dtype=torch.int64)).tolist()
    gradients = []
    for parameter, count in zip(learning, reached, strict=True):
        if count and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    average(gradients)


class _Total(torch.autograd.Function):
    """The sum over processes, with a gradient: each process's part reaches the losses of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum(grad.clone())


def differentiable_total(x: Tensor) -> Tensor:
    """The sum of x over all processes; its gradient is the sum of their gradients."""
    return _Total.apply(x) if _joined else x
