"""What every benchmark does: check that a row computes what ours computes, then time it.

A row is a name and a function that takes the inputs and returns the call to be timed. Building the call may take its
time (layouts of another library, compilation, a forward pass before a backward one): none of that is measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import pytest
import torch
from torch import Tensor

from vda.ops import _lib

from . import memory, timing
from .ceilings import Ceilings
from .table import AGREES, Results, Row
from .work import NO_WORK, Work

Call = Callable[[], Any]
Prepare = Callable[..., Call]
Rows = Mapping[str, Prepare]

SLOW = 0.25  # seconds
MAX_ROUNDS = 200
FEW = 3  # elements that may differ where a share may: a share of a small image is less than a pixel
ONLY_ON = {"naive": "cuda", "mmcv": "cuda", "cv2.remap": "cpu"}  # rows that exist on one kind of device


class Unavailable(Exception):
    """A row cannot run here; the sentence says why."""


@dataclass(frozen=True)
class Beside:
    """What a row runs beside, e.g. a network: timed before every round, so that a load that comes and goes slows both.

    run: one call, of so many frames. row_frames: those of a call of the row.
    """

    name: str
    run: Call
    frames: int
    row_frames: int


# ---- kinds of rows ----


def call(function: Callable[..., Any], **options: Any) -> Prepare:
    """The function as it is."""
    return lambda *inputs: functools.partial(function, *inputs, **options)


def naive(prepare: Prepare) -> Prepare:
    """The readable CUDA kernels that are kept beside the optimised ones."""

    def prepared(*inputs: Tensor) -> Call:
        inner = prepare(*inputs)

        def run() -> Any:
            with _lib.naive():
                return inner()

        return run

    return prepared


def compiled(function: Callable[..., Any], *, wrap: Prepare = call, **options: Any) -> Prepare:
    """torch.compile of the function, whole; wrap, e.g. `backward`, makes the call from the compiled function."""

    def prepare(*inputs: Tensor) -> Call:
        import torch._functorch.config

        torch._dynamo.reset()
        torch._functorch.config.donated_buffer = False  # a backward pass is run more than once
        inner = torch.compile(lambda *x: function(*x, **options), dynamic=False, fullgraph=True)
        run = wrap(inner)(*inputs)
        try:
            run()
        except Exception as error:  # whatever a compiler may raise
            reason = str(error).strip().partition("\n")[0]
            raise Unavailable(f"torch.compile fails ({type(error).__name__}: {reason[:90]})") from error
        return run

    return prepare


def backward(function: Callable[..., Tensor], **options: Any) -> Prepare:
    """The gradients of all inputs but the last, which is the gradient of the result."""

    def prepare(*inputs: Tensor) -> Call:
        *given, grad = inputs
        leaves = [x.detach().requires_grad_() for x in given]
        out = function(*leaves, **options)
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return prepare


# ---- agreement ----


def disagreement(found: Any, wanted: Any, *, atol: float, share: float) -> str:
    """ "" if found is wanted, else one sentence.

    Integers have to be equal, numbers within atol, on all but a share of the elements: a pixel may fall to the other
    side of a decision (nearest neighbour, occlusion) for the last bit of its position.
    """
    if not isinstance(found, Tensor):
        parts = [disagreement(f, w, atol=atol, share=share) for f, w in zip(found, wanted, strict=True)]
        return next(filter(None, parts), "")
    if found.shape != wanted.shape:
        return f"its result is {list(found.shape)}, ours {list(wanted.shape)}"
    exact = not wanted.is_floating_point()
    wrong = found != wanted if exact else ~((found.double() - wanted.double()).abs() <= atol)
    count = int(wrong.sum())
    if count <= share * wrong.numel() + (FEW if share else 0):
        return ""
    return f"its result differs from ours on {100 * count / wrong.numel():.3g} % of the elements"


# ---- timing ----


class Bench:
    """The fixture `bench`: one row of one case."""

    def __init__(self, row: str, benchmark: Any, config: pytest.Config, ceilings: Ceilings, results: Results) -> None:
        self.row = row
        self.benchmark = benchmark
        self.device = ceilings.device
        self.list_only: bool = config.getoption("list")
        self.check_only: bool = config.getoption("check")
        self.full: bool = config.getoption("full")
        self._max_time = float(config.getoption("benchmark_max_time"))
        self._min_rounds: int = config.getoption("benchmark_min_rounds")
        self._ceilings, self._results = ceilings, results

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, in features or pixels, unless only agreement is checked: then something small."""
        return (height, width) if not self.check_only else (24, 64)

    @property
    def frame(self) -> tuple[int, int]:
        """The paper's 1024 x 2048 on a GPU and with --full, else half of that per side."""
        return self.size(1024, 2048) if self.device.type == "cuda" or self.full else self.size(512, 1024)

    def case(
        self, op: str, shape: str, work: Work = NO_WORK, kind: str = "float32", *, beside: Beside | None = None
    ) -> None:
        """Say what is measured; comes first, because --list ends here.

        beside: what the row's time is a share of, in place of a ceiling; then `work` is not needed.
        """
        self._record = Row(op, shape, kind, self.row, work.flop / 1e9, work.nbytes / 1e6, work.gemm)
        self._beside = beside
        if beside is not None:
            self._record.frames, self._record.beside = beside.row_frames, beside.name
        self._results.rows.append(self._record)
        self.benchmark.group = f"{op}, {shape}, {kind}, {self.device.type}"
        self.benchmark.extra_info.update(gflop=self._record.gflop, mbyte=self._record.mbyte)
        if self.list_only:
            pytest.skip("--list")

    def time(self, rows: Rows, *inputs: Tensor, atol: float = 1e-4, share: float = 0.0) -> None:
        """Check this row against the first, which is ours where there is one, then time it with pytest-benchmark.

        What a call has to do before every round, untimed, is its method `before`, where it has one.
        """
        inputs = tuple(x.to(self.device) for x in inputs)
        first_row = next(iter(rows))
        try:
            ours = rows[first_row](*inputs)
            call = rows[self.row](*inputs)
            found, first = timing.once(call, self.device)
        except Unavailable as reason:
            self._record.note = str(reason)
            pytest.skip(str(reason))
        wrong = "" if self.row == first_row else disagreement(found, ours(), atol=atol, share=share)
        if wrong:
            self._record.note = wrong
            pytest.fail(f"{self._record.op}, {self.row}: {wrong}", pytrace=False)
        del found
        if self.check_only:
            self._record.note = AGREES
            self.benchmark.pedantic(call)
        else:
            if self._beside is None:
                self._ceilings.sample()
            self._measure(call, first)

    def grows(self, once: Call, twice: Call) -> None:
        """Measure how much more memory twice the work takes at most."""
        if not self.check_only:
            self._record.growth = memory.growth(once, twice)

    def _measure(self, call: Call, first: float) -> None:
        slow = first > SLOW or self._beside is not None  # then the first call has warmed up enough
        estimate = first if slow else min(timing.once(call, self.device)[1] for _ in range(3))
        if self._beside is not None:
            estimate += timing.once(self._beside.run, self.device)[1]
        least = self._min_rounds if self._min_rounds * estimate < 10 * self._max_time else min(3, self._min_rounds)
        rounds = max(least, min(MAX_ROUNDS, int(self._max_time / estimate)))
        setup, other = timing.cold_l2(self.device) if self.device.type == "cuda" else None, list[float]()
        if self._beside is not None:
            setup = self._alternate(call, self._beside, other)
        self.benchmark.pedantic(call, setup=setup, rounds=rounds, warmup_rounds=0 if slow else 1)
        if self.benchmark.stats is None:  # --benchmark-disable
            return
        times = self.benchmark.stats.stats.data
        record = self._record
        record.median, record.best, record.rounds = median(times), min(times), len(times)
        low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        record.spread = (high - low) / record.median
        if self._beside is not None:
            record.beside_frame = median(other) / self._beside.frames
            ratio = median(a / b for a, b in zip(times, other, strict=True))
            record.share = ratio * self._beside.frames / self._beside.row_frames

    def _alternate(self, call: Call, beside: Beside, times: list[float]) -> Callable[[], None]:
        """What comes before a round of `call`: `beside`, whose time is added to `times`."""

        def before() -> None:
            times.append(timing.once(beside.run, self.device)[1])
            if hasattr(call, "before"):
                call.before()

        return before
