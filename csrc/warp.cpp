// CPU kernels of warp.h. Work is split by rows (by planes for the image gradient, whose scatter then stays
// inside one thread), so the result is the same for every number of threads.
#include "warp.h"

#include "parallel.h"
#define VDA_KERNELS "warp.simd.h"
#include "multiversion.h"

namespace vda {
namespace {

constexpr int64_t kPixelsPerThread = 1 << 13;

template <typename Params>
int for_rows(const Params& p, int threads, void (*rows)(const Params&, int64_t, int64_t)) {
    const int64_t row = int64_t(p.width) * std::max(p.channels, 1);
    if (row == 0) return kOk;
    parallel_for(p.batch * p.height, ceil_div(kPixelsPerThread, row), threads,
                 [&](int64_t begin, int64_t end) { rows(p, begin, end); });
    return kOk;
}

}  // namespace

int warp_cpu(const WarpParams& p, int threads) {
    return for_float_or_double(
        p.dtype, [&](auto type) { return for_rows(p, threads, VDA_WIDEST(forward_rows<decltype(type)>)); });
}

int warp_nearest_cpu(const WarpNearestParams& p, int threads) {
    switch (p.element_size) {
        case 1:
            return for_rows(p, threads, VDA_WIDEST(nearest_rows<uint8_t, float>));
        case 2:
            return for_rows(p, threads, VDA_WIDEST(nearest_rows<uint16_t, float>));
        case 4:
            return for_rows(p, threads, VDA_WIDEST(nearest_rows<uint32_t, float>));
        case 8:
            if (p.double_flow) return for_rows(p, threads, VDA_WIDEST(nearest_rows<uint64_t, double>));
            return for_rows(p, threads, VDA_WIDEST(nearest_rows<uint64_t, float>));
    }
    return kBadDtype;
}

int warp_backward_cpu(const WarpBackwardParams& p, int threads) {
    const int64_t plane = int64_t(p.height) * p.width;
    if (plane == 0) return kOk;
    return for_float_or_double(p.dtype, [&](auto type) {
        using T = decltype(type);
        if (p.grad_image != nullptr) {
            const auto planes = VDA_WIDEST(backward_image_planes<T>);
            parallel_for(p.batch * p.channels, ceil_div(kPixelsPerThread, plane), threads,
                         [&](int64_t begin, int64_t end) { planes(p, begin, end); });
        }
        return p.grad_flow == nullptr ? kOk : for_rows(p, threads, VDA_WIDEST(backward_flow_rows<T>));
    });
}

int warp_occlusion_cpu(const WarpOcclusionParams& p, int threads) {
    return for_float_or_double(
        p.dtype, [&](auto type) { return for_rows(p, threads, VDA_WIDEST(occlusion_rows<decltype(type)>)); });
}

}  // namespace vda
