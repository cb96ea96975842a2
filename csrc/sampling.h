// Where a flow vector points, and which pixels are read there. Shared by warp, aggregate and consensus.
#pragma once

#include "common.h"

namespace vda {

// Beyond 2^24 a float no longer tells neighbouring pixels apart. Such a position, or one that is not finite,
// is "nowhere": it reads nothing, in every padding mode. Test it before any conversion to int.
constexpr float kNowhere = 16777216.0f;

enum class Mode : int32_t { bilinear, nearest };
enum class Padding : int32_t { zeros, border };

template <typename A>
struct Position {
    A x, y;
};

// NaN fails every comparison, so the negated form sends it to "nowhere" too.
template <typename A>
VDA_HD bool somewhere(Position<A> p) {
    return std::fabs(p.x) <= A(kNowhere) && std::fabs(p.y) <= A(kNowhere);
}

// 0 <= x <= width - 1 and 0 <= y <= height - 1: every tap with non-zero weight lies inside the frame.
template <typename A>
VDA_HD bool in_frame(Position<A> p, int height, int width) {
    return p.x >= A(0) && p.x <= A(width - 1) && p.y >= A(0) && p.y <= A(height - 1);
}

// A quotient, where a product with 0.1f could be merged into the sum that follows and miss the ties that are
// 10 % of such values.
VDA_HD float tenths(int16_t value) {
#if defined(__CUDA_ARCH__)
    return __fdiv_rn(float(value), 10.0f);
#else
    return float(value) / 10.0f;
#endif
}

// Flow [B, 2, H, W] in pixels, channel 0 = u (to the right), 1 = v (down), of any float type, or int16 in
// tenths of a pixel; any strides.
struct FlowView {
    const void* data;
    int64_t stride[4];
    Dtype dtype;

    template <typename A>
    VDA_HD A value(int64_t i) const {
        switch (dtype) {
            case Dtype::f16:
                return A(load(static_cast<const half*>(data) + i));
            case Dtype::bf16:
                return A(load(static_cast<const bfloat16*>(data) + i));
            case Dtype::f64:
                return A(load(static_cast<const double*>(data) + i));
            case Dtype::i16:
                return A(tenths(static_cast<const int16_t*>(data)[i]));
            default:
                return A(load(static_cast<const float*>(data) + i));
        }
    }
    // Sample position (x + u, y + v) of pixel (y, x) of image b; A is float, or double for exact gradients.
    template <typename A>
    VDA_HD Position<A> target(int64_t b, int y, int x) const {
        const int64_t i = b * stride[0] + y * stride[2] + x * stride[3];
        return {A(x) + value<A>(i), A(y) + value<A>(i + stride[1])};
    }
};

// Flow to neighbour j.
VDA_HD FlowView nth(const Stack<FlowView>& stack, int j) {
    FlowView flow = stack.first;
    flow.data = static_cast<const char*>(flow.data) + j * stack.step * size_of(flow.dtype);
    return flow;
}

constexpr int64_t kOutside = -1;

// The four pixels around a position, as element offsets in a plane: top left, top right, bottom left, bottom
// right; kOutside where there is no pixel (it counts as 0). a and b are the weights of right and bottom.
template <typename A>
struct Taps {
    int64_t offset[4];
    A a, b;

    VDA_HD A weight(int tap) const { return ((tap & 1) ? a : A(1) - a) * ((tap & 2) ? b : A(1) - b); }
};

VDA_HD int64_t tap_offset(int y, int x, int height, int width, int64_t stride_y, int64_t stride_x,
                          Padding padding) {
    if (padding == Padding::border) {
        y = y < 0 ? 0 : (y >= height ? height - 1 : y);
        x = x < 0 ? 0 : (x >= width ? width - 1 : x);
    } else if (y < 0 || y >= height || x < 0 || x >= width) {
        return kOutside;
    }
    return y * stride_y + x * stride_x;
}

// Nearest pixel, ties to the even coordinate (rint), as grid_sample; where none exists, (0, 0).
struct Pixel {
    int y, x;
    bool exists;
};

template <typename A>
VDA_HD Pixel nearest_pixel(Position<A> p, int height, int width, Padding padding) {
    if (!somewhere(p)) return {0, 0, false};
    int y = int(std::rint(p.y)), x = int(std::rint(p.x));
    if (padding == Padding::border) {
        y = y < 0 ? 0 : (y >= height ? height - 1 : y);
        x = x < 0 ? 0 : (x >= width ? width - 1 : x);
    } else if (y < 0 || y >= height || x < 0 || x >= width) {
        return {0, 0, false};
    }
    return {y, x, true};
}

// Its element offset in a plane, or kOutside.
template <typename A>
VDA_HD int64_t nearest_offset(Position<A> p, int height, int width, int64_t stride_y, int64_t stride_x,
                              Padding padding) {
    const Pixel pixel = nearest_pixel(p, height, width, padding);
    return pixel.exists ? pixel.y * stride_y + pixel.x * stride_x : kOutside;
}

template <typename A>
VDA_HD Taps<A> bilinear_taps(Position<A> p, int height, int width, int64_t stride_y, int64_t stride_x,
                             Padding padding) {
    Taps<A> taps{{kOutside, kOutside, kOutside, kOutside}, A(0), A(0)};
    if (!somewhere(p)) return taps;
    const A left = std::floor(p.x), top = std::floor(p.y);
    taps.a = p.x - left;
    taps.b = p.y - top;
    for (int tap = 0; tap < 4; ++tap) {
        taps.offset[tap] = tap_offset(int(top) + (tap >> 1), int(left) + (tap & 1), height, width, stride_y,
                                      stride_x, padding);
    }
    return taps;
}

template <typename T>
VDA_HD Acc<T> tap_value(const T* plane, int64_t offset) {
    return offset < 0 ? Acc<T>(0) : load(plane + offset);
}

// Weighted sum of the four taps in a plane.
template <typename T>
VDA_HD Acc<T> sample(const T* plane, const Taps<Acc<T>>& taps) {
    Acc<T> sum = 0;
    for (int tap = 0; tap < 4; ++tap) sum += taps.weight(tap) * tap_value(plane, taps.offset[tap]);
    return sum;
}

}  // namespace vda
