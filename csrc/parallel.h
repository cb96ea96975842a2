// Threads for the CPU kernels: those of the OpenMP runtime that the process has loaded already (torch's), so
// that its idle, spinning workers do our work instead of competing with it; where there is none, and in a
// forked child, whose parent's workers are gone, threads that are started per call and joined before it
// returns.
#pragma once

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace vda {

namespace parallel {

// libgomp's entry point, which LLVM's and Intel's runtimes export too: runs work(data) on every thread of a
// team of at most `threads`, the caller among them.
using Team = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

inline std::atomic<bool> forked{false};

inline Team team() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
    if (registered != 0 || forked) return nullptr;
    static std::atomic<Team> found{nullptr};
    if (found == nullptr) found = reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

template <typename Work>
void on_threads(const Work& work, int threads) {
    if (const Team run = team()) {
        run([](void* data) { (*static_cast<const Work*>(data))(); }, const_cast<Work*>(&work),
            unsigned(threads), 0);
        return;
    }
    std::vector<std::thread> workers;
    workers.reserve(threads - 1);
    try {
        while (int(workers.size()) < threads - 1) workers.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: the others do the rest
    }
    work();
    for (std::thread& worker : workers) worker.join();
}

}  // namespace parallel

// Calls body(begin, end) on disjoint ranges that cover [0, n), on at most `threads` threads, each taking the
// next range when it is done with one. No range is shorter than `grain` (choose it so that a range is worth
// some 10 us), and they depend on n, grain and threads only. body must not throw.
template <typename Body>
void parallel_for(int64_t n, int64_t grain, int threads, const Body& body) {
    if (n <= 0) return;
    constexpr int kRangesPerThread = 8;  // so that a thread that the system interrupts holds up little
    const int64_t most = std::max<int64_t>(1, n / std::max<int64_t>(grain, 1));
    const int64_t ranges = threads > 1 ? std::min<int64_t>(most, int64_t(threads) * kRangesPerThread) : 1;
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t i = next++; i < ranges; i = next++) body(n * i / ranges, n * (i + 1) / ranges);
    };
    if (ranges == 1) return work();
    parallel::on_threads(work, int(std::min<int64_t>(threads, ranges)));
}

}  // namespace vda
