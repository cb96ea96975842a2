// Gradients of correlation on tensor cores: fp16 and bf16, and fp32 rounded to TF32.
//
// Both gradients are a banded matrix product: grad(p) = sum over the neighbours p' of p of w(p, p')
// features(p'), with w(p, p') = grad_out at displacement p' - p of pixel p for f1 and at displacement p - p'
// of pixel p' for f2. A block owns 8 x 32 pixels by up to 128 channels, 128 accumulators per thread, and
// walks over the rows of neighbours. Per stage (two rows of 16 bits, one of 32 bits; 36 KB) a warp multiplies
// its weights, 32 pixels x 96 bytes, by 96 bytes of neighbours x 128 channels: 96 mma. The weights come from
// grad_out as it lies, whatever its strides: every thread holds one pixel (a pair of neighbouring x at 16
// bits), gathers its D values of a row and shifts them to where the row of neighbours has them. Shared memory
// is the narrowest here too: about 1600 clocks per stage against 768 to 1250 of mma, 26 us per gradient of
// 128 x 256 pixels and 256 channels on 132 multiprocessors at 1.75 GHz (two waves of 14 stages). What lies up
// to 3 steps outside the window of a pixel is multiplied by zero: if it is not finite, the gradient is not.
#include "correlation_plan.cuh"

namespace vda {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 128;  // per block, at most
constexpr int kGroup = 32;      // channels whose results are staged at once
constexpr int kStageBytes = 2 * kMaxSlots * kChannels * 2;
// Weights of a warp: 6 units of 16 bytes (96 bytes of neighbours) x 32 pixels. The 64 bytes between warps
// keep the writes of 8 neighbouring threads, which go to two warps, in different banks.
constexpr int kWarpWeightBytes = 6 * 32 * 16 + 64;
constexpr int kWeightBytes = 8 * kWarpWeightBytes;
constexpr int kStagedBytes = kTileRows * row_pitch(kGroup) * int(sizeof(float));
static_assert(kStagedBytes <= 2 * kStageBytes, "the results are staged in the ring");

using Sums = float[2][kChannels / 8][4];  // [m16 tile][n8 tile][of mma]

// The displacements [i0, i0 + count) along x that a walk over the rows takes in.
struct Band {
    int i0, count;
    uint32_t inside[2];  // displacements_inside() of both halves; at 32 bits of this thread's in [0]
};

template <typename T>
struct Block {
    static constexpr int kRows = 4 / sizeof(T);  // of neighbours per stage
    static constexpr int kPixelBytes = kChannels * sizeof(T);
    static constexpr int kWords = sizeof(T) == 2 ? 12 : 24;  // of one pixel's weights for one row

    const BackwardJob& job;
    Tile tile;
    Features features;  // of this block's channels
    Ring ring;
    unsigned char* weights;
    int warp, lane;

    // ---- neighbours ----

    __device__ void load_rows(int i0, int k, SharedAddress stage) const {
        for (int r = 0; r < kRows; ++r) {
            load_other_row(job.tiling, tile, features, i0, k + r, [&](int slot, int unit) {
                return stage + (r * job.tiling.slots() + slot) * kPixelBytes + 16 * swizzled(slot, unit);
            });
        }
    }

    // ---- weights ----

    // This thread's share: pixel column X of both halves in row (k + part) at 16 bits, of half `part` at 32
    // bits.
    __device__ int pixel_row() const { return int(threadIdx.x) / 32; }
    __device__ int column() const { return int(threadIdx.x) % 16; }
    __device__ int part() const { return int(threadIdx.x) / 16 % 2; }

    __device__ Band band(int i0) const {
        Band band{i0, min(kBand, job.tiling.displacements() - i0), {}};
        const int first = sizeof(T) == 2 ? 0 : part();
        band.inside[0] = displacements_inside(job, tile, 16 * first + column(), i0, band.count);
        if (sizeof(T) == 2) band.inside[1] = displacements_inside(job, tile, 16 + column(), i0, band.count);
        return band;
    }

