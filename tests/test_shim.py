"""The CUDA-on-CPU shim itself, and all kernels under AddressSanitizer and UBSan."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shim import build  # isort: skip

HERE = Path(__file__).resolve().parent
SEEDS = ["0", "1", "2", "77"]


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.build([build.HERE / "selftest.cu"])))
    library.error_text.restype = ctypes.c_char_p
    return library


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VDA_SHIM_SEED", request.param)
    return request.param


def at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize(("n", "threads"), [(1, 32), (1000, 256), (4097, 1024), (96, 96)])
def test_block_reduction(kernels: ctypes.CDLL, seed: str, n: int, threads: int) -> None:
    values = np.random.default_rng(n).integers(-1000, 1000, n).astype(np.float64)  # sums are exact in any order
    total = np.zeros(1)
    assert kernels.run_block_sum(at(values), n, threads, at(total)) == 0
    assert total[0] == values.sum()


@pytest.mark.parametrize("threads", [1, 7, 32, 100, 1024])
def test_barriers_order_shared_memory(kernels: ctypes.CDLL, seed: str, threads: int) -> None:
    data = np.arange(3 * threads, dtype=np.int32)
    wanted = data.reshape(3, threads)[:, ::-1].ravel()
    assert kernels.run_reverse(at(data), 3, threads) == 0
    assert np.array_equal(data, wanted)


@pytest.mark.parametrize("threads", [32, 64, 40])  # 40: the last warp is not full
def test_warp_collectives(kernels: ctypes.CDLL, seed: str, threads: int) -> None:
    values = np.random.default_rng(threads).integers(0, 6, threads).astype(np.int32)
    values[3] = 7
    out = np.zeros((7, threads), np.int32)
    assert kernels.run_votes(at(values), at(out), threads) == 0
    for i in range(threads):
        warp = values[i // 32 * 32 : i // 32 * 32 + 32]
        half = warp[:16] if i % 32 < 16 else warp[16:]
        bits = sum(1 << lane for lane, value in enumerate(warp) if value & 1)
        same = sum(1 << lane for lane, value in enumerate(warp) if value == values[i])
        assert out[0, i] == values[i // 8 * 8 : i + 1].sum()
        assert np.uint32(out[1, i]) == bits
        assert np.uint32(out[2, i]) == same
        assert out[3, i] == (values > 2).sum()
        assert out[4, i] == warp[5]
        assert out[5, i] == warp.max()
        assert out[6, i] == int((half == 7).any()) + 2 * int((half < 7).all())


def test_seed_shuffles_blocks_and_threads(kernels: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    for seed in ("0", "5", "5", "6"):
        monkeypatch.setenv("VDA_SHIM_SEED", seed)
        counter, out = np.zeros(1, np.uint32), np.zeros(4 * 33, np.uint32)
        assert kernels.run_tickets(at(counter), at(out), 4, 33) == 0
        assert np.array_equal(np.sort(out), np.arange(4 * 33))
        orders.append(out)
    assert np.array_equal(orders[0], np.arange(4 * 33))
    assert np.array_equal(orders[1], orders[2])
    assert not np.array_equal(orders[1], orders[3])
    first_of_block = orders[1].reshape(4, 33).min(1)
    assert not np.array_equal(first_of_block, np.sort(first_of_block))  # blocks too


def test_atomics(kernels: ctypes.CDLL, seed: str) -> None:
    values = np.random.default_rng(1).integers(-99, 99, 1000).astype(np.int32)
    out = np.zeros(5, np.int32)
    assert kernels.run_atomics(at(values), 1000, at(out)) == 0
    bits = np.bitwise_or.reduce(np.uint32(1) << (values & 31).astype(np.uint32))
    assert list(out) == [values.sum(), values.max(), values.min(), bits.astype(np.int32), values.sum()]


def test_dynamic_shared_memory_is_not_zeroed(kernels: ctypes.CDLL) -> None:
    out = np.zeros(16, np.int32)
    assert kernels.run_fresh_shared(at(out)) == 0
    assert (out == 0xCD).all()


@pytest.mark.parametrize(
    ("which", "code", "text"),
    [
        (0, 719, b"__syncthreads was not reached by every thread"),
        (1, 719, b"lanes that have returned|lanes that never come"),
        (2, 719, b"whose mask leaves it out"),
        (3, 9, b""),  # 2048 threads in a block
    ],
)
def test_misuse_is_an_error(kernels: ctypes.CDLL, seed: str, which: int, code: int, text: bytes) -> None:
    assert kernels.run_misuse(which, None) == code
    if text:
        assert any(part in kernels.error_text() for part in text.split(b"|"))
    data = np.arange(8, dtype=np.int32)
    assert kernels.run_reverse(at(data), 1, 8) == 0  # the next launch is sound again
    assert list(data) == [7, 6, 5, 4, 3, 2, 1, 0]


# ---- sanitizers ----


def run_checked(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script with the sanitizers' runtimes loaded first."""

    def runtime(name: str) -> str:
        return subprocess.run(
            [build.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()

    environment = os.environ | {
        # libstdc++ too: otherwise AddressSanitizer finds no __cxa_throw to intercept when a module throws.
        "LD_PRELOAD": " ".join(map(runtime, ("libasan.so", "libubsan.so", "libstdc++.so.6"))),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",  # Python itself leaks at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(build.ROOT),
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "shim" / "selfcheck.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)


def test_all_kernels_under_sanitizers() -> None:
    done = run_checked(str(build.build(sanitize=True)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every op checked" in done.stdout


def test_sanitizers_do_catch_a_fault() -> None:
    """The job above proves nothing unless a wrong size is seen, in a CPU kernel, a CUDA kernel, shared memory."""
    module = str(build.build(sanitize=True))
    selftest = str(build.build([build.HERE / "selftest.cu"], sanitize=True))
    for arguments in ((module, "cpu"), (module, "cuda"), (selftest, "shared")):
        done = run_checked(*arguments)
        assert done.returncode != 0
        assert "ERROR: AddressSanitizer" in done.stderr or "runtime error" in done.stderr, done.stderr
