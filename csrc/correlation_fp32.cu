// Forward correlation in exact fp32.
//
// A block computes a tile of 8 x 32 pixels against 4 rows of the other frame and up to 21 displacements along
// x, with the channels in the outer loop: 8 of them per stage, in a ring of 23 KB stages. A thread holds 4 x
// 4 pixels by 7 displacements, 112 sums, and loads 26 vectors of 4 channels per 448 multiply-adds. Every
// column it loads is wanted; of the rows, 21 in 24 are, so the bound at D = 21 is 4.2 G multiply-adds for a
// 128 x 256 map of 256 channels, 143 us on 132 multiprocessors at 1.75 GHz.
#include "correlation_plan.cuh"

namespace vda {
namespace {

constexpr int kRowGroup = 4;  // rows of the other frame per block
constexpr int kSteps = 7;     // displacements along x per thread
constexpr int kMaxThreads = 64 * kBand / kSteps;
constexpr int kUnits = 2;  // of 4 channels, per pixel and stage

// Pixels in shared memory, 4 neighbours in 128 bytes and then 16 of padding: lanes whose pixels lie 4 apart
// read different banks. The second parity of a row of the other frame begins at place 48.
constexpr int kPixelBytes = 16 * kUnits;
constexpr int kQuadBytes = 4 * kPixelBytes + 16;
constexpr int kOtherPlaces = 96;
constexpr int kPlaces = kTileRows * kTileSlots + kRowGroup * kOtherPlaces;
constexpr int kStageBytes = kPlaces / 4 * kQuadBytes;
constexpr int kTableBytes = kPlaces * int(sizeof(int));
constexpr int kPitch = kTileSlots + 4;  // of staged results, in floats
constexpr int kRowPitch = kBand * kPitch;
static_assert(kTileRows * kRowPitch * sizeof(float) <= 2 * kStageBytes, "the results are staged in the ring");

VDA_HD constexpr int place_bytes(int place) { return place / 4 * kQuadBytes + place % 4 * kPixelBytes; }

// What a block computes: rows k0 .. k0 + 3 of the other frame, displacements i0 .. i0 + count - 1.
struct Share {
    Tile tile;
    int k0, i0, count;
    __device__ Share(const Tiling& tiling, unsigned block) : tile(tiling.tile(block)) {
        const int bands = tiling.bands();
        k0 = tile.layer / bands * kRowGroup, i0 = tile.layer % bands * kBand;
        count = min(kBand, tiling.displacements() - i0);
    }
};

// What a thread computes: 4 columns of 4 rows of the tile, against one row of the other frame.
struct Lane {
    int columns;    // which of 8 groups of 4
    int other_row;  // which of kRowGroup, lanes
    int half;       // of the tile, upper or lower; warps
    int step0;      // first of kSteps displacements; warps
    __device__ explicit Lane(int thread)
        : columns(thread % 8),
          other_row(thread % 32 / 8),
          half(thread / 32 % 2),
          step0(thread / 64 * kSteps) {}
};

// Distance of the pixel of a place from the first of its map; -1 where there is none.
__device__ int pixel_of(const ForwardJob& job, const Share& share, int place) {
    const Tiling& tiling = job.tiling;
    int x, y, row, pixel;
    if (place < kTileRows * kTileSlots) {
        x = tiling.x_of(share.tile, place % kTileSlots);
        y = share.tile.y + place / kTileSlots * tiling.stride;
        row = job.f1.row, pixel = job.f1.pixel;
    } else {
        place -= kTileRows * kTileSlots;
        const int k = share.k0 + place / kOtherPlaces, half = place % kOtherPlaces / 48;
        const int column = tiling.parities == 2 ? place % 48 : place % kOtherPlaces;
        if (column >= tiling.span() || k >= tiling.other_rows()) return -1;
        x = tiling.other_x(share.tile, share.i0,
                           tiling.parities == 2 ? half * tiling.span() + column : column);
        y = tiling.other_y(share.tile, k);
        row = job.f2.row, pixel = job.f2.pixel;
    }
    return x >= 0 && x < tiling.width && y >= 0 && y < tiling.height ? y * row + x * pixel : -1;
}

// Starts to copy 8 channels of all places of the table.
__device__ void start_copies(const ForwardJob& job, const Tile& tile, const int* table, int chunk,
                             SharedAddress stage) {
    const int unit = int(threadIdx.x) % kUnits, channel_unit = chunk * kUnits + unit;
    const uint4* f1 = job.f1.data + tile.b * job.f1.sample;
    const uint4* f2 = job.f2.data + tile.b * job.f2.sample;
    for (int place = int(threadIdx.x) / kUnits; place < kPlaces; place += int(blockDim.x) / kUnits) {
        const int pixel = table[place];
        const bool exists = pixel >= 0 && channel_unit < job.f1.units;
        const uint4* map = place < kTileRows * kTileSlots ? f1 : f2;
        copy_async_16(stage + place_bytes(place) + 16 * unit, map + (exists ? pixel + channel_unit : 0),
                      exists);
    }
}

__device__ __forceinline__ float4 read(SharedAddress at) {
    uint32_t r[4];
    load_unit(r, at);
    return make_float4(__uint_as_float(r[0]), __uint_as_float(r[1]), __uint_as_float(r[2]),
                       __uint_as_float(r[3]));
}

// 4 x 4 pixels by kSteps displacements, 4 channels. f1: pixel (0, 0); column e of the kSteps + 3 that the 4
// columns of pixels meet lies at f2[e % 4] + place_bytes(e).
__device__ __forceinline__ void multiply(float (&sums)[4][4][kSteps], SharedAddress f1,
                                         const SharedAddress (&f2)[4]) {
    float4 other[kSteps];  // a window that moves with c, column e in other[e % kSteps]
#pragma unroll
    for (int e = 0; e < kSteps - 1; ++e) other[e] = read(f2[e % 4] + place_bytes(e));
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        const int last = c + kSteps - 1;
        other[last % kSteps] = read(f2[last % 4] + place_bytes(last));
#pragma unroll
        for (int a = 0; a < 4; ++a) {
            const float4 own = read(f1 + place_bytes(a * kTileSlots + c));
#pragma unroll
            for (int i = 0; i < kSteps; ++i) sums[a][c][i] += own.x * other[(c + i) % kSteps].x;
#pragma unroll
            for (int i = 0; i < kSteps; ++i) sums[a][c][i] += own.y * other[(c + i) % kSteps].y;
#pragma unroll
            for (int i = 0; i < kSteps; ++i) sums[a][c][i] += own.z * other[(c + i) % kSteps].z;
#pragma unroll
            for (int i = 0; i < kSteps; ++i) sums[a][c][i] += own.w * other[(c + i) % kSteps].w;
        }
    }
}

// Writes the sums out, one row of the other frame after another through `staging`.
__device__ __forceinline__ void store_sums(const ForwardJob& job, const Share& share, const Lane& lane,
                                           const float (&sums)[4][4][kSteps], float* staging) {
    float* to = staging + 4 * lane.half * kRowPitch + lane.step0 * kPitch + 4 * lane.columns;
    for (int g = 0; g < kRowGroup; ++g) {
        __syncthreads();
#pragma unroll
        for (int a = 0; a < 4; ++a) {
#pragma unroll
            for (int i = 0; i < kSteps; ++i) {
                if (lane.other_row == g && lane.step0 + i < share.count)
                    *reinterpret_cast<float4*>(to + a * kRowPitch + i * kPitch) =
                        make_float4(sums[a][0][i], sums[a][1][i], sums[a][2][i], sums[a][3][i]);
            }
        }
        __syncthreads();
        const int d = job.tiling.displacements(), k = share.k0 + g;
        job.store_planes<float>(share.tile, {staging, kRowPitch, kPitch}, 0, d, k, share.i0, share.count);
    }
}

__global__ void __launch_bounds__(kMaxThreads, 2) correlation_fp32_kernel(ForwardJob job) {
    unsigned char* shared = dynamic_shared<unsigned char>();
    int* table = reinterpret_cast<int*>(shared);
    unsigned char* stages = shared + kTableBytes;
    const Tiling& tiling = job.tiling;
    const Share share(tiling, blockIdx.x);
    if (tiling.empty(share.tile)) return;
    for (int place = int(threadIdx.x); place < kPlaces; place += int(blockDim.x))
        table[place] = pixel_of(job, share, place);
    __syncthreads();

    const Lane lane{int(threadIdx.x)};
    const SharedAddress ring = shared_address(stages);
    const int column = tiling.parities == 2 ? lane.columns / 4 * 48 + lane.columns % 4 * 4 : 4 * lane.columns;
    const int first = kTileRows * kTileSlots + lane.other_row * kOtherPlaces + column + lane.step0;
    SharedAddress f1 = ring + place_bytes(4 * lane.half * kTileSlots + 4 * lane.columns), f2[4];
#pragma unroll  // the padding between places first and first + e depends on e % 4
    for (int e = 0; e < 4; ++e) f2[e] = ring + place_bytes(first + e) - place_bytes(e);
    // Row a of the tile meets row k at vertical displacement k - a in [0, d): some of this warp's rows do.
    const bool needed =
        share.k0 + kRowGroup - 1 >= 4 * lane.half && share.k0 < 4 * lane.half + 3 + tiling.displacements();
    bool any = false;  // of the rows of the other frame exists
    for (int g = 0; g < kRowGroup; ++g)
        any = any || (share.k0 + g < tiling.other_rows() && tiling.other_exists(share.tile, share.k0 + g));
    const int chunks = any ? ceil_div(job.f1.units, kUnits) : 0;
    const auto start = [&](int chunk, int stage) {
        if (chunk < chunks) start_copies(job, share.tile, table, chunk, ring + stage * kStageBytes);
        commit_copies();  // an empty group where there is no chunk, so that counting groups counts chunks
    };

    float sums[4][4][kSteps] = {};
    for (int chunk = 0; chunk < job.stages - 1; ++chunk) start(chunk, chunk);
#pragma unroll 1  // unrolled, ptxas moves the sums between registers all the time
    for (int unit = 0; unit < chunks * kUnits; ++unit) {
        if (unit % kUnits == 0) {
            wait_copies(job.stages - 2);
            __syncthreads();
            const int stage = int(f1 - ring) / kStageBytes;  // the one before it is free now
            start(unit / kUnits + job.stages - 1, (stage == 0 ? job.stages : stage) - 1);
        }
        if (needed) multiply(sums, f1, f2);
        int step = unit % kUnits == 0 ? 16 : kStageBytes - 16;
        if (int(f1 - ring) + step >= job.stages * kStageBytes) step -= job.stages * kStageBytes;
        f1 += step;
#pragma unroll
        for (SharedAddress& at : f2) at += step;
    }
    wait_copies(0);
    // Worked out anew, so that it took no registers in the loop.
    store_sums(job, Share(tiling, reread_block_index()), Lane(reread_thread_index()), sums,
               reinterpret_cast<float*>(stages));
}

}  // namespace

int correlation_fp32(ForwardJob job, const Gpu& gpu, void* stream) {
    // Two blocks per multiprocessor: 140 KB with 3 stages, 95 KB with 2.
    job.stages = gpu.shared_bytes > 150 * 1024 ? 3 : 2;
    const int count = std::min(kBand, job.tiling.displacements());
    job.tiling.layers = job.tiling.bands() * ceil_div(job.tiling.other_rows(), kRowGroup);
    if (job.tiling.blocks() > INT32_MAX) return kBadSize;
    return launch(correlation_fp32_kernel, dim3(unsigned(job.tiling.blocks())),
                  dim3(unsigned(64 * ceil_div(count, kSteps))),
                  size_t(kTableBytes + job.stages * kStageBytes), stream, job);
}

}  // namespace vda
