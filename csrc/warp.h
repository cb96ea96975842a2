// Backward warp: out(p) = image(p + flow(p)), bilinear or nearest, and its gradients; and the warp fused with
// the photometric occlusion test, visible(p) = [exp(-alpha ||frame(p) - out(p)||) > threshold].
#pragma once

#include "sampling.h"

namespace vda {

struct WarpParams {
    View image;     // [B, C, H, W]
    FlowView flow;  // [B, 2, H, W]
    void* out;      // [B, C, H, W], contiguous, element type of image
    int64_t batch;
    int channels, height, width;
    Dtype dtype;  // of image
    Padding padding;
};

// Nearest copies elements and never looks into them, so it is compiled per size and serves every type.
struct WarpNearestParams {
    View image;     // [B, C, H, W]
    FlowView flow;  // [B, 2, H, W]
    void* out;      // [B, C, H, W], contiguous
    int64_t batch;
    int channels, height, width;
    int element_size;  // 1, 2, 4 or 8 bytes
    bool double_flow;  // positions in double instead of float
    uint64_t fill;     // bit pattern written where there is no pixel
    Padding padding;
};

struct WarpBackwardParams {
    View grad_out;  // [B, C, H, W]
    View image;     // [B, C, H, W]
    FlowView flow;  // [B, 2, H, W]
    // Either may be null. Contiguous, in Acc<dtype>. grad_image arrives zeroed; grad_flow is written whole.
    void* grad_image;  // [B, C, H, W]
    void* grad_flow;   // [B, 2, H, W]
    // CUDA only. When not null the image gradient is summed into it instead of grad_image, as
    // round(contribution * *scale): integer sums do not depend on the order, so the result is deterministic.
    int64_t* fixed_point;  // [B, C, H, W], zeroed
    const double* scale;   // one number, chosen so that no sum can overflow
    int64_t batch;
    int channels, height, width;
    Dtype dtype;  // of grad_out and image
    Mode mode;
    Padding padding;
};

struct WarpOcclusionParams {
    View frame;        // [B, C, H, W]
    View neighbour;    // [B, C, H, W]
    FlowView flow;     // [B, 2, H, W], from frame to neighbour
    void* out;         // [B, C, H, W], contiguous: the warped neighbour, 0 outside
    uint8_t* visible;  // [B, H, W], contiguous, 0 or 1
    int64_t batch;
    int channels, height, width;
    Dtype dtype;   // of frame and neighbour
    double limit;  // visible where the squared colour distance is below it
};

int warp_cpu(const WarpParams& p, int threads);
int warp_cuda(const WarpParams& p, void* stream);
int warp_nearest_cpu(const WarpNearestParams& p, int threads);
int warp_nearest_cuda(const WarpNearestParams& p, void* stream);
int warp_backward_cpu(const WarpBackwardParams& p, int threads);
int warp_backward_cuda(const WarpBackwardParams& p, void* stream);
int warp_occlusion_cpu(const WarpOcclusionParams& p, int threads);
int warp_occlusion_cuda(const WarpOcclusionParams& p, void* stream);
// The readable CUDA kernels, which also serve what the fast ones do not.
int warp_naive_cuda(const WarpParams& p, void* stream);
int warp_nearest_naive_cuda(const WarpNearestParams& p, void* stream);
int warp_backward_naive_cuda(const WarpBackwardParams& p, void* stream);
int warp_occlusion_naive_cuda(const WarpOcclusionParams& p, void* stream);

// The smallest A that is not below the limit: for every A e, (e < it) == (e < limit), so one rounding of the
// limit cannot flip a decision.
template <typename A>
A not_below(double limit) {
    const A rounded = A(limit);
    return double(rounded) < limit ? std::nextafter(rounded, A(INFINITY)) : rounded;
}

template <typename A>
VDA_HD Taps<A> warp_taps(const FlowView& flow, int64_t b, int y, int x, int height, int width,
                         int64_t stride_y, int64_t stride_x, Mode mode, Padding padding) {
    const Position<A> p = flow.target<A>(b, y, x);
    if (mode == Mode::bilinear) return bilinear_taps(p, height, width, stride_y, stride_x, padding);
    const int64_t nearest = nearest_offset(p, height, width, stride_y, stride_x, padding);
    return {{nearest, kOutside, kOutside, kOutside}, A(0), A(0)};
}

// d sum(grad_out * out) / d position, one channel's share.
template <typename T>
VDA_HD void add_flow_gradient(Acc<T> grad, const T* plane, const Taps<Acc<T>>& taps, Acc<T>& gx, Acc<T>& gy) {
    const Acc<T> tl = tap_value(plane, taps.offset[0]), tr = tap_value(plane, taps.offset[1]);
    const Acc<T> bl = tap_value(plane, taps.offset[2]), br = tap_value(plane, taps.offset[3]);
    gx += grad * ((Acc<T>(1) - taps.b) * (tr - tl) + taps.b * (br - bl));
    gy += grad * ((Acc<T>(1) - taps.a) * (bl - tl) + taps.a * (br - tr));
}

// One pixel of warp_occlusion.
template <typename T>
VDA_HD void warp_occlusion_pixel(const WarpOcclusionParams& p, Acc<T> limit, int64_t b, int y, int x) {
    using A = Acc<T>;
    const T* frame = static_cast<const T*>(p.frame.data) + b * p.frame.stride[0] + y * p.frame.stride[2] +
                     x * p.frame.stride[3];
    const T* neighbour = static_cast<const T*>(p.neighbour.data) + b * p.neighbour.stride[0];
    const int64_t plane = int64_t(p.height) * p.width, pixel = int64_t(y) * p.width + x;
    T* out = static_cast<T*>(p.out) + b * p.channels * plane + pixel;
    const Position<A> at = p.flow.target<A>(b, y, x);
    const Taps<A> taps =
        bilinear_taps(at, p.height, p.width, p.neighbour.stride[2], p.neighbour.stride[3], Padding::zeros);
    A error = 0;  // squared distance, before any rounding to 16 bit
    for (int c = 0; c < p.channels; ++c) {
        const A value = sample(neighbour + c * p.neighbour.stride[1], taps);
        const A difference = load(frame + c * p.frame.stride[1]) - value;
        error += difference * difference;
        store(out + c * plane, value);
    }
    p.visible[b * plane + pixel] = in_frame(at, p.height, p.width) && error < limit;
}

}  // namespace vda
