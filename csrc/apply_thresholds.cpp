// CPU kernel of apply_thresholds.h, split by rows.
#include "apply_thresholds.h"

#include "parallel.h"
#define VDA_KERNELS "apply_thresholds.simd.h"
#include "multiversion.h"

namespace vda {

int apply_thresholds_cpu(const ApplyThresholdsParams& p, int threads) {
    constexpr int64_t kPixelsPerThread = 1 << 14;
    if (p.width == 0) return kOk;
    return for_float(p.confidence.dtype, [&](auto type) {
        const auto rows = VDA_WIDEST(apply_rows<decltype(type)>);
        parallel_for(p.batch * p.height, ceil_div<int64_t>(kPixelsPerThread, p.width), threads,
                     [&](int64_t begin, int64_t end) { rows(p, begin, end); });
        return kOk;
    });
}

}  // namespace vda
