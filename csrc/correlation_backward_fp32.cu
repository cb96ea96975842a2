// Gradients of correlation in exact fp32, the sums of correlation_backward_mma.cu on the ordinary cores.
//
// A block owns 8 x 32 pixels by kChannels channels and walks over the rows of neighbours. A thread holds 4 x
// 4 pixels by 8 channels, 128 sums. For one displacement along x after the other it loads one new column of
// neighbours, the other three of its window stay in registers, and 16 weights: 6 vectors of 4 per 128
// multiply-adds. The weights lie in shared memory as in grad_out, [row of the tile][displacement][slot].
#include "correlation_plan.cuh"

namespace vda {
namespace {

constexpr int kGroup = 32;  // channels per warp
constexpr int kWeightBytes = kTileRows * kBand * kTileSlots * int(sizeof(float));
constexpr int kPitch = kTileSlots + 4;  // of staged results, in floats
constexpr int kRowPitch = kGroup * kPitch;

// Neighbours in shared memory, as in correlation_fp32.cu: 16 bytes of padding after 4 columns, the second
// parity from place 48 on, so that lanes whose pixels lie 4 columns apart read different banks.
constexpr int kPlaces = 96;
template <int kChannels>
VDA_HD constexpr int place_bytes(int place) {
    return place * kChannels * int(sizeof(float)) + place / 4 * 16;
}
template <int kChannels>
constexpr int kStageBytes = place_bytes<kChannels>(kPlaces) + kWeightBytes;

template <int kChannels>
struct Block {
    const BackwardJob& job;
    Tile tile;
    Features features;  // of this block's channels
    SharedAddress ring;
    int columns;  // of this thread: which of 8 groups of 4,
    int unit;     // the first of its two units of channels,
    int half;     // which half of the tile,
    int group;    // which 32 channels

    __device__ void start(int i0, int k, SharedAddress stage) const {
        const Tiling& tiling = job.tiling;
        load_other_row(tiling, tile, features, i0, k, [&](int slot, int unit) {
            const int place = slot < tiling.span() ? slot : slot - tiling.span() + 48;
            return stage + place_bytes<kChannels>(place) + 16 * unit;
        });
        // Weights: lanes along x, warps along the rows of the tile.
        stage += place_bytes<kChannels>(kPlaces);
        const int slot = tiling.slot_of_run(int(threadIdx.x) % 32),
                  count = min(kBand, tiling.displacements() - i0);
        const float* grad_out = static_cast<const float*>(job.grad_out.data);
        const uint32_t inside = displacements_inside(job, tile, slot, i0, count);
        for (int a = int(threadIdx.x) / 32; a < kTileRows; a += int(blockDim.x) / 32) {
            const WeightRun run = weight_run(job, tile, a, slot, i0, k);
            const SharedAddress to = stage + (a * kBand * kTileSlots + slot) * int(sizeof(float));
#pragma unroll 4
            for (int i = 0; i < count; ++i) {
                const bool exists = run.exists && (inside >> i & 1);
                copy_async_4(to + i * kTileSlots * int(sizeof(float)),
                             exists ? grad_out + run.first + i * run.step : grad_out, exists);
            }
        }
    }

