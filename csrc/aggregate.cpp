// CPU kernel of aggregate.h, split by rows.
#include "aggregate.h"

#include "parallel.h"
#define VDA_KERNELS "aggregate.simd.h"
#include "multiversion.h"

namespace vda {

int aggregate_cpu(const AggregateParams& p, int threads) {
    constexpr int64_t kPixelsPerThread = 1 << 11;
    if (p.classes == 0 || p.near.width == 0) return kOk;
    return for_float(p.dtype, [&](auto type) {
        const auto rows = VDA_WIDEST(aggregate_rows<decltype(type)>);
        parallel_for(p.batch * p.near.height, ceil_div<int64_t>(kPixelsPerThread, p.near.width), threads,
                     [&](int64_t begin, int64_t end) { rows(p, begin, end); });
        return kOk;
    });
}

}  // namespace vda
