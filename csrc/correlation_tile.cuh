// What the fast kernels of correlation.h share: how the frame is cut into blocks, how pixels get into shared
// memory, how results get out.
//
// A stride s makes s x s interleaved lattices; on one of them the displacements are a dense D x D window. A
// block owns a tile of 8 rows of one lattice by 32 pixels: with stride 2 those are 16 columns of either x
// parity, so that planes are read and written in runs of 32 neighbouring x; with other strides 32 columns of
// one lattice. Slot 16 q + X of a row is column X of its half q. Warp w of the tensor core kernels owns slots
// 4 w .. 4 w + 3, that is 8 x 4 pixels of one lattice: two m16 tiles of 4 x 4, one above the other. A row of
// the other frame (24 of its columns for D = 21) serves both, which saves 42 % of the loads; 441 of the 24 x
// 24 products per pixel are wanted, 76.6 %.
#pragma once

#include "correlation.h"
#include "mma.cuh"

namespace vda {

constexpr int kTileRows = 8;
constexpr int kTileSlots = 32;
constexpr int kBand = 21;      // displacements along x that a block holds at once; FlowNetC has just these
constexpr int kMaxSlots = 72;  // of a row of the other frame: 2 (16 + 20)

// A channels-last map; distances in units of 16 bytes.
struct Features {
    const uint4* data;
    int64_t sample;
    int row, pixel;
    int units;  // that each pixel has
};

struct Tile {
    int b;
    int layer;  // which share of the work on these pixels
    int y, x;   // first pixel; outside the frame where there is nothing to do
};

struct Tiling {
    int64_t batch;
    int height, width, radius, stride;
    int layers;         // blocks per tile
    int window;         // columns that 4 columns meet, a multiple of 8
    int parities;       // x parities per block: 2 with stride 2, else 1
    int columns, rows;  // tiles along x and y, of each lattice
    int lattices_x, lattices_y;

    VDA_HD int displacements() const { return 2 * radius + 1; }
    VDA_HD int bands() const { return ceil_div(displacements(), kBand); }
    int64_t blocks() const { return batch * layers * columns * lattices_x * int64_t(rows) * lattices_y; }
    VDA_HD Tile tile(unsigned block) const {
        Tile t;
        const auto next = [&](int count) {
            const int index = int(block % unsigned(count));
            block /= unsigned(count);
            return index;
        };
        t.x = next(columns) * kTileSlots * (parities == 2 ? 1 : stride);
        t.x += next(lattices_x);
        t.y = next(rows) * kTileRows * stride;
        t.y += next(lattices_y);
        t.layer = next(layers);
        t.b = int(block);
        return t;
    }
    VDA_HD bool empty(const Tile& t) const { return t.x >= width || t.y >= height; }
    VDA_HD int x_of(const Tile& t, int slot) const {
        return t.x + slot % 16 * stride + slot / 16 * (parities == 2 ? 1 : 16 * stride);
    }
    // Slot that neighbours slot 0 along x, the n-th: stores of consecutive x.
    VDA_HD int slot_of_run(int n) const { return parities == 2 ? n % 2 * 16 + n / 2 : n; }
    VDA_HD int x_of_run(const Tile& t, int n) const { return t.x + n * (parities == 2 ? 1 : stride); }

