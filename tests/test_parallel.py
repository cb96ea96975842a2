"""csrc/parallel.h: ranges, threads of the loaded OpenMP runtime or of its own, and life after fork()."""

from __future__ import annotations

import multiprocessing
import subprocess
from pathlib import Path

import pytest
import torch

from vda.ops import correlation

from shim import build  # isort: skip

CHECK = r"""
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>
#include "parallel.h"

// Runs n items and prints: how often each was done at the least and the most, shortest range, number of threads.
// A thread goes on when `wanted` threads have come, or after some seconds: then no thread does all of it.
static void run(int n, int grain, int threads, size_t wanted) {
    std::vector<int> done(n);
    std::set<std::thread::id> seen;
    std::mutex lock;
    std::condition_variable came;
    long shortest = n + 1;
    vda::parallel_for(n, grain, threads, [&](int64_t begin, int64_t end) {
        std::unique_lock<std::mutex> guard(lock);
        seen.insert(std::this_thread::get_id());
        came.notify_all();
        came.wait_for(guard, std::chrono::seconds(10), [&] { return seen.size() >= wanted; });
        if (end - begin < shortest) shortest = end - begin;
        for (int64_t i = begin; i < end; ++i) ++done[i];
    });
    int least = 99, most = 0;
    for (int d : done) least = d < least ? d : least, most = d > most ? d : most;
    std::printf("%d %d %ld %zu\n", least, most, shortest, seen.size());
}

int main(int, char** argv) {
    const int n = std::atoi(argv[1]), grain = std::atoi(argv[2]), threads = std::atoi(argv[3]);
    const size_t wanted = std::atoi(argv[4]);
    std::printf("%d\n", vda::parallel::team() != nullptr);
    run(n, grain, threads, wanted);
    std::fflush(stdout);
    if (fork() == 0) {  // the parent's workers do not exist here
        std::printf("%d\n", vda::parallel::team() != nullptr);
        run(n, grain, threads, wanted);
        std::fflush(stdout);
        _exit(0);
    }
    int status;
    wait(&status);
    return status;
}
"""


@pytest.fixture(scope="module", params=["openmp", "own threads"])
def check(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Path]:
    folder = tmp_path_factory.mktemp("parallel")
    source, program = folder / "check.cpp", folder / "check"
    source.write_text(CHECK)
    openmp = request.param == "openmp"
    library = ["-Wl,--no-as-needed", "-lgomp"] if openmp else []  # loaded, as torch's is, not linked against
    command = [build.compiler(), "-std=c++17", "-O1", f"-I{build.CSRC}", source, "-o", program, "-pthread", "-ldl"]
    subprocess.run([*command, *library], check=True)
    return openmp, program


@pytest.mark.parametrize(
    ("n", "grain", "threads", "wanted"),
    [(1000, 10, 3, 3), (1000, 10, 1, 1), (5, 10, 4, 1), (40, 20, 4, 2), (1, 1, 8, 1), (7, 1, 2, 2)],
)
def test_every_item_once(check: tuple[bool, Path], n: int, grain: int, threads: int, wanted: int) -> None:
    """On as many threads as asked for, with no range shorter than the grain; the same in a forked child."""
    openmp, program = check
    command = [program, str(n), str(grain), str(threads), str(wanted)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert [lines[0], lines[2]] == [str(int(openmp)), "0"]
    for line in (lines[1], lines[3]):
        least, most, shortest, used = map(int, line.split())
        assert (least, most) == (1, 1)
        assert shortest >= min(grain, n)
        assert used == wanted


def _child(queue: multiprocessing.SimpleQueue, f: torch.Tensor) -> None:
    torch.set_num_threads(3)
    queue.put(correlation(f, f, max_displacement=4).numpy())


def test_kernels_run_in_a_forked_child() -> None:
    """A data loader's worker is one; OpenMP's own threads would hang there."""
    f = torch.randn(1, 16, 40, 60)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        wanted = correlation(f, f, max_displacement=4)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=_child, args=(queue, f))
        process.start()
        found = queue.get()
        process.join(60)
        assert process.exitcode == 0
    finally:
        torch.set_num_threads(before)
    assert (found == wanted.numpy()).all()
