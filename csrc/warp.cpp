// CPU kernels of warp.h. Work is split by rows (by planes for the image gradient, whose scatter then stays
// inside one thread), so the result is the same for every number of threads.
#include "warp.h"

#include "parallel.h"

namespace vda {
namespace {

constexpr int64_t kPixelsPerThread = 1 << 13;
constexpr int kStrip = 64;  // pixels whose taps are computed once and used for every channel

int64_t rows_per_thread(int width, int channels) {
    return ceil_div<int64_t>(kPixelsPerThread, int64_t(width) * std::max(channels, 1));
}

template <typename T>
VDA_HD void forward_row(const WarpParams& p, int64_t b, int y) {
    using A = Acc<T>;
    const int64_t plane = int64_t(p.height) * p.width;
    const T* image = static_cast<const T*>(p.image.data) + b * p.image.stride[0];
    T* out = static_cast<T*>(p.out) + b * p.channels * plane + int64_t(y) * p.width;
    Taps<A> taps[kStrip];
    for (int x0 = 0; x0 < p.width; x0 += kStrip) {
        const int n = std::min(kStrip, p.width - x0);
        for (int i = 0; i < n; ++i) {
            taps[i] = bilinear_taps(p.flow.target<A>(b, y, x0 + i), p.height, p.width, p.image.stride[2],
                                    p.image.stride[3], p.padding);
        }
        for (int c = 0; c < p.channels; ++c) {
            const T* source = image + c * p.image.stride[1];
            T* target = out + c * plane + x0;
            for (int i = 0; i < n; ++i) store(target + i, sample(source, taps[i]));
        }
    }
}

VDA_CLONES void forward_rows(const WarpParams& p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / p.height;
        const int y = int(row % p.height);
        switch (p.dtype) {
            case Dtype::f32:
                forward_row<float>(p, b, y);
                break;
            case Dtype::f16:
                forward_row<half>(p, b, y);
                break;
            case Dtype::bf16:
                forward_row<bfloat16>(p, b, y);
                break;
            case Dtype::f64:
                forward_row<double>(p, b, y);
                break;
        }
    }
}

template <typename S, typename A>
VDA_HD void nearest_row(const WarpNearestParams& p, int64_t b, int y) {
    const int64_t plane = int64_t(p.height) * p.width;
    const S* image = static_cast<const S*>(p.image.data) + b * p.image.stride[0];
    S* out = static_cast<S*>(p.out) + b * p.channels * plane + int64_t(y) * p.width;
    for (int x = 0; x < p.width; ++x) {
        const int64_t from = nearest_offset(p.flow.target<A>(b, y, x), p.height, p.width, p.image.stride[2],
                                            p.image.stride[3], p.padding);
        for (int c = 0; c < p.channels; ++c) {
            out[c * plane + x] = from < 0 ? S(p.fill) : image[c * p.image.stride[1] + from];
        }
    }
}

VDA_CLONES void nearest_rows(const WarpNearestParams& p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / p.height;
        const int y = int(row % p.height);
        switch (p.element_size) {
            case 1:
                nearest_row<uint8_t, float>(p, b, y);
                break;
            case 2:
                nearest_row<uint16_t, float>(p, b, y);
                break;
            case 4:
                nearest_row<uint32_t, float>(p, b, y);
                break;
            default:
                if (p.double_flow) {
                    nearest_row<uint64_t, double>(p, b, y);
                } else {
                    nearest_row<uint64_t, float>(p, b, y);
                }
        }
    }
}

// Gradient of one [H, W] plane of the image.
template <typename T>
VDA_HD void backward_image_plane(const WarpBackwardParams& p, int64_t b, int c) {
    using A = Acc<T>;
    const T* grad_out =
        static_cast<const T*>(p.grad_out.data) + b * p.grad_out.stride[0] + c * p.grad_out.stride[1];
    A* grad_image = static_cast<A*>(p.grad_image) + (b * p.channels + c) * int64_t(p.height) * p.width;
    for (int y = 0; y < p.height; ++y) {
        for (int x = 0; x < p.width; ++x) {
            const A grad = load(grad_out + y * p.grad_out.stride[2] + x * p.grad_out.stride[3]);
            const Taps<A> taps =
                warp_taps<A>(p.flow, b, y, x, p.height, p.width, p.width, 1, p.mode, p.padding);
            for (int tap = 0; tap < 4; ++tap) {
                if (taps.offset[tap] >= 0) grad_image[taps.offset[tap]] += taps.weight(tap) * grad;
            }
        }
    }
}

VDA_CLONES void backward_image_planes(const WarpBackwardParams& p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / p.channels;
        const int c = int(i % p.channels);
        switch (p.dtype) {
            case Dtype::f32:
                backward_image_plane<float>(p, b, c);
                break;
            case Dtype::f16:
                backward_image_plane<half>(p, b, c);
                break;
            case Dtype::bf16:
                backward_image_plane<bfloat16>(p, b, c);
                break;
            case Dtype::f64:
                backward_image_plane<double>(p, b, c);
                break;
        }
    }
}

