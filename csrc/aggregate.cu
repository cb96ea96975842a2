// CUDA kernel of aggregate.h: one thread per pixel. Nothing but the result is written: K (1 + J) reads and K
// writes per pixel, plus the flow and the colours; any number of neighbours costs no storage.
#include "aggregate.h"
#include "common.cuh"

namespace vda {
namespace {

template <typename T>
__global__ void aggregate_kernel(AggregateParams p, float limit) {
    for_each_pixel(p.batch, p.near.height, p.near.width,
                   [&](int64_t b, int y, int x) { aggregate_pixel<T>(p, limit, b, y, x); });
}

}  // namespace

int aggregate_cuda(const AggregateParams& p, void* stream) {
    if (p.batch == 0 || p.classes == 0 || p.near.height == 0 || p.near.width == 0) return kOk;
    return for_float(p.dtype, [&](auto type) {
        return launch(aggregate_kernel<decltype(type)>, pixel_grid(p.batch, p.near.height, p.near.width),
                      pixel_block(), 0, stream, p, not_below<float>(p.near.limit));
    });
}

}  // namespace vda
