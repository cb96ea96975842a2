// Forward correlation on the CPU: packs one sample after another, then shares its rows out.
#include "correlation.h"

#include "parallel.h"

namespace vda {
namespace {

// Packed operands of one sample: f1 as [H][W / lanes][C][lanes], f2 as [H][C][margin + W + margin], zero
// padded.
struct PackedCorrelation {
    int64_t f2_width, f1_row, f2_row, margin;
    explicit PackedCorrelation(const CorrelationParams& p) : margin(int64_t(p.radius) * p.stride) {
        const int64_t width = ceil_div(p.width, kMaxLanes) * kMaxLanes;
        f2_width = width + 2 * margin;
        f1_row = width * p.channels;
        f2_row = f2_width * p.channels;
    }
};

}  // namespace
}  // namespace vda

#define VDA_KERNELS "correlation.simd.h"
#include "multiversion.h"

namespace vda {
namespace {

template <typename T>
int forward(const CorrelationParams& p, int threads) {
    constexpr int64_t kWorkPerThread = 1 << 20;  // multiply-adds
    const PackedCorrelation size(p);
    const auto pack = VDA_WIDEST(pack_rows<T>);
    const auto groups = VDA_WIDEST(forward_groups<T>);
    const int64_t row_work = int64_t(p.width) * p.channels, d = displacements(p), rows = baseline::kRows;
    const int64_t n =
        int64_t(std::min(p.stride, p.height)) * ceil_div<int64_t>(ceil_div(p.height, p.stride), rows);
    for (int64_t b = 0; b < p.batch; ++b) {
        parallel_for(p.height, ceil_div(kWorkPerThread / 16, row_work), threads,
                     [&](int64_t begin, int64_t end) { pack(p, size, b, begin, end); });
        parallel_for(n, ceil_div(kWorkPerThread, rows * row_work * d * d), threads,
                     [&](int64_t begin, int64_t end) { groups(p, size, b, begin, end); });
    }
    return kOk;
}

}  // namespace

int64_t correlation_workspace(const CorrelationParams& p, int) {
    const PackedCorrelation size(p);
    return p.height * (size.f1_row + size.f2_row) * (p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float));
}

int correlation_cpu(const CorrelationParams& p, int threads) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    return for_float_or_double(p.dtype, [&](auto type) { return forward<decltype(type)>(p, threads); });
}

}  // namespace vda
