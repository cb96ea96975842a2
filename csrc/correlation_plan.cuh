// The fast kernels of correlation.h as jobs, internal to csrc/correlation*.cu. correlation_launch.cu decides
// which of them serves a call and brings the features into the layout that they take.
#pragma once

#include "correlation_tile.cuh"

namespace vda {

struct Gpu {
    int major;  // compute capability
    int multiprocessors;
    int shared_bytes;  // that a block may ask for
};

// 16-byte units of channels per pixel.
inline int units_per_pixel(const CorrelationParams& p) {
    return int(ceil_div<int64_t>(int64_t(p.channels) * size_of(p.dtype), 16));
}

// out = f(scale (before + sum over the channels of this pass)), or after = before + sum.
struct ForwardJob {
    Tiling tiling;
    Features f1, f2;
    void* out;
    const float* before;  // [B, D*D, H, W] or null
    float* after;         // [B, D*D, H, W] or null
    float scale, negative_slope;
    Dtype dtype;
    bool vector;  // store 4 values at once
    // Set by the launcher.
    int splits, stages, staging_buffers;

    template <typename T, int N>
    __device__ void store(int64_t at, float (&v)[N]) const {
        if (before != nullptr) {
            if constexpr (N == 4) {
                const float4 sum = *reinterpret_cast<const float4*>(before + at);
                v[0] += sum.x, v[1] += sum.y, v[2] += sum.z, v[3] += sum.w;
            } else {
                v[0] += before[at];
            }
        }
        if (after != nullptr) return put(after + at, v);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            v[i] *= scale;
            v[i] = v[i] > 0 ? v[i] : v[i] * negative_slope;
        }
        put(static_cast<T*>(out) + at, v);
    }
    template <typename T>
    __device__ static void put(T* to, const float (&v)[4]) {
        store_4(to, v);
    }
    template <typename T>
    __device__ static void put(T* to, const float (&v)[1]) {
        vda::store(to, v[0]);
    }
};

// [B, C, H, W] of any strides to [B][H][W][units], zeros behind the last channel.
int correlation_pack(const CorrelationParams& p, const View& from, void* to, void* stream);

// Tensor cores: fp16, bf16, fp32 as TF32. At most kPassUnits units per pixel and call.
constexpr int kPassUnits = 32;
int correlation_mma(ForwardJob job, const Gpu& gpu, void* stream);

}  // namespace vda