    // raw[i]: weight of displacement i of the band; at 16 bits half 0 in the lower and half 1 in the upper
    // bits.
    __device__ void gather(const Band& band, int k, uint32_t (&raw)[kBand]) const {
        if (sizeof(T) == 4) {
            gather_half<uint32_t>(band, k, part(), [&](int i, uint32_t v) { raw[i] = v; });
        } else if (job.paired) {
            gather_half<uint32_t>(band, k + part(), 0, [&](int i, uint32_t v) { raw[i] = v; });
        } else {
            gather_half<uint16_t>(band, k + part(), 0, [&](int i, uint32_t v) { raw[i] = v; });
            gather_half<uint16_t>(band, k + part(), 1, [&](int i, uint32_t v) { raw[i] |= v << 16; });
        }
    }
    template <typename Word, typename Put>
    __device__ void gather_half(const Band& band, int k, int half, const Put& put) const {
        const WeightRun run = weight_run(job, tile, pixel_row(), 16 * half + column(), band.i0, k);
        const uint32_t bits = run.exists ? band.inside[sizeof(T) == 2 ? half : 0] : 0;
        const T* from = static_cast<const T*>(job.grad_out.data) + run.first;
#pragma unroll
        for (int i = 0; i < kBand; ++i, from += run.step)
            put(i, bits >> i & 1 ? uint32_t(*reinterpret_cast<const Word*>(from)) : 0u);
    }

