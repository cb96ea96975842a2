// Threads for the CPU kernels. They are started per call and joined before it returns: no pool that would not
// survive fork() (data loader workers), no second OpenMP runtime beside torch's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace vda {

// Calls body(begin, end) on disjoint ranges that cover [0, n); at most `threads` of them at a time, none
// shorter than `grain` (choose it so that a range is worth the ~20 us that a thread costs). The ranges depend
// on n, grain and threads only. body must not throw.
template <typename Body>
void parallel_for(int64_t n, int64_t grain, int threads, const Body& body) {
    if (n <= 0) return;
    const int64_t chunks = std::max<int64_t>(1, std::min<int64_t>(threads, n / std::max<int64_t>(grain, 1)));
    auto chunk = [&](int64_t i) { body(n * i / chunks, n * (i + 1) / chunks); };
    std::vector<std::thread> workers;
    workers.reserve(chunks - 1);
    int64_t next = 1;
    try {
        for (; next < chunks; ++next) workers.emplace_back(chunk, next);
    } catch (const std::system_error&) {  // no more threads to be had: this one does the rest
    }
    chunk(0);
    for (; next < chunks; ++next) chunk(next);
    for (std::thread& worker : workers) worker.join();
}

}  // namespace vda
