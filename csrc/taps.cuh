// Bilinear taps of the fast kernels: where all four lie in the frame, as nearly everywhere, they are read
// without checks, at 32-bit offsets.
#pragma once

#include "pack.cuh"

namespace vda {

// A pixel whose taps all lie in the frame: offsets of the left ones, weights of right and bottom.
struct Inner {
    int top, bottom;
    float a, b;

    // As Taps::weight of sampling.h.
    __device__ __forceinline__ float weight(int tap) const {
        return (tap & 1 ? a : 1.0f - a) * (tap & 2 ? b : 1.0f - b);
    }
};

__device__ __forceinline__ bool is_inner(Position<float> p, int height, int width) {
    return p.x >= 0.0f && p.x < float(width - 1) && p.y >= 0.0f && p.y < float(height - 1);  // no NaN is
}

// Of a position that is_inner.
__device__ __forceinline__ Inner inner_taps(Position<float> p, int stride_y, int stride_x) {
    const float left = floorf(p.x), top = floorf(p.y);
    const int offset = int(top) * stride_y + int(left) * stride_x;
    return {offset, offset + stride_y, p.x - left, p.y - top};
}

// Fills taps and returns true if all pixels of the thread are inner ones.
template <int R, int N>
__device__ __forceinline__ bool inner_taps(const Position<float> (&at)[R][N], int height, int width,
                                           int stride_y, int stride_x, Inner (&taps)[R][N]) {
    bool inside = true;
#pragma unroll
    for (int i = 0; i < R * N; ++i) inside = inside && is_inner(at[i / N][i % N], height, width);
    if (!inside) return false;
#pragma unroll
    for (int i = 0; i < R * N; ++i) {
        taps[i / N][i % N] = inner_taps(at[i / N][i % N], stride_y, stride_x);
    }
    return true;
}

// sample() of sampling.h, in the same order.
template <typename T>
__device__ __forceinline__ float inner_sample(const T* plane, const Inner& taps, int stride_x) {
    const T* top = plane + taps.top;
    const T* bottom = plane + taps.bottom;
    float sum = taps.weight(0) * gather(top);
    sum += taps.weight(1) * gather(top + stride_x);
    sum += taps.weight(2) * gather(bottom);
    sum += taps.weight(3) * gather(bottom + stride_x);
    return sum;
}

// add_flow_gradient() of warp.h.
template <typename T>
__device__ __forceinline__ void add_inner_gradient(float grad, const T* plane, const Inner& taps,
                                                   int stride_x, float& gx, float& gy) {
    const float tl = gather(plane + taps.top), tr = gather(plane + taps.top + stride_x);
    const float bl = gather(plane + taps.bottom), br = gather(plane + taps.bottom + stride_x);
    gx += grad * ((1.0f - taps.b) * (tr - tl) + taps.b * (br - bl));
    gy += grad * ((1.0f - taps.a) * (bl - tl) + taps.a * (br - tr));
}

// body(position, y, x) for each pixel of a thread whose taps are not all in the frame.
template <int R, int N, typename Body>
__device__ __forceinline__ void one_by_one(const Position<float> (&position)[R][N], int y, int x, int height,
                                           const Body& body) {
#pragma unroll 1
    for (int i = 0; i < R * N && y + i / N < height; ++i) body(pick(position, i), y + i / N, x + i % N);
}

}  // namespace vda