    // Moves what gather() found to its columns of the row of neighbours: column n of 24 holds displacement
    // n - X % 4. words[half] at 16 bits.
    __device__ void align(const uint32_t (&raw)[kBand], uint32_t (&words)[kRows][kWords]) const {
        const bool by_one = column() & 1, by_two = column() & 2;
        if constexpr (sizeof(T) == 2) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t (&w)[kWords] = words[half];
#pragma unroll
                for (int n = 0; n < kWords; ++n) {
                    const uint32_t lower = 2 * n < kBand ? raw[2 * n] : 0,
                                   upper = 2 * n + 1 < kBand ? raw[2 * n + 1] : 0;
                    w[n] = half == 0 ? (lower & 0xffffu) | upper << 16 : lower >> 16 | (upper & 0xffff0000u);
                }
#pragma unroll
                for (int n = kWords - 1; n >= 0; --n) {
                    const uint32_t moved = w[n] << 16 | (n > 0 ? w[n - 1] >> 16 : 0);
                    w[n] = by_one ? moved : w[n];
                }
#pragma unroll
                for (int n = kWords - 1; n >= 0; --n) w[n] = by_two ? (n > 0 ? w[n - 1] : 0) : w[n];
            }
        } else {
            uint32_t (&w)[kWords] = words[0];
#pragma unroll
            for (int n = 0; n < kWords; ++n) w[n] = n < kBand ? round_to_tf32(raw[n]) : 0;
#pragma unroll
            for (int n = kWords - 1; n >= 0; --n) w[n] = by_one ? (n > 0 ? w[n - 1] : 0) : w[n];
#pragma unroll
            for (int n = kWords - 1; n >= 0; --n) w[n] = by_two ? (n > 1 ? w[n - 2] : 0) : w[n];
        }
    }
    __device__ void put_weights(const uint32_t (&raw)[kBand], unsigned char* to) const {
        uint32_t words[kRows][kWords];
        align(raw, words);
        constexpr int units_of_8 = kWords / 12;  // 16-byte units that hold 8 columns
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            const int half = kRows == 2 ? i : part(), first = kRows == 2 ? eights() * part() : 0;
            const int owner = 4 * half + column() / 4, pixel = 4 * pixel_row() + column() % 4;
            uint4* at = reinterpret_cast<uint4*>(to + owner * kWarpWeightBytes) + first * 32 + pixel;
#pragma unroll
            for (int u = 0; u < kWords / 4; ++u) {
                if (u < eights() * units_of_8)
                    at[32 * u] = make_uint4(words[i][4 * u], words[i][4 * u + 1], words[i][4 * u + 2],
                                            words[i][4 * u + 3]);
            }
        }
    }

    // ---- product ----

    // Groups of 8 neighbours in a row; as many k-steps in a stage.
    __device__ int eights() const { return job.tiling.window / 8; }

    // Where this lane's B operands of one k-step begin, see load_group().
    struct Lanes {
        SharedAddress at[2][2];
    };
    __device__ Lanes lanes_of(SharedAddress stage, int step) const {
        Lanes lanes;
        const int slot0 = job.tiling.first_other_slot(warp);
        if constexpr (sizeof(T) == 2) {
            // 16 neighbours of two rows of 8 eights(). Lanes 8 .. 15 and 24 .. 31 name the second 8 of them,
            // lanes 16 .. 31 the second 8 channels.
            const int eight = 2 * step + lane / 8 % 2, row = eight >= eights();
            const int slot = slot0 + (eight - row * eights()) * 8 + lane % 8;
            const SharedAddress pixel = stage + (row * job.tiling.slots() + slot) * kPixelBytes;
#pragma unroll
            for (int i = 0; i < 4; ++i)
                lanes.at[i / 2][i % 2] = pixel + 16 * swizzled(slot, 2 * i + lane / 16);
        } else {
            // 8 neighbours, two per lane.
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int slot = slot0 + 8 * step + lane % 4 + 4 * i;
                lanes.at[0][i] = lanes.at[1][i] = stage + slot * kPixelBytes + 16 * swizzled(slot, lane / 4);
            }
        }
        return lanes;
    }
    // B operands of 32 channels: b[n] for their n-th n8 tile, see channel_of().
    __device__ static void load_group(uint32_t (&b)[4][2], const Lanes& lanes, int group) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            uint32_t r[4];
            if constexpr (sizeof(T) == 2) {
                load_matrices_transposed(r, lanes.at[group % 2][i] + group / 2 * 128);
#pragma unroll
                for (int n = 0; n < 4; ++n) b[2 * i + n / 2][n % 2] = r[n];
            } else {  // ldmatrix cannot transpose 32 bits: a lane takes 4 channels, one for each n8 tile
                load_unit(r, lanes.at[0][i] + group * 128);
#pragma unroll
                for (int n = 0; n < 4; ++n) b[n][i] = round_to_tf32(r[n]);
            }
        }
    }

    // sums += weights x neighbours for m16 tiles [kBegin, kEnd). Loads run one group ahead of the products;
    // the last one may read channels that nobody wrote, and drops them.
    template <int kBegin, int kEnd>
    __device__ void multiply(SharedAddress stage, const unsigned char* from, Sums& sums) const {
        const SharedAddress a_lane =
            shared_address(from + warp * kWarpWeightBytes) + (lane / 16 * 32 + lane % 16) * 16;
        const int groups = ceil_div(features.units * 16, kGroup * int(sizeof(T)));
#pragma unroll
        for (int step = 0; step < 3; ++step) {
            if (step >= eights()) break;
            uint32_t a[2][4], b[2][4][2];
            const Lanes lanes = lanes_of(stage, step);
#pragma unroll
            for (int m = kBegin; m < kEnd; ++m) load_matrices(a[m], a_lane + (64 * step + 16 * m) * 16);
            load_group(b[0], lanes, 0);
#pragma unroll
            for (int group = 0; group < kChannels / kGroup; ++group) {
                if (group >= groups) break;
                if (group + 1 < kChannels / kGroup) load_group(b[(group + 1) % 2], lanes, group + 1);
#pragma unroll
                for (int n = 0; n < 4; ++n) {
#pragma unroll
                    for (int m = kBegin; m < kEnd; ++m)
                        multiply_add(sums[m][4 * group + n], a[m], b[group % 2][n][0], b[group % 2][n][1],
                                     T());
                }
            }
        }
    }
    __device__ void multiply_rows(int k, SharedAddress stage, const unsigned char* from, Sums& sums) const {
        const bool upper = k < job.tiling.displacements() + 3, lower = k + kRows - 1 >= 4;
        if (upper && lower)
            multiply<0, 2>(stage, from, sums);
        else if (upper)
            multiply<0, 1>(stage, from, sums);
        else
            multiply<1, 2>(stage, from, sums);
    }

    // ---- results ----

    // Channel (of its group of 32) of column `column` of n8 tile n.
    __device__ static int channel_of(int n, int column) {
        return sizeof(T) == 2 ? 8 * n + column : 4 * column + n;
    }

    template <int kGroupIndex>
    __device__ void store_group(const Sums& sums, float* staging, int c0) const {
        const int channels = min(features.units * 16 / int(sizeof(T)), job.channels - c0);  // of this block
        if (kGroupIndex * kGroup >= channels) return;
        constexpr int pitch = row_pitch(kGroup);
        const int g = lane / 4, t = lane % 4;
        __syncthreads();
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int a = 4 * m + e / 2 * 2 + g / 4, channel = channel_of(n, 2 * t + e % 2);
                    staging[a * pitch + channel * kPlanePitch + 4 * warp + g % 4] =
                        sums[m][4 * kGroupIndex + n][e] * job.scale;
                }
            }
        }
        __syncthreads();
        store_channels<T>(job, tile, {staging, pitch, kPlanePitch}, c0 + kGroupIndex * kGroup,
                          min(kGroup, channels - kGroupIndex * kGroup));
    }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) correlation_backward_mma_kernel(BackwardJob job) {
    unsigned char* shared = dynamic_shared<unsigned char>();
    const Tile tile = job.tiling.tile(blockIdx.x);
    if (job.tiling.empty(tile)) return;
    const int unit0 = tile.layer * job.block_units;
    Features features = job.features;
    features.data += unit0;
    features.units = min(job.block_units, features.units - unit0);
    Block<T> block{job,
                   tile,
                   features,
                   {shared_address(shared), kStageBytes, job.stages},
                   shared + job.stages * kStageBytes,
                   int(threadIdx.x) / 32,
                   int(threadIdx.x) % 32};
    const Walk walk(job.tiling, tile, Block<T>::kRows);
    Walk::At loading = walk.begin(), gathering = loading, multiplying = loading;
    uint32_t raw[kBand] = {};
    Band band{};
    const int buffer = job.weight_buffers == 2 ? kWeightBytes : 0;
    // Between two barriers a warp copies neighbours of a later item, puts down the weights of the next one
    // and gathers those of the one after that, and multiplies. With two buffers of weights either may come
    // first: warps w and w + 4, which share a tensor core, differ. With one, the weights come last.
    enum Action { kCopy, kWeigh, kMultiply };
    const int order = job.weight_buffers == 1 ? kCopy | kMultiply << 4 | kWeigh << 8
                      : block.warp < 4        ? kCopy | kWeigh << 4 | kMultiply << 8
                                              : kMultiply | kCopy << 4 | kWeigh << 8;
    Sums sums = {};
    for (int item = -max(job.stages - 1, 2); item < walk.items; ++item) {
        if (item >= 0) {
            wait_copies(job.stages - 2);
            __syncthreads();  // this item and its weights are there for all, the last one's stage is free
        }
#pragma unroll 1  // one copy of the code for all orders
        for (int turn = 0; turn < 12; turn += 4) {
            const int action = order >> turn & 15;
            if (action == kMultiply && item >= 0) {
                block.multiply_rows(multiplying.k, block.ring.out(), block.weights + item % 2 * buffer, sums);
                walk.advance(multiplying);
            } else if (action == kCopy) {
                const int copied = item + job.stages - 1;
                if (copied >= 0 && copied < walk.items) {
                    block.load_rows(loading.i0, loading.k, block.ring.in());
                    walk.advance(loading);
                }
                commit_copies();  // an empty group where there is no item: counting groups counts items
            } else if (action == kWeigh) {
                if (job.weight_buffers == 1) __syncthreads();
                if (item + 1 >= 0 && item + 1 < walk.items)
                    block.put_weights(raw, block.weights + (item + 1) % 2 * buffer);
                if (item + 2 >= 0 && item + 2 < walk.items) {
                    if (gathering.k == walk.first_row) band = block.band(gathering.i0);
                    block.gather(band, gathering.k, raw);  // on its way until the next turn
                    walk.advance(gathering);
                }
            }
        }
    }
    wait_copies(0);
    float* staging = reinterpret_cast<float*>(shared);
    const int c0 = unit0 * 16 / int(sizeof(T));
    block.template store_group<0>(sums, staging, c0);
    block.template store_group<1>(sums, staging, c0);
    block.template store_group<2>(sums, staging, c0);
    block.template store_group<3>(sums, staging, c0);
}

}  // namespace