template <typename T>
VDA_HD void backward_flow_row(const WarpBackwardParams& p, int64_t b, int y) {
    using A = Acc<T>;
    const int64_t plane = int64_t(p.height) * p.width;
    const T* grad_out =
        static_cast<const T*>(p.grad_out.data) + b * p.grad_out.stride[0] + y * p.grad_out.stride[2];
    const T* image = static_cast<const T*>(p.image.data) + b * p.image.stride[0];
    A* grad_flow = static_cast<A*>(p.grad_flow) + b * 2 * plane + int64_t(y) * p.width;
    for (int x = 0; x < p.width; ++x) {
        A gx = 0, gy = 0;
        if (p.mode == Mode::bilinear) {
            const Taps<A> taps = bilinear_taps(p.flow.target<A>(b, y, x), p.height, p.width,
                                               p.image.stride[2], p.image.stride[3], p.padding);
            for (int c = 0; c < p.channels; ++c) {
                const A grad = load(grad_out + c * p.grad_out.stride[1] + x * p.grad_out.stride[3]);
                add_flow_gradient(grad, image + c * p.image.stride[1], taps, gx, gy);
            }
        }
        grad_flow[x] = gx;
        grad_flow[plane + x] = gy;
    }
}

VDA_CLONES void backward_flow_rows(const WarpBackwardParams& p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / p.height;
        const int y = int(row % p.height);
        switch (p.dtype) {
            case Dtype::f32:
                backward_flow_row<float>(p, b, y);
                break;
            case Dtype::f16:
                backward_flow_row<half>(p, b, y);
                break;
            case Dtype::bf16:
                backward_flow_row<bfloat16>(p, b, y);
                break;
            case Dtype::f64:
                backward_flow_row<double>(p, b, y);
                break;
        }
    }
}

template <typename T>
VDA_HD void occlusion_row(const WarpOcclusionParams& p, Acc<T> limit, int64_t b, int y) {
    for (int x = 0; x < p.width; ++x) warp_occlusion_pixel<T>(p, limit, b, y, x);
}

VDA_CLONES void occlusion_rows(const WarpOcclusionParams& p, int64_t begin, int64_t end) {
    const float limit = not_below<float>(p.limit);
    for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / p.height;
        const int y = int(row % p.height);
        switch (p.dtype) {
            case Dtype::f32:
                occlusion_row<float>(p, limit, b, y);
                break;
            case Dtype::f16:
                occlusion_row<half>(p, limit, b, y);
                break;
            case Dtype::bf16:
                occlusion_row<bfloat16>(p, limit, b, y);
                break;
            case Dtype::f64:
                occlusion_row<double>(p, p.limit, b, y);
                break;
        }
    }
}

}  // namespace

int warp_cpu(const WarpParams& p, int threads) {
    if (p.channels == 0 || p.width == 0) return kOk;
    parallel_for(p.batch * p.height, rows_per_thread(p.width, p.channels), threads,
                 [&](int64_t begin, int64_t end) { forward_rows(p, begin, end); });
    return kOk;
}

int warp_nearest_cpu(const WarpNearestParams& p, int threads) {
    if (p.element_size != 1 && p.element_size != 2 && p.element_size != 4 && p.element_size != 8)
        return kBadDtype;
    if (p.channels == 0 || p.width == 0) return kOk;
    parallel_for(p.batch * p.height, rows_per_thread(p.width, p.channels), threads,
                 [&](int64_t begin, int64_t end) { nearest_rows(p, begin, end); });
    return kOk;
}

int warp_backward_cpu(const WarpBackwardParams& p, int threads) {
    if (p.width == 0 || p.height == 0) return kOk;
    if (p.grad_image != nullptr) {
        const int64_t grain = ceil_div<int64_t>(kPixelsPerThread, int64_t(p.height) * p.width);
        parallel_for(p.batch * p.channels, grain, threads,
                     [&](int64_t begin, int64_t end) { backward_image_planes(p, begin, end); });
    }
    if (p.grad_flow != nullptr) {
        parallel_for(p.batch * p.height, rows_per_thread(p.width, p.channels), threads,
                     [&](int64_t begin, int64_t end) { backward_flow_rows(p, begin, end); });
    }
    return kOk;
}

int warp_occlusion_cpu(const WarpOcclusionParams& p, int threads) {
    if (p.width == 0) return kOk;
    parallel_for(p.batch * p.height, rows_per_thread(p.width, p.channels), threads,
                 [&](int64_t begin, int64_t end) { occlusion_rows(p, begin, end); });
    return kOk;
}

}  // namespace vda
