// The test of sighting.h for the optimised kernels: offsets inside a plane in 32 bits, no test for taps that
// a position inside the frame cannot lack, and all reads of several pixels under way at once. About 120
// instructions a pixel and neighbour with three channels, less than half of the readable version's.
#pragma once

#include <type_traits>

#include "common.cuh"
#include "sighting.h"

namespace vda {

// Whether offsets inside a plane fit 32 bits.
inline bool plane_in_32_bits(const int64_t stride[4], int height, int width) {
    return int64_t(height) * stride[2] + int64_t(width) * stride[3] < (int64_t(1) << 31);
}
inline bool planes_in_32_bits(const Neighbourhood& p) {
    return plane_in_32_bits(p.flows.first.stride, p.height, p.width) &&
           plane_in_32_bits(p.frame.stride, p.height, p.width) &&
           plane_in_32_bits(p.neighbour_frames.first.stride, p.height, p.width);
}

// A plane whose address the compiler takes as given. Otherwise it adds sample, channel and offset anew for
// every read: five instructions instead of two.
template <typename Pointer>
__device__ __forceinline__ Pointer fixed(Pointer plane) {
#if defined(__CUDA_ARCH__)
    asm("" : "+l"(plane));
    __builtin_assume(__isGlobal(plane));
#endif
    return plane;
}

// tenths() without the division: the quotient that a product misses by one rounding is put right by its
// remainder, for every int16.
__device__ __forceinline__ float tenths_32(int16_t value) {
    const float whole = value, near = whole * 0.1f;
    return fmaf(fmaf(-10.0f, near, whole), 0.1f, near);
}

template <typename T, int kPixels>
__device__ __forceinline__ void load_flow(const Stack<FlowView>& flows, int64_t b, int j,
                                          const int (&y)[kPixels], const int (&x)[kPixels],
                                          Sighting (&seen)[kPixels]) {
    const int64_t* stride = flows.first.stride;
    const T* u = fixed(static_cast<const T*>(flows.first.data) + b * stride[0] + j * flows.step);
    const T* v = fixed(u + stride[1]);
    for (int i = 0; i < kPixels; ++i) {
        const int offset = y[i] * int(stride[2]) + x[i] * int(stride[3]);
        if constexpr (std::is_same_v<T, int16_t>) {
            seen[i].at = {tenths_32(u[offset]), tenths_32(v[offset])};
        } else {
            seen[i].at = {load(u + offset), load(v + offset)};
        }
    }
}

// The four taps of a position inside the frame. Where the right column or the bottom row would lie outside,
// its weight is 0 and the tap beside it stands for it: whatever is there has been read anyway.
struct InnerTaps {
    int offset[4];
    float a, b;

    VDA_HD float weight(int tap) const { return ((tap & 1) ? a : 1.0f - a) * ((tap & 2) ? b : 1.0f - b); }
};

VDA_HD InnerTaps inner_taps(Position<float> at, int height, int width, int stride_y, int stride_x) {
    const int left = int(at.x), top = int(at.y);  // not negative
    const int first = top * stride_y + left * stride_x, right = left < width - 1 ? stride_x : 0,
              down = top < height - 1 ? stride_y : 0;
    return {
        {first, first + right, first + down, first + down + right}, at.x - float(left), at.y - float(top)};
}

template <typename T>
VDA_HD float sample_32(const T* plane, const InnerTaps& taps) {
    float sum = 0;
    for (int tap = 0; tap < 4; ++tap) sum += taps.weight(tap) * load(plane + taps.offset[tap]);
    return sum;
}

// Adds the squared differences of kChannels channels from c on; all their reads are under way at once.
template <int kChannels, int kPixels>
__device__ __forceinline__ void add_errors(const Neighbourhood& p, const float* frame, const float* other,
                                           int c, const int (&own)[kPixels], const InnerTaps (&taps)[kPixels],
                                           float (&error)[kPixels]) {
    float difference[kChannels][kPixels];
    for (int d = 0; d < kChannels; ++d) {
        const float* mine = fixed(frame + (c + d) * p.frame.stride[1]);
        const float* theirs = fixed(other + (c + d) * p.neighbour_frames.first.stride[1]);
        for (int i = 0; i < kPixels; ++i) difference[d][i] = mine[own[i]] - sample_32(theirs, taps[i]);
    }
    for (int d = 0; d < kChannels; ++d) {
        for (int i = 0; i < kPixels; ++i) error[i] += difference[d][i] * difference[d][i];
    }
}

// sighting() of several pixels, wherever planes_in_32_bits. Without branches, so that the reads of all of
// them are under way at once: what cannot be seen reads the first pixel instead. Pixels outside the frame
// are not visible.
template <int kPixels>
__device__ __forceinline__ void sight(const Neighbourhood& p, float limit, int64_t b, int j,
                                      int (&y)[kPixels], int (&x)[kPixels], Sighting (&seen)[kPixels]) {
    bool exists[kPixels];
    for (int i = 0; i < kPixels; ++i) {
        exists[i] = y[i] < p.height && x[i] < p.width;
        y[i] = min(y[i], p.height - 1);
        x[i] = min(x[i], p.width - 1);
    }
    switch (p.flows.first.dtype) {
        case Dtype::f16:
            load_flow<half>(p.flows, b, j, y, x, seen);
            break;
        case Dtype::bf16:
            load_flow<bfloat16>(p.flows, b, j, y, x, seen);
            break;
        case Dtype::i16:
            load_flow<int16_t>(p.flows, b, j, y, x, seen);
            break;
        default:
            load_flow<float>(p.flows, b, j, y, x, seen);
    }
    const int64_t* stride = p.neighbour_frames.first.stride;
    const float* other = nth<float>(p.neighbour_frames, j, b);
    const float* frame = static_cast<const float*>(p.frame.data) + b * p.frame.stride[0];
    int own[kPixels];
    InnerTaps taps[kPixels];
    float error[kPixels] = {};
    for (int i = 0; i < kPixels; ++i) {
        own[i] = y[i] * int(p.frame.stride[2]) + x[i] * int(p.frame.stride[3]);
        seen[i].at = {float(x[i]) + seen[i].at.x, float(y[i]) + seen[i].at.y};
        seen[i].visible = exists[i] && in_frame(seen[i].at, p.height, p.width);
        if (!seen[i].visible) seen[i].at = {0.0f, 0.0f};
        taps[i] = inner_taps(seen[i].at, p.height, p.width, int(stride[2]), int(stride[3]));
    }
    int c = 0;
    for (; c + 3 <= p.channels; c += 3) add_errors<3>(p, frame, other, c, own, taps, error);
    for (; c < p.channels; ++c) add_errors<1>(p, frame, other, c, own, taps, error);
    for (int i = 0; i < kPixels; ++i) seen[i].visible &= error[i] < limit;
}

}  // namespace vda
