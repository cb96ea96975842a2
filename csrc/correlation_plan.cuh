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

// grad = scale sum over the neighbours, of f1 (sign = 1, features = f2) or of f2 (sign = -1, features = f1).
struct BackwardJob {
    Tiling tiling;
    Features features;
    View grad_out;  // of any strides
    void* grad;     // [B, C, H, W], or [B, H, W, C] where channels_last
    int channels, sign;
    bool channels_last;
    bool paired;  // 16 bits: two neighbouring x of grad_out lie in one aligned word
    bool vector;  // store 4 values at once
    float scale;
    Dtype dtype;
    // Set by the launcher.
    int block_units, stages, weight_buffers;
};

// Writes channels c .. c + count - 1 of a tile from staging, 256 threads.
template <typename T>
__device__ __forceinline__ void store_channels(const BackwardJob& job, const Tile& tile, const float* staging,
                                               int pitch, int c, int count) {
    const Tiling& tiling = job.tiling;
    const int64_t plane = int64_t(tiling.height) * tiling.width;
    T* to = static_cast<T*>(job.grad) + tile.b * job.channels * plane;
    if (!job.channels_last) {
        to += c * plane;
        const auto all = [](int) { return true; };
        if (job.vector) {
            for_each_run<4>(tiling, tile, staging, pitch, count, all,
                            [&](int at, int channel, float(&v)[4]) { store_4(to + channel * plane + at, v); });
        } else {
            for_each_run<1>(tiling, tile, staging, pitch, count, all,
                            [&](int at, int channel, float(&v)[1]) { store(to + channel * plane + at, v[0]); });
        }
        return;
    }
    // 8 lanes take the channels of a pixel, 4 each.
    const int first = int(threadIdx.x) % 8 * 4;
    for (int pixel = int(threadIdx.x) / 8; pixel < kTileRows * kTileSlots; pixel += int(blockDim.x) / 8) {
        const int a = pixel / kTileSlots, slot = tiling.slot_of_run(pixel % kTileSlots);
        const int y = tile.y + a * tiling.stride, x = tiling.x_of(tile, slot);
        if (x >= tiling.width || y >= tiling.height) continue;
        const float* from = staging + a * pitch + first * kSlotPitch + slot;
        T* at = to + (int64_t(y) * tiling.width + x) * job.channels + c + first;
        if (job.vector && first + 4 <= count) {
            const float v[4] = {from[0], from[kSlotPitch], from[2 * kSlotPitch], from[3 * kSlotPitch]};
            store_4(at, v);
        } else {
            for (int i = 0; i < 4 && first + i < count; ++i) store(at + i, from[i * kSlotPitch]);
        }
    }
}

// [B, C, H, W] of any strides to [B][H][W][units], zeros behind the last channel.
int correlation_pack(const CorrelationParams& p, const View& from, void* to, void* stream);

// Tensor cores: fp16, bf16, fp32 as TF32. At most kPassUnits units per pixel and call.
constexpr int kPassUnits = 32;
int correlation_mma(ForwardJob job, const Gpu& gpu, void* stream);
int correlation_backward_mma(BackwardJob job, const Gpu& gpu, void* stream);

}  // namespace vda
