// Bilinear upsampling of low-resolution planes, as torch's interpolate, in float or double.
#pragma once

#include "common.h"

namespace vda {

// Along one axis: pixel i of `to` lies at source pixel scale * i + shift, at least 0.
template <typename A>
struct AxisOf {
    A scale, shift;
    int last;  // of the source
};
using Axis = AxisOf<float>;

template <typename A = float>
VDA_HD AxisOf<A> upsampling_axis(int from, int to, bool align_corners) {
    if (align_corners) return {to > 1 ? A(from - 1) / A(to - 1) : A(0), A(0), from - 1};
    const A scale = A(from) / A(to);
    return {scale, A(0.5) * scale - A(0.5), from - 1};
}

// The two source pixels of pixel i, and the share of the second.
template <typename A>
struct BetweenOf {
    int low, high;
    A share;
};
using Between = BetweenOf<float>;

// In one rounding on the device, so that two evaluations never fall to different sides of a source pixel. On
// the host the compiler decides, per instruction set: what hangs together has to come from one evaluation.
template <typename A>
VDA_HD A position(const AxisOf<A>& axis, int i) {
#if defined(__CUDA_ARCH__)
    return fma(axis.scale, A(i), axis.shift);
#else
    return axis.scale * A(i) + axis.shift;
#endif
}

template <typename A>
VDA_HD BetweenOf<A> between(const AxisOf<A>& axis, int i) {
    const A unlimited = position(axis, i), last = A(axis.last);
    const A at = unlimited > A(0) ? (unlimited < last ? unlimited : last) : A(0);
    const int low = int(at);
    const A share = at - A(low);
    return {low, low < axis.last ? low + 1 : low, share};
}

// The first of `size` pixels whose low source pixel is `low` or a later one; `size` where there is none.
template <typename A>
VDA_HD int first_from(const AxisOf<A>& axis, int size, int low) {
    int begin = 0, end = size;
    while (begin < end) {
        const int middle = begin + (end - begin) / 2;
        if (between(axis, middle).low < low) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    return begin;
}

template <typename A>
VDA_HD A mixed(A low, A high, A share) {  // what has no share may be infinite
    return share > A(0) ? (A(1) - share) * low + share * high : low;
}

// One value of one full-resolution pixel.
template <typename T>
VDA_HD Acc<T> upsampled(const T* plane, const int64_t stride[4], const BetweenOf<Acc<T>>& y,
                        const BetweenOf<Acc<T>>& x) {
    const T* top = plane + y.low * stride[2];
    const T* bottom = plane + y.high * stride[2];
    return mixed(mixed(load(top + x.low * stride[3]), load(top + x.high * stride[3]), x.share),
                 mixed(load(bottom + x.low * stride[3]), load(bottom + x.high * stride[3]), x.share),
                 y.share);
}

// Source pixels under n neighbouring pixels, at most: positions are rounded, by less than 1/64 as long as
// there are no more than kMostUpsampled source pixels.
constexpr int kMostUpsampled = 1 << 16;
inline int pixels_under(const Axis& axis, int n) {
    const int most = int(axis.scale * float(n - 1) + 1.0f / 64.0f) + 3;
    return most < axis.last + 2 ? most : axis.last + 2;
}

}  // namespace vda
