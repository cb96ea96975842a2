// Forward correlation on tensor cores: fp16 and bf16, and fp32 rounded to TF32.
//
// A block keeps its f1 tile (8 x 32 pixels x 512 bytes of channels) in registers as operand A, 128 registers
// per thread, and streams the rows of f2 through a ring in shared memory. A row is complete in its channels,
// so its sums are final at once: 24 accumulators per thread, however large D is. Per row of f2 a block at C =
// 256 and D = 21 copies 36 KB from L2, loads 8 x 12 KB of B operands (768 clocks at 128 bytes per clock),
// issues up to 768 mma (1 clock each at the full rate) and moves 21 KB of results through shared memory on
// their way to runs of 32 consecutive x. Counted so, shared memory is the narrowest: about 1500 clocks per
// row, 24 us for 128 x 256 pixels on 132 multiprocessors at 1.75 GHz (one wave of 128 blocks x 28 rows). More
// than 512 bytes of channels take several passes over fp32 partial sums.
#include "correlation_plan.cuh"

namespace vda {
namespace {

constexpr int kThreads = 256;
constexpr int kPixelBytes = 512;          // of one pixel in a stage; bank conflicts are avoided by swizzled()
constexpr int kPairs = kPixelBytes / 64;  // 64 bytes of channels: two k-steps of 32
constexpr int kStageBytes = kMaxSlots * kPixelBytes;
constexpr int kRowPitch = row_pitch(kBand);  // of staged sums
constexpr int kStagingBytes = kTileRows * kRowPitch * int(sizeof(float));
constexpr int kF1Items = 4;  // the f1 tile comes through the ring as well, an m16 tile by 256 bytes at a time
constexpr int kF1Units = 16;

using Sums = float[2][3][4];                // [m16 tile][n8 tile of the window][of mma]
using Pixels = uint32_t[2][2 * kPairs][4];  // [m16 tile][k-step][of mma]

// What a block does: rows [0, rows) of f2 (counted from vertical displacement j0 of the first pixel row),
// whose results are vertical displacements [j0, j1) and horizontal ones [i0, i0 + count).
struct Share {
    int j0, j1, i0, count, rows;
};

template <typename T>
struct Block {
    const ForwardJob& job;
    Tile tile;
    Share share;
    Ring ring;
    float* staging;
    int warp, lane;

    // Rows 4 m .. 4 m + 3 of the tile, the lower or upper 256 bytes of channels.
    __device__ void load_f1(int item, SharedAddress stage) const {
        const Tiling& tiling = job.tiling;
        Features features = job.f1;
        features.data += item % 2 * kF1Units;
        features.units = min(max(features.units - item % 2 * kF1Units, 0), kF1Units);
#pragma unroll 1
        for (int run = 0; run < 8; ++run) {
            const int r = run / 2, half = run % 2, y = tile.y + (item / 2 * 4 + r) * tiling.stride;
            load_run(features, tile.b * features.sample + int64_t(y) * features.row, y < tiling.height,
                     tiling.width, tiling.x_of(tile, 16 * half), tiling.stride, 16,
                     [&](int n, int unit) { return stage + f1_offset(r, 16 * half + n, unit); });
        }
    }
    // In the stage. Odd rows have another key, as 4 pixels of either kind are read at once.
    __device__ static int f1_offset(int r, int slot, int unit) {
        return 16 * ((r * kTileSlots + slot) * kF1Units + swizzled(slot + r % 2 * 4, unit));
    }
    __device__ void load_f2(int k, SharedAddress stage) const {
        if (!job.tiling.other_exists(tile, share.j0 + k)) return;
        load_other_row(job.tiling, tile, job.f2, share.i0, share.j0 + k, [&](int slot, int unit) {
            return stage + slot * kPixelBytes + 16 * swizzled(slot, unit);
        });
    }
    __device__ void start(int item) {
        if (item < kF1Items + share.rows) {
            const SharedAddress stage = ring.in();
            if (item < kF1Items)
                load_f1(item, stage);
            else
                load_f2(item - kF1Items, stage);
        }
        commit_copies();  // an empty group where there is no item, so that counting groups counts items
    }
    // 8 pixels x 64 bytes, the pair-th 64 of each, as operand registers: r[0], r[1] of the first k-step,
    // r[2], r[3] of the second. `even` and `odd`: this lane's 16 bytes of pairs 0 and 1.
    __device__ static void load_pair(uint32_t (&r)[4], SharedAddress even, SharedAddress odd, int pair) {
        load_matrices(r, (pair % 2 == 0 ? even : odd) + pair / 2 * 128);
        if constexpr (sizeof(T) == 4) {
            for (uint32_t& value : r) value = round_to_tf32(value);
        }
    }

