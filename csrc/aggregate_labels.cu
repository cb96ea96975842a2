// CUDA kernel of aggregate_labels.h, the readable version: one thread per pixel evaluates the softmax of
// every tap anew, 1 + 4 J of them.
#include "aggregate_labels.h"
#include "common.cuh"

namespace vda {
namespace {

__device__ void count_confidence(const AggregateLabelsParams& p, uint8_t label, half confidence) {
    if (p.histogram == nullptr || label == kNoLabel) return;
    const int bits = confidence.bits > 0x3c00 ? 0x3c00 : confidence.bits;  // weights may lift it above 1
    atomicAdd(reinterpret_cast<unsigned long long*>(p.histogram + int64_t(label) * kHalfBins + bits), 1ull);
}

template <typename T>
__global__ void aggregate_labels_kernel(AggregateLabelsParams p, float limit) {
    for_each_pixel(p.batch, p.near.height, p.near.width, [&](int64_t b, int y, int x) {
        uint8_t label;
        float confidence;
        aggregate_labels_pixel<T>(p, limit, b, y, x, &label, &confidence);
        const int64_t i = (b * p.near.height + y) * p.near.width + x;
        p.label[i] = label;
        p.confidence[i] = to_half(confidence);
        count_confidence(p, label, p.confidence[i]);
    });
}

}  // namespace

int aggregate_labels_naive_cuda(const AggregateLabelsParams& p, void* stream) {
    if (p.batch == 0 || p.near.height == 0 || p.near.width == 0) return kOk;
    return for_float(p.dtype, [&](auto type) {
        return launch(aggregate_labels_kernel<decltype(type)>,
                      pixel_grid(p.batch, p.near.height, p.near.width), pixel_block(), 0, stream, p,
                      not_below<float>(p.near.limit));
    });
}

int aggregate_labels_cuda(const AggregateLabelsParams& p, void* stream) {
    return aggregate_labels_naive_cuda(p, stream);
}

}  // namespace vda
