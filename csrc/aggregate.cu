// CUDA kernel of aggregate.h: one thread per pixel, sums of kClasses classes in registers. Nothing but the
// result is written: K (1 + J) reads and K writes per pixel, plus the flow and the colours. With more than
// kClasses classes the occlusion test is repeated for each block of classes; any number of neighbours costs
// no storage.
#include "aggregate.h"
#include "common.cuh"

namespace vda {
namespace {

constexpr int kClasses = 20;

template <typename T>
__global__ void aggregate_kernel(AggregateParams p, float limit) {
    const int64_t plane = int64_t(p.height) * p.width;
    for_each_pixel(p.batch, p.height, p.width, [&](int64_t b, int y, int x) {
        const T* own = static_cast<const T*>(p.probs.data) + b * p.probs.stride[0] + y * p.probs.stride[2] +
                       x * p.probs.stride[3];
        T* out = static_cast<T*>(p.out) + b * p.classes * plane + int64_t(y) * p.width + x;
        for (int k0 = 0; k0 < p.classes; k0 += kClasses) {
            float sum[kClasses];
            for (int k = 0; k < kClasses; ++k) {
                sum[k] = k0 + k < p.classes ? load(own + (k0 + k) * p.probs.stride[1]) : 0.0f;
            }
            int frames = 1;
            for (int j = 0; j < p.neighbours; ++j) {
                const Sighting seen = sighting(p, limit, b, j, y, x);
                if (!seen.visible) continue;
                ++frames;
                const Taps<float> taps =
                    bilinear_taps(seen.at, p.height, p.width, p.neighbour_probs.stride[2],
                                  p.neighbour_probs.stride[3], Padding::zeros);
                const T* other = neighbour<T>(p.neighbour_probs, p.probs_step, b, j);
                for (int k = 0; k < kClasses; ++k) {
                    if (k0 + k < p.classes)
                        sum[k] += sample(other + (k0 + k) * p.neighbour_probs.stride[1], taps);
                }
            }
            for (int k = 0; k < kClasses; ++k) {
                if (k0 + k < p.classes) store(out + (k0 + k) * plane, sum[k] / float(frames));
            }
        }
    });
}

template <typename T>
int run(const AggregateParams& p, void* stream) {
    if (p.batch == 0 || p.classes == 0 || p.height == 0 || p.width == 0) return kOk;
    return launch(aggregate_kernel<T>, pixel_grid(p.batch, p.height, p.width), pixel_block(), 0, stream, p,
                  not_below<float>(p.limit));
}

}  // namespace

int aggregate_cuda(const AggregateParams& p, void* stream) {
    switch (p.dtype) {
        case Dtype::f32:
            return run<float>(p, stream);
        case Dtype::f16:
            return run<half>(p, stream);
        case Dtype::bf16:
            return run<bfloat16>(p, stream);
        case Dtype::f64:
            break;
    }
    return kBadDtype;
}

}  // namespace vda
