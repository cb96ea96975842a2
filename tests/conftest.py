"""Fixtures for all tests: seeds, and the backends that run a kernel.

A kernel test takes the fixture `backend` and runs once per backend:
    cpu       the CPU kernels of vda._C, in the widest instruction set of the machine
    avx2      the same, at most AVX2
    baseline  the same, without
    shim      the CUDA kernels (csrc/*.cu) compiled by the host compiler, on CPU tensors
    shuffled  the same with the threads of every block in a random order
    naive     as shim, the readable versions that are kept beside the optimised kernels
    cuda      the CUDA kernels on a GPU, where there is one
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vda.ops import _lib

from shim import build  # tests/ is on sys.path because conftest.py lies in it  # isort: skip

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, or the threads of one process wait for those of another
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Backend:
    name: str
    device: str  # where the test puts its tensors

    @property
    def atomics(self) -> bool:
        """Whether kernels take the CUDA path."""
        return self.name in ("shim", "shuffled", "naive", "cuda")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shim_module() -> ModuleType:
    return build.load(build.build())


BACKENDS = ["cpu", "avx2", "baseline", "shim", "shuffled", "naive"]
if torch.cuda.is_available():
    BACKENDS.append(pytest.param("cuda", marks=pytest.mark.gpu))  # type: ignore[arg-type]


def pytest_report_header() -> str:
    return f"kernels: cpu, CUDA on the CPU, {'CUDA' if torch.cuda.is_available() else 'no GPU here'}"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    name = request.param
    if name in ("cpu", "avx2", "baseline"):
        assert not _lib.why_off("cpu"), _lib.why_off("cpu")
        monkeypatch.setenv("VDA_SIMD", "" if name == "cpu" else name)
        yield Backend(name, "cpu")
    elif name == "cuda":
        assert not _lib.why_off("cuda"), _lib.why_off("cuda")
        yield Backend(name, "cuda")
    else:
        seed = zlib.crc32(request.node.name.encode()) % 2**31 if name == "shuffled" else 0
        monkeypatch.setenv("VDA_SHIM_SEED", str(seed))
        naive = _lib.naive() if name == "naive" else contextlib.nullcontext()
        with _lib.routed_to(request.getfixturevalue("shim_module")), naive:
            yield Backend(name, "cpu")


def hostile_flow(B: int, H: int, W: int, dtype: torch.dtype = torch.float32, reach: float = 3.0) -> Tensor:
    """Flow [B, 2, H, W] with what breaks kernels: NaN, infinities, huge, far out, exact borders and exact halves.

    int16 is in tenths of a pixel, without what it cannot hold.
    """
    if dtype == torch.int16:
        flow = hostile_flow(B, H, W, reach=reach).nan_to_num(3276.7, 3276.7, -3276.7)
        return flow.mul(10).round().clamp(-32768, 32767).to(torch.int16)
    flow = torch.randn(B, 2, H, W, dtype=torch.float64) * reach
    flow[torch.rand(flow.shape) < 0.15] = 0.0
    flow = torch.where(torch.rand(flow.shape) < 0.2, flow.mul(2).round().div(2), flow)
    x = torch.arange(W).expand(H, W)
    y = torch.arange(H)[:, None].expand(H, W)
    for value in (float("nan"), float("inf"), float("-inf"), 6e4, -6e4, 3.3e4):
        flow[torch.rand(flow.shape) < 0.02] = value
    if dtype not in (torch.float16,):
        flow[torch.rand(flow.shape) < 0.02] = 1e30
        flow[torch.rand(flow.shape) < 0.02] = -3e9  # beyond int32
    edge = torch.rand(B, H, W) < 0.1  # land exactly on the last column and row
    flow[:, 0] = torch.where(edge, (W - 1 - x).double(), flow[:, 0])
    flow[:, 1] = torch.where(edge, (H - 1 - y).double(), flow[:, 1])
    return flow.to(dtype)


def smooth_flow(B: int, H: int, W: int, slope: float) -> Tensor:
    """Flow [B, 2, H, W] as a camera makes it: affine, neighbours differ by about `slope`, some of it out of frame."""
    y, x = torch.meshgrid(torch.arange(H) - H / 3, torch.arange(W) - W / 3, indexing="ij")
    a = slope * torch.randn(B, 2, 2, 1, 1)
    return a[:, :, 0] * y + a[:, :, 1] * x + 2 * torch.randn(B, 2, 1, 1)


def layouts(x: Tensor) -> list[Tensor]:
    """x in several memory layouts: contiguous, last dimension first, a slice of something larger."""
    order = (*range(x.dim() - 2, -1, -1), x.dim() - 1)
    turned = x.permute(order).contiguous().permute([order.index(i) for i in range(x.dim())])
    larger = torch.zeros([n + 2 for n in x.shape], dtype=x.dtype, device=x.device)
    inner = larger[tuple(slice(1, n + 1) for n in x.shape)]
    inner.copy_(x)
    strided = torch.zeros([*x.shape[:-1], 2 * x.shape[-1]], dtype=x.dtype, device=x.device)[..., ::2]
    strided.copy_(x)
    return [x.contiguous(), turned, inner, strided]


def misaligned(x: Tensor) -> Tensor:
    """x, contiguous but one element past every alignment: no kernel can read it in accesses of several elements."""
    room = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)
    return room[1:].view(x.shape).copy_(x)


def exactly(call: Callable[[], Tensor]) -> Tensor:
    """The result of a kernel, after checking that the readable version gives the same bits."""
    found = call()
    with _lib.naive():
        assert torch.equal(call(), found)
    return found
