// CPU kernel of consensus.h, split by rows.
#include "consensus.h"

#include "parallel.h"

namespace vda {
namespace {

constexpr int64_t kPixelsPerThread = 1 << 15;

VDA_CLONES void consensus_rows(const ConsensusParams& p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / p.height;
        const int y = int(row % p.height);
        for (int x = 0; x < p.width; ++x) consensus_pixel(p, b, y, x);
    }
}

}  // namespace

int consensus_cpu(const ConsensusParams& p, int threads) {
    if (p.width == 0) return kOk;
    parallel_for(p.batch * p.height, ceil_div<int64_t>(kPixelsPerThread, p.width), threads,
                 [&](int64_t begin, int64_t end) { consensus_rows(p, begin, end); });
    return kOk;
}

}  // namespace vda
