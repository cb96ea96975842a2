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


# ---- tensor cores and asynchronous copies ----


def test_matrix_loads(kernels: ctypes.CDLL, seed: str) -> None:
    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, 1024).astype(np.uint8)
    rows = (16 * rng.permutation(64)[:32]).astype(np.int32)
    out = np.zeros((2, 32, 4), np.uint32)
    assert kernels.run_matrices(at(data), data.size, at(rows), at(out)) == 0
    for i in range(4):
        matrix = np.stack([data[row : row + 16] for row in rows[8 * i : 8 * i + 8]]).view(np.uint16)
        assert np.array_equal(out[0, :, i].copy().view(np.uint16).reshape(8, 8), matrix)
        assert np.array_equal(out[1, :, i].copy().view(np.uint16).reshape(8, 8), matrix.T)


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper halves of floats that bfloat16 holds exactly."""
    bits = x.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


@pytest.mark.parametrize("kind", ["tf32", "float16", "bfloat16"])
def test_matrix_product(kernels: ctypes.CDLL, seed: str, kind: str) -> None:
    rng = np.random.default_rng(4)
    k = 8 if kind == "tf32" else 16
    a, b = (rng.integers(-8, 9, (n, k)).astype(np.float32) for n in (16, 8))
    d = rng.integers(-9, 9, (2, 16, 8)).astype(np.float32)
    wanted = d + a @ b.T  # small integers: exact
    encode = {"tf32": np.float32, "float16": np.float16, "bfloat16": _bfloat16}[kind]
    a, b = (encode(x) if kind == "bfloat16" else x.astype(encode) for x in (a, b))
    which = ["tf32", "float16", "bfloat16"].index(kind)
    assert kernels.run_product(which, at(np.ascontiguousarray(a)), at(np.ascontiguousarray(b)), at(d)) == 0
    assert np.array_equal(d, wanted)


@pytest.mark.parametrize("newest", [0, 1, 2])
@pytest.mark.parametrize("threads", [32, 40])
def test_copies_arrive_with_their_wait(kernels: ctypes.CDLL, seed: str, threads: int, newest: int) -> None:
    """What is read before the wait is NaN, so that a kernel that forgets one gives wrong results."""
    memory = np.arange(4 * threads + 4, dtype=np.float32)
    source = memory[(-memory.ctypes.data // 4) % 4 :][: 4 * threads]  # aligned to 16 bytes
    exists = (np.arange(threads) % 3 != 0).astype(np.int32)
    out = np.zeros(5 * threads, np.float32)
    assert kernels.run_copies(at(source), at(exists), newest, at(out), threads) == 0
    vectors = np.roll(np.where(exists[:, None], source.reshape(threads, 4), 0), -1, 0)
    singles = np.roll(np.where(exists, source[:threads], 0), -1)
    assert np.array_equal(
        out[: 4 * threads].reshape(threads, 4),
        np.full_like(vectors, np.nan) if newest == 2 else vectors,
        equal_nan=True,
    )
    assert np.array_equal(out[4 * threads :], singles if newest == 0 else np.full_like(singles, np.nan), equal_nan=True)


def test_rounding(kernels: ctypes.CDLL) -> None:
    values = np.array(
        [1 + 2**-11, 1 + 2**-10, 1 + 3 * 2**-11, -1 - 2**-11, 3.4e38, np.inf, np.nan, 1e-40, 0], np.float32
    )
    out = np.zeros((values.size, 4), np.uint32)
    assert kernels.run_rounded(at(values), at(out), values.size) == 0
    tf32 = out[:, 0].copy().view(np.float32)
    wanted = [1 + 2**-10, 1 + 2**-10, 1 + 2**-9, -1 - 2**-10]  # ties away from zero
    assert list(tf32[:4]) == wanted
    assert not (out[:6, 0] & 0x1FFF).any()
    assert np.isinf(tf32[5])
    assert np.isnan(tf32[6])
    with np.errstate(over="ignore"):
        halves = np.stack([values, -values], 1).astype(np.float16)
    finite = ~np.isnan(values)
    assert np.array_equal(out[finite, 1].copy().view(np.float16).reshape(-1, 2), halves[finite])
    assert np.isnan(out[6:7, 1].copy().view(np.float16)).all()
    assert out[0, 2] == 0xBF803F80  # 1 + 2**-11 and its negative in bfloat16


@pytest.mark.parametrize(
    ("which", "code", "text"),
    [
        (0, 719, b"__syncthreads was not reached by every thread"),
        (1, 719, b"lanes that have returned|lanes that never come"),
        (2, 719, b"whose mask leaves it out"),
        (3, 9, b""),  # 2048 threads in a block
        (4, 719, b"before its copies"),
        (5, 719, b"before it closed its group"),
        (6, 719, b"not aligned"),
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