int correlation_backward_mma(BackwardJob job, const Gpu& gpu, void* stream) {
    job.stages = 4, job.weight_buffers = 2;
    const auto bytes = [&] { return job.stages * kStageBytes + job.weight_buffers * kWeightBytes; };
    if (bytes() > gpu.shared_bytes) job.stages = 3;                          // 8.0: 157 of 163 KB
    if (bytes() > gpu.shared_bytes) job.stages = 2, job.weight_buffers = 1;  // 8.6, 8.9, 12.0: 96.5 of 99 KB
    // Few tiles: fewer channels per block. Gathering the weights costs about as much as 48 channels.
    const int group_units = kGroup * size_of(job.dtype) / 16,
              groups = ceil_div(job.features.units, group_units);
    int64_t best = INT64_MAX;
    for (const int per_block : {4, 2, 1}) {
        job.tiling.layers = ceil_div(groups, per_block);
        const int64_t cost =
            ceil_div<int64_t>(job.tiling.blocks(), gpu.multiprocessors) * (kGroup * per_block + 48);
        if (cost < best) best = cost, job.block_units = per_block * group_units;
    }
    job.tiling.layers = ceil_div(job.features.units, job.block_units);
    if (job.tiling.blocks() > INT32_MAX) return kBadSize;
    return for_float(job.dtype, [&](auto type) {
        return launch(correlation_backward_mma_kernel<decltype(type)>, dim3(unsigned(job.tiling.blocks())),
                      dim3(kThreads), size_t(bytes()), stream, job);
    });
}

}  // namespace vda