    // sums[a][c][channel] += weights x neighbours of one row, `count` displacements.
    __device__ void multiply(float (&sums)[4][4][8], SharedAddress stage, int count) const {
        const int first = job.tiling.parities == 2 ? columns / 4 * 48 + columns % 4 * 4 : 4 * columns;
        SharedAddress column = stage + place_bytes<kChannels>(first) + 16 * unit;
        SharedAddress weight = stage + place_bytes<kChannels>(kPlaces) +
                               (4 * half * kBand * kTileSlots + 4 * columns) * int(sizeof(float));
        float window[4][8];  // column n in window[n % 4]
#pragma unroll
        for (int n = 0; n < 3; ++n) read_column(window[n], column + place_bytes<kChannels>(n));
#pragma unroll 1
        for (int i = 0; i < count; i += 4, column += place_bytes<kChannels>(4)) {
#pragma unroll
            for (int u = 0; u < 4; ++u, weight += kTileSlots * int(sizeof(float))) {
                if (i + u >= count) break;
                read_column(window[(u + 3) % 4], column + place_bytes<kChannels>(u + 3));
#pragma unroll
                for (int a = 0; a < 4; ++a) {
                    float w[4];
                    read(w, weight + a * kBand * kTileSlots * int(sizeof(float)));
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
#pragma unroll
                        for (int n = 0; n < 8; ++n) sums[a][c][n] += w[c] * window[(u + c) % 4][n];
                    }
                }
            }
        }
    }
    __device__ static void read(float (&v)[4], SharedAddress at) {
        uint32_t r[4];
        load_unit(r, at);
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = __uint_as_float(r[i]);
    }
    __device__ static void read_column(float (&v)[8], SharedAddress at) {
        float lower[4], upper[4];
        read(lower, at), read(upper, at + 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = lower[i], v[4 + i] = upper[i];
    }

    // Through shared memory, 32 channels after another.
    __device__ void store(const float (&sums)[4][4][8], float* staging, int c0) const {
        const int channels = min(features.units * 4, job.channels - c0);
        float* to = staging + 4 * half * kRowPitch + unit % 8 * 4 * kPitch + 4 * columns;
        for (int first = 0; first < channels; first += kGroup) {
            __syncthreads();
#pragma unroll
            for (int a = 0; a < 4; ++a) {
#pragma unroll
                for (int n = 0; n < 8; ++n) {
                    const float4 v = make_float4(sums[a][0][n] * job.scale, sums[a][1][n] * job.scale,
                                                 sums[a][2][n] * job.scale, sums[a][3][n] * job.scale);
                    if (kGroup * group == first)
                        *reinterpret_cast<float4*>(to + a * kRowPitch + n * kPitch) = v;
                }
            }
            __syncthreads();
            store_channels<float>(job, tile, {staging, kRowPitch, kPitch}, c0 + first,
                                  min(kGroup, channels - first));
        }
    }
};

template <int kChannels>
__global__ void __launch_bounds__(2 * kChannels, 1) correlation_backward_fp32_kernel(BackwardJob job) {
    unsigned char* shared = dynamic_shared<unsigned char>();
    const Tile tile = job.tiling.tile(blockIdx.x);
    if (job.tiling.empty(tile)) return;
    const int unit0 = tile.layer * job.block_units, thread = int(threadIdx.x);
    Features features = job.features;
    features.data += unit0;
    features.units = min(job.block_units, features.units - unit0);
    // Lanes: 8 groups of 4 columns by 4 groups of 8 channels. Warps: halves of the tile by groups of 32
    // channels.
    const int half = thread / 32 % 2, group = thread / 64;
    const Block<kChannels> block{
        job,  tile, features, shared_address(shared), thread % 8, group * 8 + thread % 32 / 8 * 2,
        half, group};
    const Walk walk(job.tiling, tile, 1);
    Walk::At loading = walk.begin(), multiplying = loading;
    float sums[4][4][8] = {};
    for (int item = -1; item < walk.items; ++item) {
        if (item >= 0) {
            wait_copies(0);
            __syncthreads();
        }
        if (item + 1 < walk.items) {
            block.start(loading.i0, loading.k, block.ring + (item + 1) % 2 * kStageBytes<kChannels>);
            commit_copies();
            walk.advance(loading);
        }
        if (item < 0) continue;
        const int k = multiplying.k, count = min(kBand, job.tiling.displacements() - multiplying.i0);
        // Some row of this half meets row k, and there are channels.
        if (k >= 4 * half && k < 4 * half + 3 + job.tiling.displacements() && group * 8 < features.units)
            block.multiply(sums, block.ring + item % 2 * kStageBytes<kChannels>, count);
        walk.advance(multiplying);
    }
    block.store(sums, reinterpret_cast<float*>(shared), unit0 * 4);
}

template <int kChannels>
int run(BackwardJob job, void* stream) {
    static_assert(kTileRows * kRowPitch * sizeof(float) <= 2 * kStageBytes<kChannels>,
                  "results are staged in the ring");
    job.block_units = kChannels / 4;
    job.tiling.layers = ceil_div(job.features.units, job.block_units);
    if (job.tiling.blocks() > INT32_MAX) return kBadSize;
    return launch(correlation_backward_fp32_kernel<kChannels>, dim3(unsigned(job.tiling.blocks())),
                  dim3(2 * kChannels), size_t(2 * kStageBytes<kChannels>), stream, job);
}

}  // namespace

int correlation_backward_fp32(BackwardJob job, const Gpu& gpu, void* stream) {
    // 139 KB of shared memory for 128 channels, 91 KB for 64. The smaller blocks also where there are few
    // tiles.
    const int64_t blocks = job.tiling.blocks() * ceil_div(job.features.units, 32);
    const bool large = gpu.shared_bytes >= 2 * kStageBytes<128> && blocks >= gpu.multiprocessors;
    return large ? run<128>(job, stream) : run<64>(job, stream);
}

}  // namespace vda