    // What load_f1() brought, as operand A: m16 tile kItem / 2, 8 k-steps.
    __device__ void take_f1(int item, SharedAddress stage, Pixels& pixels) const {
        if (item == 0)
            take_f1<0>(stage, pixels);
        else if (item == 1)
            take_f1<1>(stage, pixels);
        else if (item == 2)
            take_f1<2>(stage, pixels);
        else
            take_f1<3>(stage, pixels);
    }
    template <int kItem>
    __device__ void take_f1(SharedAddress stage, Pixels& pixels) const {
        const int pixel = lane % 16, slot = 4 * warp + pixel % 4;
#pragma unroll
        for (int step = 0; step < kPairs; ++step) {
            uint32_t (&a)[4] = pixels[kItem / 2][kItem % 2 * kPairs + step];
            load_matrices(a, stage + f1_offset(pixel / 4, slot, 2 * step + lane / 16));
            if constexpr (sizeof(T) == 4) {
                for (uint32_t& value : a) value = round_to_tf32(value);
            }
        }
    }

    // sums += f1 . f2 for m16 tiles [kBegin, kEnd) and kColumns n8 tiles of the row in `stage`. Loads run one
    // pair ahead of the products; the last one may read channels that nobody wrote, and drops them.
    template <int kBegin, int kEnd, int kColumns>
    __device__ void multiply(const Pixels& pixels, SharedAddress stage, Sums& sums) const {
        const int slot = job.tiling.first_other_slot(warp) + lane % 8, pairs = ceil_div(job.f2.units, 4);
        const SharedAddress pixel = stage + slot * kPixelBytes;
        const SharedAddress even = pixel + 16 * swizzled(slot, lane / 8);
        const SharedAddress odd = pixel + 16 * swizzled(slot, 4 + lane / 8);
        uint32_t b[2][kColumns][4];
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
            load_pair(b[0][n], even + 8 * n * kPixelBytes, odd + 8 * n * kPixelBytes, 0);
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
            if (pair >= pairs) break;
            if (pair + 1 < kPairs) {
#pragma unroll
                for (int n = 0; n < kColumns; ++n)
                    load_pair(b[(pair + 1) % 2][n], even + 8 * n * kPixelBytes, odd + 8 * n * kPixelBytes,
                              pair + 1);
            }
#pragma unroll
            for (int step = 0; step < 2; ++step) {
#pragma unroll
                for (int n = 0; n < kColumns; ++n) {
#pragma unroll
                    for (int m = kBegin; m < kEnd; ++m) {
                        multiply_add(sums[m][n], pixels[m][2 * pair + step], b[pair % 2][n][2 * step],
                                     b[pair % 2][n][2 * step + 1], T());
                    }
                }
            }
        }
    }
    template <int kBegin, int kEnd>
    __device__ void multiply(const Pixels& pixels, SharedAddress stage, Sums& sums) const {
        const int columns = ceil_div(share.count + 3, 8);
        if (columns == 3)
            multiply<kBegin, kEnd, 3>(pixels, stage, sums);
        else if (columns == 2)
            multiply<kBegin, kEnd, 2>(pixels, stage, sums);
        else
            multiply<kBegin, kEnd, 1>(pixels, stage, sums);
    }
    // Row k of f2 meets pixel rows a of vertical displacement j0 + k - a in [j0, j1): one m16 tile or both.
    __device__ void multiply_row(const Pixels& pixels, int k, SharedAddress stage, Sums& sums) const {
        const bool upper = k < share.j1 - share.j0 + 3, lower = k >= 4;
        if (upper && lower)
            multiply<0, 2>(pixels, stage, sums);
        else if (upper)
            multiply<0, 1>(pixels, stage, sums);
        else
            multiply<1, 2>(pixels, stage, sums);
    }

