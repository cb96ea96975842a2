"""Random calls of every op: shapes, element types, layouts, options and hostile values, against the references.

Every example runs on the CPU kernels, widest and narrowest, and on the CUDA kernels through the shim.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType

import pytest
from fuzz_cases import FUZZ, Draw
from fuzz_segmentation import FUZZ_SEGMENTATION
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vda.ops import OPS, _lib

CASES = FUZZ | FUZZ_SEGMENTATION


@contextlib.contextmanager
def kernels(which: str, shim: ModuleType) -> Iterator[None]:
    name, value = ("VDA_SIMD", which) if which in ("", "baseline") else ("VDA_SHIM_SEED", "0")
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        with _lib.routed_to(shim) if which == "shim" else contextlib.nullcontext():
            yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def fuzz(name: str, shim: ModuleType, examples: int) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        case = CASES[name](Draw(data))
        for which in ("", "baseline") if case.cpu_only else ("", "baseline", "shim"):
            with kernels(which, shim):
                got = case.run()
            case.check(got if isinstance(got, tuple) else (got,))

    run()


def test_every_op_is_fuzzed() -> None:
    assert {name.removesuffix("_gradients") for name in CASES} == set(OPS)


@pytest.mark.parametrize("name", CASES)
def test_fuzz(name: str, shim_module: ModuleType) -> None:
    fuzz(name, shim_module, examples=60)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CASES)
def test_fuzz_at_length(name: str, shim_module: ModuleType) -> None:
    fuzz(name, shim_module, examples=3000)