    // The other frame: row k of a tile (pixel row a meets it at vertical displacement k - a), and the slots
    // of such a row that begins at displacement i0. Every parity has its own run of span() columns.
    VDA_HD int span() const { return kTileSlots / parities + window - 4; }
    VDA_HD int slots() const { return parities * span(); }
    VDA_HD int other_rows() const { return displacements() + kTileRows - 1; }
    VDA_HD int other_y(const Tile& t, int k) const { return t.y + (k - radius) * stride; }
    VDA_HD bool other_exists(const Tile& t, int k) const {
        const int y = other_y(t, k);
        return y >= 0 && y < height;
    }
    VDA_HD int other_x(const Tile& t, int i0, int slot) const {
        const int q = slot >= span();
        return t.x + q + (slot - q * span() + i0 - radius) * stride;
    }
    // First of the columns that slots 4 w .. 4 w + 3 of the tile meet.
    VDA_HD int first_other_slot(int w) const { return parities == 2 ? w / 4 * span() + w % 4 * 4 : 4 * w; }
};

// One block per tile; a launcher that wants more sets `layers`.
inline Tiling make_tiling(const CorrelationParams& p) {
    Tiling t{};
    t.batch = p.batch, t.height = p.height, t.width = p.width, t.radius = p.radius;
    t.stride = std::min(p.stride, std::max(p.height, p.width));  // beyond that every step leaves the frame
    t.layers = 1, t.window = ceil_div(std::min(displacements(p), kBand) + 3, 8) * 8;
    t.parities = t.stride == 2 ? 2 : 1;
    t.lattices_x = t.parities == 2 ? 1 : std::min(t.stride, p.width);
    t.lattices_y = std::min(t.stride, p.height);
    t.columns = ceil_div(t.parities == 2 ? p.width : ceil_div(p.width, t.stride), kTileSlots);
    t.rows = ceil_div(ceil_div(p.height, t.stride), kTileRows);
    return t;
}

// Where 16-byte unit `unit` of the pixel in `slot` goes, so that 8 consecutive slots, or 4 with two
// neighbouring units each, lie in different banks.
VDA_HD int swizzled(int slot, int unit) { return unit ^ ((slot & 3) << 1 | (slot >> 2 & 1)); }

// A ring of stages in shared memory; every thread starts the copies of a whole item in turn.
struct Ring {
    SharedAddress base;
    int stage_bytes, stages;
    int next_in = 0, next_out = 0;

    __device__ SharedAddress in() {
        const SharedAddress stage = base + next_in * stage_bytes;
        next_in = next_in + 1 == stages ? 0 : next_in + 1;
        return stage;
    }
    __device__ SharedAddress out() {
        const SharedAddress stage = base + next_out * stage_bytes;
        next_out = next_out + 1 == stages ? 0 : next_out + 1;
        return stage;
    }
};

// Starts to copy `count` pixels of one row of features, the n-th from x + n stride, `units` 16-byte units of
// each and zeros after them up to a multiple of 4 units; zeros as well where x lies outside the frame or the
// row does not exist. place(n, unit) is where they go; 4, 8, .. pixels further on it is as much further
// everywhere.
template <typename Place>
__device__ __forceinline__ void load_run(const Features& from, int64_t row, bool exists, int width, int x,
                                         int stride, int count, const Place& place) {
    const int padded = ceil_div(from.units, 4) * 4;
    const int shift = padded > 16 ? 5 : (padded > 8 ? 4 : (padded > 4 ? 3 : 2));  // threads per pixel
    const int unit = int(threadIdx.x) & ((1 << shift) - 1), step = int(blockDim.x) >> shift;
    int n = int(threadIdx.x) >> shift;
    if (unit >= padded) return;
    exists = exists && unit < from.units;
    SharedAddress to = place(n, unit);
    const int to_step = int(place(n + step, unit) - to);
    const uint4* at = from.data + row + int64_t(x + n * stride) * from.pixel + unit;
    const int64_t at_step = int64_t(step * stride) * from.pixel;
    if (exists && x >= 0 && x + (count - 1) * stride < width) {
#pragma unroll 4
        for (; n < count; n += step, at += at_step, to += to_step) copy_async_16(to, at);
    } else {
        for (; n < count; n += step, at += at_step, to += to_step) {
            const bool inside = x + n * stride >= 0 && x + n * stride < width;
            copy_async_16(to, at, exists && inside);
        }
    }
}

// Row k of the other frame from displacement i0 on: place(slot, unit).
template <typename Place>
__device__ __forceinline__ void load_other_row(const Tiling& tiling, const Tile& tile, const Features& from,
                                               int i0, int k, const Place& place) {
    const int64_t row = tile.b * from.sample + int64_t(tiling.other_y(tile, k)) * from.row;
    for (int q = 0; q < tiling.parities; ++q) {
        const int first = q * tiling.span();
        load_run(from, row, tiling.other_exists(tile, k), tiling.width, tiling.other_x(tile, i0, first),
                 tiling.stride, tiling.span(), [&](int n, int unit) { return place(first + n, unit); });
    }
}

// ---- results ----

// Sums of a tile in shared memory on their way out: [row of the tile][plane][slot], plane = displacement
// along x or channel. Pitches in floats.
struct Staging {
    float* sums;
    int row_pitch, plane_pitch;
};
// Pitches such that what the lanes of a warp hold of an m16n8 tile goes to 32 different banks.
constexpr int kPlanePitch = kTileSlots + 2;
VDA_HD constexpr int row_pitch(int planes) { return (planes * kPlanePitch + 15) / 32 * 32 + 16; }
static_assert(row_pitch(kBand) >= kBand * kPlanePitch, "rows overlap");

template <typename T>
__device__ __forceinline__ void store_4(T* to, const float (&v)[4]) {
    if constexpr (sizeof(T) == 4)
        store_vector(to, make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                                    __float_as_uint(v[3])));
    else
        store_vector(to, make_uint2(pack_pair(v[0], v[1], T()), pack_pair(v[2], v[3], T())));
}

