// CUDA kernels of correlation.h, the readable version: no shared memory, neighbouring threads on neighbouring
// x, so every load of a row is coalesced and the displaced re-reads hit L1. Each thread keeps several sums in
// registers per value it loads. All three are gathers: no atomics, the same result on every run. They serve
// what correlation_launch.cu does not give to the fast kernels, and as the version that those are held
// against.
#include "common.cuh"
#include "correlation.h"

namespace vda {
namespace {

constexpr int kSteps = 7;     // forward: displacements along x per thread (21 = 3 * 7 for FlowNet2)
constexpr int kChannels = 4;  // backward: channels per thread

// "Image" of the pixel loop: (b, dy, group of kSteps dx). Reads per output: 1 + 1/kSteps values per channel.
template <typename T>
__global__ void correlation_kernel(CorrelationParams p) {
    using A = Acc<T>;
    const int d = displacements(p), groups = ceil_div(d, kSteps);
    const int64_t plane = int64_t(p.height) * p.width;
    for_each_pixel(p.batch * d * groups, p.height, p.width, [&](int64_t item, int y, int x) {
        const int k0 = int(item % groups) * kSteps;
        const int row = int(item / groups % d);
        const int64_t b = item / groups / d;
        const int64_t y2 = y + int64_t(row - p.radius) * p.stride;
        const T* f1 =
            static_cast<const T*>(p.f1.data) + b * p.f1.stride[0] + y * p.f1.stride[2] + x * p.f1.stride[3];
        const T* f2 = static_cast<const T*>(p.f2.data) + b * p.f2.stride[0] + y2 * p.f2.stride[2];
        A sum[kSteps] = {};
        if (y2 >= 0 && y2 < p.height) {
            for (int c = 0; c < p.channels; ++c) {
                const A a = load(f1 + c * p.f1.stride[1]);
                for (int i = 0; i < kSteps; ++i) {
                    const int64_t x2 = x + int64_t(k0 + i - p.radius) * p.stride;
                    if (x2 >= 0 && x2 < p.width)
                        sum[i] += a * load(f2 + c * p.f2.stride[1] + x2 * p.f2.stride[3]);
                }
            }
        }
        T* out = static_cast<T*>(p.out) + (b * d + row) * d * plane + int64_t(y) * p.width + x;
        for (int i = 0; i < kSteps; ++i) {
            A value = sum[i] * A(p.scale);
            value = value > A(0) ? value : value * A(p.negative_slope);
            if (k0 + i < d) store(out + (k0 + i) * plane, value);
        }
    });
}

// sign = +1: grad_f1 = scale sum_d grad_out[d](p) f2(p + d).  sign = -1: grad_f2 = scale sum_d grad_out[d](p
// - d) f1(p - d).
template <typename T>
__global__ void correlation_backward_kernel(CorrelationParams p, View features, void* grad, int sign) {
    using A = Acc<T>;
    const int d = displacements(p), groups = ceil_div(p.channels, kChannels);
    const int64_t plane = int64_t(p.height) * p.width;
    for_each_pixel(p.batch * groups, p.height, p.width, [&](int64_t item, int y, int x) {
        const int c0 = int(item % groups) * kChannels;
        const int64_t b = item / groups;
        const T* from =
            static_cast<const T*>(features.data) + b * features.stride[0] + c0 * features.stride[1];
        const T* grad_out = static_cast<const T*>(p.grad_out.data) + b * p.grad_out.stride[0];
        A sum[kChannels] = {};
        for (int k = 0; k < d * d; ++k) {
            const int64_t y2 = y + sign * int64_t(k / d - p.radius) * p.stride;
            const int64_t x2 = x + sign * int64_t(k % d - p.radius) * p.stride;
            if (y2 < 0 || y2 >= p.height || x2 < 0 || x2 >= p.width) continue;
            const A g =
                load(grad_out + k * p.grad_out.stride[1] + (sign > 0 ? y : y2) * p.grad_out.stride[2] +
                     (sign > 0 ? x : x2) * p.grad_out.stride[3]);
            const T* at = from + y2 * features.stride[2] + x2 * features.stride[3];
            for (int i = 0; i < kChannels; ++i) {
                if (c0 + i < p.channels) sum[i] += g * load(at + i * features.stride[1]);
            }
        }
        const int64_t step = p.channels_last ? 1 : plane, pixel = p.channels_last ? p.channels : 1;
        T* to =
            static_cast<T*>(grad) + b * p.channels * plane + (int64_t(y) * p.width + x) * pixel + c0 * step;
        for (int i = 0; i < kChannels; ++i) {
            if (c0 + i < p.channels) store(to + i * step, sum[i] * A(p.scale));
        }
    });
}

template <typename T>
int forward(const CorrelationParams& p, void* stream) {
    const int d = displacements(p);
    return launch(correlation_kernel<T>, pixel_grid(p.batch * d * ceil_div(d, kSteps), p.height, p.width),
                  pixel_block(), 0, stream, p);
}

template <typename T>
int backward(const CorrelationParams& p, void* stream) {
    const dim3 grid = pixel_grid(p.batch * ceil_div(p.channels, kChannels), p.height, p.width);
    int code = kOk;
    if (p.grad_f1 != nullptr) {
        code = launch(correlation_backward_kernel<T>, grid, pixel_block(), 0, stream, p, p.f2, p.grad_f1, 1);
    }
    if (code == kOk && p.grad_f2 != nullptr) {
        code = launch(correlation_backward_kernel<T>, grid, pixel_block(), 0, stream, p, p.f1, p.grad_f2, -1);
    }
    return code;
}

bool empty(const CorrelationParams& p) { return p.batch == 0 || p.height == 0 || p.width == 0; }

}  // namespace

int correlation_naive_cuda(const CorrelationParams& p, void* stream) {
    if (empty(p)) return kOk;
    return for_float_or_double(p.dtype, [&](auto type) { return forward<decltype(type)>(p, stream); });
}

int correlation_backward_naive_cuda(const CorrelationParams& p, void* stream) {
    if (empty(p) || p.channels == 0) return kOk;
    return for_float_or_double(p.dtype, [&](auto type) { return backward<decltype(type)>(p, stream); });
}

}  // namespace vda
