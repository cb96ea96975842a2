// The phases of the tiled CUDA kernel of aggregate_labels.h; aggregate_labels.cu says how they follow each
// other and what they cost. A block of kThreads threads owns a tile of the result and works through its
// sources, the frame itself and then the neighbours: the softmax of a window of the source goes to shared
// memory, four classes to a float4, and every pixel of the tile collects from there.
#pragma once

#include "aggregate_labels.h"
#include "sighting.cuh"

namespace vda {
namespace tiled {

constexpr int kTileX = 32, kTileY = 16, kTile = kTileX * kTileY;
constexpr int kPixels = 4;  // of a thread, one above the other
constexpr int kThreads = kTile / kPixels;
constexpr int kStagers = 4;  // threads that read one low-resolution pixel
// Pixels of a source that are at hand. A row is a multiple of 128 bytes: lanes whose taps lie in different
// rows then still meet different banks.
constexpr int kWindowX = 40, kWindowY = 19, kWindow = kWindowX * kWindowY;
constexpr int kMaxWindows = 16;  // of one source and tile; beyond that, taps are cheaper one by one
constexpr int kQuads = 5, kClasses = 4 * kQuads;  // classes whose sums a thread holds at once
constexpr int kRun = 8;                           // rows of a window that one thread fills at most,
constexpr int kTogether = 2;                      // and how many of them at once
// Blocks at a time on a multiprocessor: shared memory has room for three in 228 KB (9.0, 10.x), for two in
// 164 KB (8.0), and registers do not matter where it has room for one.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ / 100 == 9 || __CUDA_ARCH__ / 100 == 10)
constexpr int kBlocks = 3;
#else
constexpr int kBlocks = 2;
#endif
constexpr unsigned kAll = 0xffffffffu;
constexpr int kFar = 1 << 30;

// A sum of exponentials is used from here on. They are relative to the interpolated maxima of the four
// logits around a pixel, which is no less than the maximum at the pixel: 2^-80 is a gap of 55.
constexpr float kLeastSum = 8.2718061e-25f;
constexpr float kLowest = -1e30f;  // minus infinity, but 0 times it is 0
constexpr float kLog2e = 1.44269504f;

// What a launch hands to its blocks beside the parameters. Sizes of shared memory depend on K, J and the
// scale of the upsampling.
struct Layout {
    int quads;     // of classes that are done at once, at most kQuads
    int capacity;  // low-resolution pixels under a window, at most
    int inverse, seen, logits, largest, boxes, tile, plans, bytes;  // offsets in shared memory, and its size
};
struct Work {
    AggregateLabelsParams p;
    Axis axis_y, axis_x;
    float limit;
    Layout layout;
};

struct Tile {
    int b, y, x;
};

// Pixels [y, y + rows) x [x, x + columns) of a source; the last row and column may lie outside the frame.
struct Window {
    int y, x, rows, columns;
};

// The low-resolution pixels that a window is interpolated from. Every pixel of the window lies between one of
// them, the one to its right, the one below and the one below that; what would lie beyond the last row or
// column repeats it.
struct Region {
    int row, column, rows, columns;
};

// The low-resolution logits [K, h, w] of source s: 0 is the frame itself, 1 + j its neighbour j.
struct Logits {
    const void* data;
    Dtype dtype;
    int class_stride, row_stride, column_stride;

