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

    // Writes the staged sums of a row of the other frame: vertical displacement j - a of row a of the tile,
    // where that is in [j0, j1), and horizontal ones i0 + plane, plane < count.
    template <typename T>
    __device__ void store_planes(const Tile& tile, const Staging& staging, int j0, int j1, int j, int i0,
                                 int count) const {
        const int d = tiling.displacements();
        const int64_t plane = int64_t(tiling.height) * tiling.width;
        const auto first = [&](int a, int offset) {
            const bool wanted = j - a >= j0 && j - a < j1;
            return wanted ? ((int64_t(tile.b) * d + j - a) * d + i0) * plane + offset : -1;
        };
        if (vector && before == nullptr && after == nullptr) {
            for_each_run<4>(tiling, tile, staging, count, plane, first, [&](int64_t at, float (&v)[4]) {
                for (float& value : v) value = finished(value);
                store_4(static_cast<T*>(out) + at, v);
            });
        } else {
            for_each_run<1>(tiling, tile, staging, count, plane, first, [&](int64_t at, float (&v)[1]) {
                if (before != nullptr) v[0] += before[at];
                if (after != nullptr)
                    after[at] = v[0];
                else
                    store(static_cast<T*>(out) + at, finished(v[0]));
            });
        }
    }
    __device__ float finished(float sum) const {
        sum *= scale;
        return fmaxf(sum, sum * negative_slope);  // LeakyReLU, as 0 < negative_slope <= 1
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

// The weights in grad_out of one pixel (row a of the tile, slot) and row k of its neighbours: that of
// displacement i0 + i along x is element first + i step. `exists`: the pixel and the row do.
struct WeightRun {
    int64_t first, step;
    bool exists;
};
__device__ __forceinline__ WeightRun weight_run(const BackwardJob& job, const Tile& tile, int a, int slot,
                                                int i0, int k) {
    const Tiling& tiling = job.tiling;
    const int x = tiling.x_of(tile, slot), y = tile.y + a * tiling.stride, d = tiling.displacements(),
              j = k - a;
    const int64_t* stride = job.grad_out.stride;
    WeightRun run;
    run.first = tile.b * stride[0];
    if (job.sign > 0) {  // grad_out at this pixel
        run.first += (int64_t(j) * d + i0) * stride[1] + y * stride[2] + x * stride[3];
        run.step = stride[1];
    } else {  // the opposite displacement, at the neighbour
        run.first += (int64_t(d - 1 - j) * d + d - 1 - i0) * stride[1] + tiling.other_y(tile, k) * stride[2] +
                     (x + (i0 - tiling.radius) * tiling.stride) * stride[3];
        run.step = tiling.stride * stride[3] - stride[1];
    }
    run.exists = j >= 0 && j < d && x < tiling.width && y < tiling.height && tiling.other_exists(tile, k);
    return run;
}
// Bit i: displacement i0 + i leads from the pixels of this slot to ones of the frame, i < count.
__device__ __forceinline__ uint32_t displacements_inside(const BackwardJob& job, const Tile& tile, int slot,
                                                         int i0, int count) {
    const int x = job.tiling.x_of(tile, slot);
    uint32_t bits = 0;
    for (int i = 0; i < count; ++i) {
        const int other = x + (i0 + i - job.tiling.radius) * job.tiling.stride;
        bits |= uint32_t(other >= 0 && other < job.tiling.width) << i;
    }
    return bits;
}

// The walk of a block over the neighbours of its tile: band after band of displacements along x, of each the
// rows that exist, `step` at a time.
struct Walk {
    int first_row, end_row, step, items;
    struct At {
        int i0, k;  // first displacement of the band, first row
    };
    __device__ Walk(const Tiling& tiling, const Tile& tile, int step_) : step(step_) {
        first_row = max(0, tiling.radius - tile.y / tiling.stride) / step * step;
        end_row = min(tiling.other_rows(), tiling.radius + (tiling.height - 1 - tile.y) / tiling.stride + 1);
        items = ceil_div(end_row - first_row, step) * tiling.bands();
    }
    __device__ At begin() const { return {0, first_row}; }
    __device__ void advance(At& at) const {
        at.k += step;
        if (at.k >= end_row) at = {at.i0 + kBand, first_row};
    }
};

// Writes channels c .. c + count - 1 of a tile, which are the planes that are staged.
template <typename T>
__device__ __forceinline__ void store_channels(const BackwardJob& job, const Tile& tile,
                                               const Staging& staging, int c, int count) {
    const Tiling& tiling = job.tiling;
    const int64_t plane = int64_t(tiling.height) * tiling.width;
    T* to = static_cast<T*>(job.grad) + int64_t(tile.b) * job.channels * plane;
    if (!job.channels_last) {
        to += c * plane;
        const auto first = [](int, int offset) { return int64_t(offset); };
        if (job.vector)
            for_each_run<4>(tiling, tile, staging, count, plane, first,
                            [&](int64_t at, float (&v)[4]) { store_4(to + at, v); });
        else
            for_each_run<1>(tiling, tile, staging, count, plane, first,
                            [&](int64_t at, float (&v)[1]) { store(to + at, v[0]); });
        return;
    }
    // 8 lanes take the channels of a pixel, 4 each.
    const int first = int(threadIdx.x) % 8 * 4;
    for (int pixel = int(threadIdx.x) / 8; pixel < kTileRows * kTileSlots; pixel += int(blockDim.x) / 8) {
        const int a = pixel / kTileSlots, slot = tiling.slot_of_run(pixel % kTileSlots);
        const int y = tile.y + a * tiling.stride, x = tiling.x_of(tile, slot);
        if (x >= tiling.width || y >= tiling.height) continue;
        const int pitch = staging.plane_pitch;
        const float* from = staging.sums + a * staging.row_pitch + first * pitch + slot;
        T* at = to + (int64_t(y) * tiling.width + x) * job.channels + c + first;
        if (job.vector && first + 4 <= count) {
            const float v[4] = {from[0], from[pitch], from[2 * pitch], from[3 * pitch]};
            store_4(at, v);
        } else {
            for (int i = 0; i < 4 && first + i < count; ++i) store(at + i, from[i * pitch]);
        }
    }
}

// [B, C, H, W] of any strides to [B][H][W][units], zeros behind the last channel.
int correlation_pack(const CorrelationParams& p, const View& from, void* to, void* stream);

// Tensor cores: fp16, bf16, fp32 as TF32. At most kPassUnits units per pixel and call.
constexpr int kPassUnits = 32;
int correlation_mma(ForwardJob job, const Gpu& gpu, void* stream);
int correlation_backward_mma(BackwardJob job, const Gpu& gpu, void* stream);

// Exact fp32 on the ordinary cores.
int correlation_fp32(ForwardJob job, const Gpu& gpu, void* stream);
int correlation_backward_fp32(BackwardJob job, const Gpu& gpu, void* stream);

}  // namespace vda