    // Pixel (a, slot) and column n of the window are displacement n - slot % 4.
    __device__ void stage_sums(const Sums& sums, float* to) const {
        const int g = lane / 4, t = lane % 4, i0 = 2 * t - g % 4;
        float* at = to + g / 4 * kRowPitch + i0 * kPlanePitch + 4 * warp + g % 4;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < 3; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int a = 4 * m + e / 2 * 2, i = 8 * n + e % 2;
                    if (unsigned(i0 + i) < unsigned(share.count))
                        at[a * kRowPitch + i * kPlanePitch] = sums[m][n][e];
                }
            }
        }
    }

    __device__ void store_row(int k, float* from) const {
        job.template store_planes<T>(tile, {from, kRowPitch, kPlanePitch}, share.j0, share.j1, share.j0 + k,
                                     share.i0, share.count);
    }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) correlation_mma_kernel(ForwardJob job) {
    unsigned char* shared = dynamic_shared<unsigned char>();
    const Tile tile = job.tiling.tile(blockIdx.x);
    if (job.tiling.empty(tile)) return;
    const int d = job.tiling.displacements(), split = tile.layer % job.splits, band = tile.layer / job.splits;
    const int j0 = d * split / job.splits, j1 = d * (split + 1) / job.splits, i0 = band * kBand;
    Block<T> block{job,
                   tile,
                   {j0, j1, i0, min(kBand, d - i0), j1 - j0 + kTileRows - 1},
                   {shared_address(shared), kStageBytes, job.stages},
                   reinterpret_cast<float*>(shared + job.stages * kStageBytes),
                   int(threadIdx.x) / 32,
                   int(threadIdx.x) % 32};
    // With two staging buffers there is one barrier per row, and between two barriers a warp may copy and
    // write out before it multiplies, or after: warps w and w + 4, which share a tensor core, do either.
    const int buffer = job.staging_buffers == 2 ? kTileRows * kRowPitch : 0;
    const bool first_multiply = job.staging_buffers == 2 && block.warp >= 4;
    Pixels pixels;
    for (int item = 1 - job.stages;; ++item) {
        if (item >= 0) {
            wait_copies(job.stages - 2);
            __syncthreads();  // this item has arrived for all, and the stage of the last one is free
        }
        const int k = item - kF1Items;
#pragma unroll 1  // one copy of the code for either order
        for (int turn = 0; turn < 2; ++turn) {
            if (turn == int(first_multiply)) {
                block.start(item + job.stages - 1);
                if (k > 0) block.store_row(k - 1, block.staging + (k - 1) % 2 * buffer);
            } else if (k >= 0 && k < block.share.rows) {
                const SharedAddress stage = block.ring.out();
                Sums sums = {};
                if (job.tiling.other_exists(tile, j0 + k)) block.multiply_row(pixels, k, stage, sums);
                if (job.staging_buffers == 1) __syncthreads();
                block.stage_sums(sums, block.staging + k % 2 * buffer);
            } else if (item >= 0 && k < 0) {
                block.take_f1(item, block.ring.out(), pixels);
            }
        }
        if (k == block.share.rows) break;
    }
}

}  // namespace

int correlation_mma(ForwardJob job, const Gpu& gpu, void* stream) {
    job.stages = 4, job.staging_buffers = 2;
    const auto bytes = [&] { return job.stages * kStageBytes + job.staging_buffers * kStagingBytes; };
    if (bytes() > gpu.shared_bytes) job.stages = 3;                           // 8.0: 153 of 163 KB
    if (bytes() > gpu.shared_bytes) job.stages = 2, job.staging_buffers = 1;  // 8.6, 8.9, 12.0: 94.5 of 99 KB
    // Few tiles: share the vertical displacements of a tile out. A block costs a row of time per row of f2
    // and about 6 to fetch f1.
    const int bands = job.tiling.bands(), d = job.tiling.displacements();
    job.tiling.layers = bands;
    const int64_t blocks = job.tiling.blocks();
    int64_t best = INT64_MAX;
    for (int splits = 1; splits <= std::min(d, 8); ++splits) {
        const int64_t cost = ceil_div<int64_t>(blocks * splits, gpu.multiprocessors) *
                             (ceil_div(d, splits) + kTileRows - 1 + 6);
        if (cost < best) best = cost, job.splits = splits;
    }
    job.tiling.layers = bands * job.splits;
    if (job.tiling.blocks() > INT32_MAX) return kBadSize;
    return for_float(job.dtype, [&](auto type) {
        return launch(correlation_mma_kernel<decltype(type)>, dim3(unsigned(job.tiling.blocks())),
                      dim3(kThreads), size_t(bytes()), stream, job);
    });
}

}  // namespace vda