    __device__ Logits(const AggregateLabelsParams& p, int b, int s) {
        const Stack<View>& near = p.neighbour_logits;
        const int64_t first =
            s == 0 ? b * p.logits.stride[0] : b * near.first.stride[0] + (s - 1) * near.step;
        data = static_cast<const char*>(s == 0 ? p.logits.data : near.first.data) + first * size_of(p.dtype);
        dtype = p.dtype;
        class_stride = int(s == 0 ? p.logits.stride[1] : near.first.stride[1]);
        row_stride = int(s == 0 ? p.logits.stride[2] : near.first.stride[2]);
        column_stride = int(s == 0 ? p.logits.stride[3] : near.first.stride[3]);
    }
    __device__ float at(int k, int offset) const {
        const int64_t i = k * class_stride + offset;
        switch (dtype) {
            case Dtype::f16:
                return load(static_cast<const half*>(data) + i);
            case Dtype::bf16:
                return load(static_cast<const bfloat16*>(data) + i);
            default:
                return load(static_cast<const float*>(data) + i);
        }
    }
};

// How a window of a source is evaluated.
struct Plan {
    Logits source;
    Window window;
    Region region;
    int runs;                 // of rows that lie between the same two low-resolution rows,
    int first[kWindowY + 1];  // their first rows, and the end
    int reciprocal;           // of window.columns, times 2^16, rounded up
};

struct Shared {
    float4* values;  // [quads, kWindow]: exponentials, not yet divided by their sum
    float* inverse;  // [kWindow]: 1 / that sum; with more than kClasses classes [1 + J, kWindow]
    float2* seen;    // [J, kTile]: where a pixel lies in the neighbour; x < 0 where it is not seen
    float* logits;   // [capacity, kClasses]: low resolution, less the maximum of the pixel, times log2(e)
    float* largest;  // [1 + J, capacity]: the maxima, with more than kClasses classes
    int4* boxes;     // [1 + J]: first row, first column, last row, last column that the tile reads
    Tile* tile;      // kept here, out of registers
    Plan* plans;     // [1 + J]
};

__device__ __forceinline__ Shared shared_memory(const Layout& at) {
    char* base = dynamic_shared<char>();
    return {reinterpret_cast<float4*>(base),
            reinterpret_cast<float*>(base + at.inverse),
            reinterpret_cast<float2*>(base + at.seen),
            reinterpret_cast<float*>(base + at.logits),
            reinterpret_cast<float*>(base + at.largest),
            reinterpret_cast<int4*>(base + at.boxes),
            reinterpret_cast<Tile*>(base + at.tile),
            reinterpret_cast<Plan*>(base + at.plans)};
}

// A box is read through windows that overlap by one row or column, so that all taps of a pixel lie in one.
__device__ __forceinline__ int windows_along(int first, int last, int size) {
    return max(last - first - 1, 0) / (size - 1) + 1;
}
__device__ __forceinline__ int windows_of(int4 box) {
    constexpr int kMost = kMaxWindows + 1;  // so that the product of two cannot overflow
    if (box.w < 0) return 0;
    return min(windows_along(box.x, box.z, kWindowY), kMost) *
           min(windows_along(box.y, box.w, kWindowX), kMost);
}
__device__ __forceinline__ Window window_of(int4 box, int i) {
    int y = box.x, x = box.y;
    if (i > 0) {
        const int across = windows_along(box.y, box.w, kWindowX);
        y += i / across * (kWindowY - 1);
        x += i % across * (kWindowX - 1);
    }
    return {y, x, min(kWindowY, box.z + 1 - y), min(kWindowX, box.w + 1 - x)};
}
__device__ __forceinline__ bool lies_in(const Window& window, float2 at) {
    return at.x >= 0.0f && unsigned(int(at.x) - window.x) < unsigned(kWindowX - 1) &&
           unsigned(int(at.y) - window.y) < unsigned(kWindowY - 1);
}

__device__ __forceinline__ Region region_of(const Work& work, const Window& window) {
    const int bottom = min(window.y + window.rows, work.p.near.height) - 1;
    const int right = min(window.x + window.columns, work.p.near.width) - 1;
    const int row = between(work.axis_y, window.y).low, column = between(work.axis_x, window.x).low;
    return {row, column, between(work.axis_y, bottom).low - row + 2,
            between(work.axis_x, right).low - column + 2};
}

// Row in the tile of the first pixel of the thread; its column is the lane.
__device__ __forceinline__ int first_row() { return int(threadIdx.x) / 32 * kPixels; }

// ---- where the tile is seen ----

// Fills seen and boxes. Whole block; ends in a barrier.
__device__ __forceinline__ void locate(const Work& work, const Shared& shared, const Tile& tile) {
    const Neighbourhood& near = work.p.near;
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        *shared.tile = tile;
        shared.boxes[0] = make_int4(tile.y, tile.x, min(tile.y + kTileY, near.height) - 1,
                                    min(tile.x + kTileX, near.width) - 1);
    }
    if (int(threadIdx.x) < near.neighbours) shared.boxes[1 + threadIdx.x] = make_int4(kFar, kFar, -1, -1);
    __syncthreads();
    for (int j = 0; j < near.neighbours; ++j) {
        int4 box = make_int4(kFar, kFar, -1, -1);
        int y[kPixels], x[kPixels];
        Sighting seen[kPixels];
        for (int i = 0; i < kPixels; ++i) {
            y[i] = tile.y + first_row() + i;
            x[i] = tile.x + lane;
        }
        sight(near, work.limit, tile.b, j, y, x, seen);
        for (int i = 0; i < kPixels; ++i) {
            if (!seen[i].visible) seen[i].at = {-1.0f, -1.0f};
            shared.seen[j * kTile + (first_row() + i) * kTileX + lane] =
                make_float2(seen[i].at.x, seen[i].at.y);
            if (!seen[i].visible) continue;
            box = make_int4(min(box.x, int(seen[i].at.y)), min(box.y, int(seen[i].at.x)),
                            max(box.z, int(seen[i].at.y) + 1), max(box.w, int(seen[i].at.x) + 1));
        }
        box = make_int4(__reduce_min_sync(kAll, box.x), __reduce_min_sync(kAll, box.y),
                        __reduce_max_sync(kAll, box.z), __reduce_max_sync(kAll, box.w));
        if (lane == 0 && box.w >= 0) {
            int4* all = shared.boxes + 1 + j;
            atomicMin(&all->x, box.x);
            atomicMin(&all->y, box.y);
            atomicMax(&all->z, box.z);
            atomicMax(&all->w, box.w);
        }
    }
    __syncthreads();
}

// ---- plans ----

// Plan of window i of source s. One whole warp.
__device__ __forceinline__ void make_plan(const Work& work, const Shared& shared, int s, int i) {
    const Window window = window_of(shared.boxes[s], i);
    const int row = threadIdx.x % 32, y = window.y + row, low = between(work.axis_y, y).low;
    const bool inside = row < window.rows;
    const bool edge = row == 0 || low != between(work.axis_y, y - 1).low || y == work.p.near.height;
    const unsigned below = (2u << row) - 1, edges = __ballot_sync(kAll, inside && edge);
    const int in_band = row - (31 - __clz(int(edges & below)));
    const unsigned starts = __ballot_sync(kAll, inside && in_band % kRun == 0);
    Plan& plan = shared.plans[s];
    if (starts >> row & 1) plan.first[__popc(starts & below) - 1] = row;
    if (row > 0) return;
    plan.source = Logits(work.p, shared.tile->b, s);
    plan.window = window;
    plan.region = region_of(work, window);
    plan.runs = __popc(starts);
    plan.first[plan.runs] = window.rows;
    plan.reciprocal = ((1 << 16) + window.columns - 1) / window.columns;
}

}  // namespace tiled
}  // namespace vda