// Whether for_each_run may take 4 values at once.
inline bool vector_stores(const Tiling& t, const void* out, Dtype dtype) {
    return (t.parities == 2 || t.stride == 1) && t.width % 4 == 0 &&
           reinterpret_cast<uintptr_t>(out) % (4 * size_of(dtype)) == 0;
}

// Calls write(element of the plane array, values) for what is staged, N = 4 or 1 neighbours along x at a
// time, with a whole run of x in consecutive lanes. first(a, y W + x) is the element of row a in plane 0,
// negative where the row is not wanted; planes lie plane_stride apart. The block has a multiple of 64
// threads.
template <int N, typename First, typename Write>
__device__ __forceinline__ void for_each_run(const Tiling& tiling, const Tile& tile, const Staging& staging,
                                             int planes, int64_t plane_stride, const First& first,
                                             const Write& write) {
    constexpr int lanes = kTileSlots / N;
    const int run = int(threadIdx.x) % lanes * N, worker = int(threadIdx.x) / lanes,
              workers = int(blockDim.x) / lanes;
    const int x = tiling.x_of_run(tile, run), slot = tiling.slot_of_run(run);
    if (x >= tiling.width) return;
    if constexpr (N == 4) {  // workers are a multiple of 8: each keeps its row
        const int a = worker % kTileRows, y = tile.y + a * tiling.stride;
        int64_t at = y < tiling.height ? first(a, y * tiling.width + x) : -1;
        if (at < 0) return;
        const float* from = staging.sums + a * staging.row_pitch + slot;
        const bool turn = tiling.parities == 2;  // 2 slots of each parity in turn, else 4 slots
        const int step = workers / kTileRows;
        at += worker / kTileRows * plane_stride;
        from += worker / kTileRows * staging.plane_pitch;
        for (int plane = worker / kTileRows; plane < planes; plane += step) {
            const float2 lower = *reinterpret_cast<const float2*>(from);
            const float2 upper = *reinterpret_cast<const float2*>(from + (turn ? 16 : 2));
            float v[4] = {lower.x, turn ? upper.x : lower.y, turn ? lower.y : upper.x, upper.y};
            write(at, v);
            at += step * plane_stride, from += step * staging.plane_pitch;
        }
    } else {
        for (int item = worker; item < planes * kTileRows; item += workers) {
            const int a = item % kTileRows, plane = item / kTileRows, y = tile.y + a * tiling.stride;
            const int64_t at = y < tiling.height ? first(a, y * tiling.width + x) : -1;
            float v[1] = {staging.sums[a * staging.row_pitch + plane * staging.plane_pitch + slot]};
            if (at >= 0) write(at + plane * plane_stride, v);
        }
    }
}

}  // namespace vda
