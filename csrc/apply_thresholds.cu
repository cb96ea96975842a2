// CUDA kernels of apply_thresholds.h. 4 bytes per pixel with 16-bit confidences.
#include "apply_thresholds.h"
#include "bars.cuh"
#include "pack.cuh"

namespace vda {
namespace {

// The readable version: one thread per pixel.
__global__ void apply_thresholds_kernel(ApplyThresholdsParams p) {
    for_each_pixel(p.batch, p.height, p.width,
                   [&](int64_t b, int y, int x) { apply_thresholds_pixel(p, b, y, x); });
}

// The fast version: rows of `length` contiguous pixels, 16 per thread, all its accesses of 16 bytes; 48 bytes
// in flight per thread with 16-bit confidences. Bars come from shared memory: 19 of them lie in 19 banks.
constexpr int kPixels = 16;
constexpr int kThreads = kLabels;

template <typename T>
__global__ void __launch_bounds__(kThreads) apply_packs_kernel(ApplyThresholdsParams p, int64_t length) {
    float* bars = dynamic_shared<float>();
    const int64_t b = blockIdx.y, i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kPixels;
    const uint8_t* label = sample_of<uint8_t>(p.label.data, b, p.label.stride[0]) + i;
    const T* confidence = sample_of<T>(p.confidence.data, b, p.confidence.stride[0]) + i;
    uint8_t* out = sample_of<uint8_t>(p.out, b, length) + i;
    load_bar(p.theta.row(b), p.classes, int(threadIdx.x), bars);
    __syncthreads();
    if (i + kPixels <= length) {
        Pack<uint8_t, kPixels> own = load_pack<kPixels>(label);
        const Pack<T, kPixels> passes = load_pack<kPixels>(confidence);
#pragma unroll
        for (int n = 0; n < kPixels; ++n) {
            own.at[n] = kept(own.at[n], load(&passes.at[n]), bars, p.inclusive, p.ignore);
        }
        store_pack(out, own);
    } else {
        for (int n = 0; n < length - i; ++n) {
            out[n] = kept(label[n], load(confidence + n), bars, p.inclusive, p.ignore);
        }
    }
}

// The arrays as rows of contiguous pixels, as long as they come: all samples in one where they share
// thresholds.
struct Rows {
    int64_t count, length;
};
Rows rows_of(const ApplyThresholdsParams& p) {
    const int64_t plane = int64_t(p.height) * p.width;
    const int64_t *label = p.label.stride, *confidence = p.confidence.stride;
    const auto dense = [&](const int64_t* stride) {
        return (stride[2] == 1 || p.width == 1) && (stride[1] == p.width || p.height == 1);
    };
    if (!dense(label) || !dense(confidence)) return {0, 0};
    const bool together =
        p.batch == 1 || (label[0] == plane && confidence[0] == plane && p.theta.stride == 0);
    return together ? Rows{1, p.batch * plane} : Rows{p.batch, plane};
}

template <typename T>
bool aligned(const ApplyThresholdsParams& p, const Rows& rows) {
    if (rows.count == 1) {  // strides are not used
        return packs(p.label.data, 1, kPixels, 1, {}) && packs(p.out, 1, kPixels, 1, {}) &&
               packs(p.confidence.data, sizeof(T), kPixels, 1, {});
    }
    return packs(p.label.data, 1, kPixels, 1, {p.label.stride[0]}) &&
           packs(p.confidence.data, sizeof(T), kPixels, 1, {p.confidence.stride[0]}) &&
           packs(p.out, 1, kPixels, 1, {rows.length});
}

}  // namespace

int apply_thresholds_naive_cuda(const ApplyThresholdsParams& p, void* stream) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    return launch(apply_thresholds_kernel, pixel_grid(p.batch, p.height, p.width), pixel_block(), 0, stream,
                  p);
}

int apply_thresholds_cuda(const ApplyThresholdsParams& p, void* stream) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    const Rows rows = rows_of(p);
    return for_float(p.confidence.dtype, [&](auto type) {
        using T = decltype(type);
        const int64_t blocks = ceil_div<int64_t>(rows.length, kThreads * kPixels);
        if (rows.count == 0 || rows.count > kMaxGridYZ || blocks > INT32_MAX || !aligned<T>(p, rows)) {
            return apply_thresholds_naive_cuda(p, stream);
        }
        return launch(apply_packs_kernel<T>, dim3(unsigned(blocks), unsigned(rows.count), 1),
                      dim3(kThreads, 1, 1), kLabels * sizeof(float), stream, p, rows.length);
    });
}

}  // namespace vda
