// Both gradients of correlation on the CPU, one sample after another, shared out by rows.
#include <algorithm>

#include "correlation.h"
#include "parallel.h"

namespace vda {
namespace {

constexpr int kPixels = 6;  // pixels (of one parity) that share a load of features
constexpr int kMargin = kPixels - 1;

// Sizes of the packed arrays, see correlation_backward.simd.h.
struct Band {
    int64_t channels;  // C rounded up
    int64_t width;     // margin, D, margin
    explicit Band(const CorrelationParams& p)
        : channels(ceil_div(p.channels, kMaxLanes) * kMaxLanes), width(displacements(p) + 2 * kMargin) {}
    int64_t features(const CorrelationParams& p) const { return int64_t(p.height) * p.width * channels; }
    int64_t weights(const CorrelationParams& p) const {
        return ceil_div(displacements(p) * p.width * width, int64_t(kMaxLanes)) * kMaxLanes;
    }
    int64_t scratch(const CorrelationParams& p) const {
        return weights(p) + p.width * channels;
    }  // of one thread
};

}  // namespace
}  // namespace vda

#define VDA_KERNELS "correlation_backward.simd.h"
#include "multiversion.h"

namespace vda {
namespace {

template <typename T>
int backward(const CorrelationParams& p, int threads) {
    constexpr int64_t kWorkPerThread = 1 << 20;  // multiply-adds
    using A = Acc<T>;
    const Band band(p);
    const auto pack = VDA_WIDEST(pack_features<T>);
    const auto rows = VDA_WIDEST(backward_rows<T>);
    A* scratch = static_cast<A*>(p.workspace) + band.features(p);
    const int64_t row_work = int64_t(p.width) * p.channels, d = displacements(p);
    // A slot owns one scratch block and takes one row after another.
    const int64_t slots =
        std::max<int64_t>(1, std::min<int64_t>(threads, p.height * row_work * d * d / kWorkPerThread));
    for (int64_t b = 0; b < p.batch; ++b) {
        for (const bool second : {false, true}) {
            if ((second ? p.grad_f2 : p.grad_f1) == nullptr) continue;
            parallel_for(
                p.height, ceil_div(kWorkPerThread / 16, row_work), threads,
                [&](int64_t begin, int64_t end) { pack(p, second ? p.f1 : p.f2, b, band, begin, end); });
            std::atomic<int64_t> next{0};
            parallel_for(slots, 1, int(slots), [&](int64_t slot, int64_t) {
                for (int64_t y = next++; y < p.height; y = next++) {
                    rows(p, band, b, second, scratch + slot * band.scratch(p), y, y + 1);
                }
            });
        }
    }
    return kOk;
}

}  // namespace

int64_t correlation_backward_workspace(const CorrelationParams& p, int threads) {
    const Band band(p);
    const int64_t elements = band.features(p) + threads * band.scratch(p);
    return elements * (p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float));
}

int correlation_backward_cpu(const CorrelationParams& p, int threads) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    return for_float_or_double(p.dtype, [&](auto type) { return backward<decltype(type)>(p, threads); });
}

}  // namespace vda
