// CUDA kernels of warp.h, the readable version: one thread per pixel, neighbouring threads on neighbouring x,
// so flow reads and stores are coalesced and the taps of a warp fall on few cache lines. Flow and weights are
// worked out once per pixel and used for every channel. Bytes per pixel with fp32 and C channels: 8 (flow) +
// 4 C (read) + 4 C (written).
#include "common.cuh"
#include "warp.h"

namespace vda {
namespace {

template <typename T>
__global__ void warp_kernel(WarpParams p) {
    using A = Acc<T>;
    const int64_t plane = int64_t(p.height) * p.width;
    for_each_pixel(p.batch, p.height, p.width, [&](int64_t b, int y, int x) {
        const Taps<A> taps = bilinear_taps(p.flow.target<A>(b, y, x), p.height, p.width, p.image.stride[2],
                                           p.image.stride[3], p.padding);
        const T* image = static_cast<const T*>(p.image.data) + b * p.image.stride[0];
        T* out = static_cast<T*>(p.out) + b * p.channels * plane + int64_t(y) * p.width + x;
        for (int c = 0; c < p.channels; ++c) {
            store(out + c * plane, sample(image + c * p.image.stride[1], taps));
        }
    });
}

template <typename S, typename A>
__global__ void warp_nearest_kernel(WarpNearestParams p) {
    const int64_t plane = int64_t(p.height) * p.width;
    for_each_pixel(p.batch, p.height, p.width, [&](int64_t b, int y, int x) {
        const int64_t from = nearest_offset(p.flow.target<A>(b, y, x), p.height, p.width, p.image.stride[2],
                                            p.image.stride[3], p.padding);
        const S* image = static_cast<const S*>(p.image.data) + b * p.image.stride[0];
        S* out = static_cast<S*>(p.out) + b * p.channels * plane + int64_t(y) * p.width + x;
        for (int c = 0; c < p.channels; ++c) {
            out[c * plane] = from < 0 ? S(p.fill) : image[c * p.image.stride[1] + from];
        }
    });
}

__device__ void add_fixed_point(int64_t* sum, double value, double scale) {
    // Two's complement addition is the same for signed and unsigned, and atomicAdd only knows the unsigned
    // type.
    atomicAdd(reinterpret_cast<unsigned long long*>(sum), (unsigned long long)(llrint(value * scale)));
}

// The image gradient is a scatter: many pixels may land on one, hence atomics. The flow gradient is a gather.
template <typename T>
__global__ void warp_backward_kernel(WarpBackwardParams p) {
    using A = Acc<T>;
    const int64_t plane = int64_t(p.height) * p.width;
    const double scale = p.fixed_point != nullptr ? *p.scale : 0.0;
    for_each_pixel(p.batch, p.height, p.width, [&](int64_t b, int y, int x) {
        const T* grad_out = static_cast<const T*>(p.grad_out.data) + b * p.grad_out.stride[0] +
                            y * p.grad_out.stride[2] + x * p.grad_out.stride[3];
        if (p.grad_image != nullptr || p.fixed_point != nullptr) {
            const Taps<A> taps =
                warp_taps<A>(p.flow, b, y, x, p.height, p.width, p.width, 1, p.mode, p.padding);
            for (int c = 0; c < p.channels; ++c) {
                const A grad = load(grad_out + c * p.grad_out.stride[1]);
                const int64_t base = (b * p.channels + c) * plane;
                for (int tap = 0; tap < 4; ++tap) {
                    if (taps.offset[tap] < 0) continue;
                    const int64_t i = base + taps.offset[tap];
                    const A share = taps.weight(tap) * grad;
                    if (p.fixed_point != nullptr) {
                        add_fixed_point(p.fixed_point + i, double(share), scale);
                    } else {
                        atomicAdd(static_cast<A*>(p.grad_image) + i, share);
                    }
                }
            }
        }
        if (p.grad_flow != nullptr) {
            A gx = 0, gy = 0;
            if (p.mode == Mode::bilinear) {
                const Taps<A> taps = bilinear_taps(p.flow.target<A>(b, y, x), p.height, p.width,
                                                   p.image.stride[2], p.image.stride[3], p.padding);
                const T* image = static_cast<const T*>(p.image.data) + b * p.image.stride[0];
                for (int c = 0; c < p.channels; ++c) {
                    const A grad = load(grad_out + c * p.grad_out.stride[1]);
                    add_flow_gradient(grad, image + c * p.image.stride[1], taps, gx, gy);
                }
            }
            A* grad_flow = static_cast<A*>(p.grad_flow) + b * 2 * plane + int64_t(y) * p.width + x;
            grad_flow[0] = gx;
            grad_flow[plane] = gy;
        }
    });
}

template <typename T>
__global__ void warp_occlusion_kernel(WarpOcclusionParams p, Acc<T> limit) {
    for_each_pixel(p.batch, p.height, p.width,
                   [&](int64_t b, int y, int x) { warp_occlusion_pixel<T>(p, limit, b, y, x); });
}

// Launches one thread per pixel, or nothing when there is no pixel.
template <typename Params, typename... P, typename... A>
int launch_pixels(void (*kernel)(P...), void* stream, const Params& p, A... more) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    return launch(kernel, pixel_grid(p.batch, p.height, p.width), pixel_block(), 0, stream, p, more...);
}

}  // namespace

int warp_naive_cuda(const WarpParams& p, void* stream) {
    return for_float_or_double(
        p.dtype, [&](auto type) { return launch_pixels(warp_kernel<decltype(type)>, stream, p); });
}

int warp_nearest_naive_cuda(const WarpNearestParams& p, void* stream) {
    switch (p.element_size) {
        case 1:
            return launch_pixels(warp_nearest_kernel<uint8_t, float>, stream, p);
        case 2:
            return launch_pixels(warp_nearest_kernel<uint16_t, float>, stream, p);
        case 4:
            return launch_pixels(warp_nearest_kernel<uint32_t, float>, stream, p);
        case 8:
            if (p.double_flow) return launch_pixels(warp_nearest_kernel<uint64_t, double>, stream, p);
            return launch_pixels(warp_nearest_kernel<uint64_t, float>, stream, p);
    }
    return kBadDtype;
}

int warp_backward_naive_cuda(const WarpBackwardParams& p, void* stream) {
    return for_float_or_double(
        p.dtype, [&](auto type) { return launch_pixels(warp_backward_kernel<decltype(type)>, stream, p); });
}

int warp_occlusion_naive_cuda(const WarpOcclusionParams& p, void* stream) {
    return for_float_or_double(p.dtype, [&](auto type) {
        using T = decltype(type);
        return launch_pixels(warp_occlusion_kernel<T>, stream, p, not_below<Acc<T>>(p.limit));
    });
}

}  // namespace vda
