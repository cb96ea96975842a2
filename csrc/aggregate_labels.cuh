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
constexpr int kRun = 8;                           // rows of a window that one thread fills at most
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
    int sums;      // planes of sums: 1, or with more than kClasses classes one per source
    int capacity;  // low-resolution pixels under a window, at most
    int inverse, seen, logits, largest, boxes, runs, bytes;  // offsets in shared memory, and its size
};
struct Work {
    AggregateLabelsParams p;
    Axis axis_y, axis_x;
    float limit;
    Layout layout;
};

struct Shared {
    float4* values;  // [quads, kWindow]: exponentials, not yet divided by their sum
    float* inverse;  // [sums, kWindow]: 1 / that sum
    float2* seen;    // [J, kTile]: where a pixel lies in the neighbour; x < 0 where it is not seen
    float* logits;   // [capacity, 4 quads]: low resolution, less the maximum of the pixel, times log2(e)
    float* largest;  // [1 + J, capacity]: the maxima, with more than kClasses classes
    int4* boxes;     // [1 + J]: first row, first column, last row, last column that the tile reads
    int* runs;       // [kWindowY + 2]: their number, their first rows, the end
};

__device__ __forceinline__ Shared shared_memory(const Layout& at) {
    char* base = dynamic_shared<char>();
    return {reinterpret_cast<float4*>(base),
            reinterpret_cast<float*>(base + at.inverse),
            reinterpret_cast<float2*>(base + at.seen),
            reinterpret_cast<float*>(base + at.logits),
            reinterpret_cast<float*>(base + at.largest),
            reinterpret_cast<int4*>(base + at.boxes),
            reinterpret_cast<int*>(base + at.runs)};
}

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

struct Tile {
    int b, y, x;
};

// Pixels [y, y + rows) x [x, x + columns) of a source; the last row and column may lie outside the frame.
struct Window {
    int y, x, rows, columns;
};

// A box is read through windows that overlap by one row or column, so that all taps of a pixel lie in one.
__device__ __forceinline__ int windows_across(int4 box) {
    return max(box.w - box.y - 1, 0) / (kWindowX - 1) + 1;
}
__device__ __forceinline__ int windows_of(int4 box) {
    return box.w < 0 ? 0 : windows_across(box) * (max(box.z - box.x - 1, 0) / (kWindowY - 1) + 1);
}
__device__ __forceinline__ Window window_of(int4 box, int i) {
    const int across = windows_across(box);
    const int y = box.x + i / across * (kWindowY - 1), x = box.y + i % across * (kWindowX - 1);
    return {y, x, min(kWindowY, box.z + 1 - y), min(kWindowX, box.w + 1 - x)};
}
__device__ __forceinline__ bool lies_in(const Window& window, float2 at) {
    return at.x >= 0.0f && unsigned(int(at.x) - window.x) < unsigned(kWindowX - 1) &&
           unsigned(int(at.y) - window.y) < unsigned(kWindowY - 1);
}

// The low-resolution pixels that a window is interpolated from.
struct Region {
    int row, column, rows, columns;
};

__device__ __forceinline__ Region region_of(const Work& work, const Window& window) {
    const int bottom = min(window.y + window.rows, work.p.near.height) - 1;
    const int right = min(window.x + window.columns, work.p.near.width) - 1;
    const int row = between(work.axis_y, window.y).low, column = between(work.axis_x, window.x).low;
    return {row, column, between(work.axis_y, bottom).high - row + 1,
            between(work.axis_x, right).high - column + 1};
}

// exp(x log 2) for x <= 0 within 2 ulp, 0 below 2^-126.
__device__ __forceinline__ float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return exp2f(x);
#endif
}

__device__ __forceinline__ float4 mix(float4 low, float4 high, float share) {
    const float rest = 1.0f - share;
    return {rest * low.x + share * high.x, rest * low.y + share * high.y, rest * low.z + share * high.z,
            rest * low.w + share * high.w};
}
__device__ __forceinline__ void add(float4& sum, float weight, float4 value) {
    sum.x += weight * value.x;
    sum.y += weight * value.y;
    sum.z += weight * value.z;
    sum.w += weight * value.w;
}

// Row in the tile of the first pixel of the thread; its column is the lane.
__device__ __forceinline__ int first_row() { return int(threadIdx.x) / 32 * kPixels; }

// ---- where the tile is seen ----

// Fills seen and boxes, and counts the frames that show each pixel of the thread. Whole block; ends in a
// barrier.
__device__ __forceinline__ void locate(const Work& work, const Shared& shared, const Tile& tile,
                                       int frames[kPixels]) {
    const Neighbourhood& near = work.p.near;
    const int lane = threadIdx.x % 32, x = tile.x + lane;
    if (threadIdx.x == 0) {
        shared.boxes[0] = make_int4(tile.y, tile.x, min(tile.y + kTileY, near.height) - 1,
                                    min(tile.x + kTileX, near.width) - 1);
    }
    if (int(threadIdx.x) < near.neighbours) shared.boxes[1 + threadIdx.x] = make_int4(kFar, kFar, -1, -1);
    __syncthreads();
    for (int i = 0; i < kPixels; ++i) frames[i] = 1;
    for (int j = 0; j < near.neighbours; ++j) {
        int4 box = make_int4(kFar, kFar, -1, -1);
        for (int i = 0; i < kPixels; ++i) {
            const int row = first_row() + i, y = tile.y + row;
            Sighting seen{{}, false};
            if (y < near.height && x < near.width) seen = sighting_32(near, work.limit, tile.b, j, y, x);
            if (!seen.visible) seen.at = {-1.0f, -1.0f};
            shared.seen[j * kTile + row * kTileX + lane] = make_float2(seen.at.x, seen.at.y);
            if (!seen.visible) continue;
            ++frames[i];
            box = make_int4(min(box.x, int(seen.at.y)), min(box.y, int(seen.at.x)),
                            max(box.z, int(seen.at.y) + 1), max(box.w, int(seen.at.x) + 1));
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

// ---- the softmax of a window ----

// Low-resolution logits of classes [k0, k0 + 4 quads), relative to the maximum over all classes, which is
// found first if `find`, else taken from the plane `largest`. kStagers lanes to a pixel: coalesced along x
// for planes and along the classes for channels-last. Also cuts the rows of the window into runs that lie
// between the same two low-resolution rows. Whole block; a barrier has to follow.
__device__ __forceinline__ void stage(const Work& work, const Shared& shared, const Logits& source,
                                      const Window& window, int k0, bool find, float* largest) {
    const Region region = region_of(work, window);
    const int n = region.rows * region.columns, first = threadIdx.x % kStagers, K = work.p.classes;
    for (int from = 0; from < n; from += kThreads / kStagers) {  // whole warps, for the shuffles
        const int pixel = from + threadIdx.x / kStagers, i = min(pixel, n - 1), row = i / region.columns;
        const int offset = (region.row + row) * source.row_stride +
                           (region.column + i - row * region.columns) * source.column_stride;
        float most = -INFINITY;
        if (find) {
            for (int k = first; k < K; k += kStagers) most = fmaxf(most, source.at(k, offset));
            for (int step = 1; step < kStagers; step *= 2)
                most = fmaxf(most, __shfl_xor_sync(kAll, most, step));
            if (largest != nullptr && first == 0 && pixel < n) largest[i] = most;
        } else {
            most = largest[i];
        }
        for (int k = first; k < 4 * work.layout.quads && pixel < n; k += kStagers) {
            const float value = k0 + k < K ? (source.at(k0 + k, offset) - most) * kLog2e : kLowest;
            shared.logits[i * 4 * work.layout.quads + k] = value < kLowest ? kLowest : value;  // NaN stays
        }
    }
    if (threadIdx.x >= 32) return;
    const int row = threadIdx.x, y = window.y + row, low = between(work.axis_y, y).low;
    const bool inside = row < window.rows;
    const bool edge = row == 0 || low != between(work.axis_y, y - 1).low || y == work.p.near.height;
    const unsigned below = (2u << row) - 1, edges = __ballot_sync(kAll, inside && edge);
    const int band = 31 - __clz(int(edges & below));
    const bool start = inside && (row - band) % kRun == 0;
    const unsigned starts = __ballot_sync(kAll, start);
    if (start) shared.runs[__popc(starts & below)] = row;
    if (row == 0) {
        shared.runs[0] = __popc(starts);
        shared.runs[1 + __popc(starts)] = window.rows;
    }
}

enum class Pass { whole, sums, values };

// Exponentials of the staged classes at every pixel of a window. A thread takes the rows of one run in one
// column: what lies between the same four low-resolution pixels is linear in y, so an exponential costs one
// FMA beside itself. Pass::sums only adds them up over the blocks of classes, first to last, and
// Pass::values takes the sums as done. Returns whether a sum is no number or too small to trust: then the
// window must not be used.
__device__ __forceinline__ bool evaluate(const Work& work, const Shared& shared, const Window& window,
                                         float* inverse, Pass pass, bool first, bool last) {
    const Region region = region_of(work, window);
    const int quads = work.layout.quads;
    bool bad = false;
    for (int i = threadIdx.x; i < shared.runs[0] * window.columns; i += kThreads) {
        const int run = i / window.columns, column = i - run * window.columns;
        const int row = shared.runs[1 + run], rows = shared.runs[2 + run] - row;
        const int y = window.y + row, x = window.x + column, slot = row * kWindowX + column;
        float4* to = shared.values + slot;
        if (y >= work.p.near.height || x >= work.p.near.width) {  // taps of weight 0
            for (int r = 0; r < rows; ++r) {
                inverse[slot + r * kWindowX] = 0.0f;
                for (int q = 0; q < quads; ++q)
                    to[q * kWindow + r * kWindowX] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
            continue;
        }
        const Between at_x = between(work.axis_x, x), at_y = between(work.axis_y, y);
        const float4* staged = reinterpret_cast<const float4*>(shared.logits);
        const float4* top = staged + (at_y.low - region.row) * region.columns * quads;
        const float4* bottom = staged + (at_y.high - region.row) * region.columns * quads;
        const int low = (at_x.low - region.column) * quads, high = (at_x.high - region.column) * quads;
        float share[kRun], sum[kRun] = {};
        for (int r = 0; r < kRun; ++r) share[r] = between(work.axis_y, y + r).share;
        for (int q = 0; q < quads; ++q) {
            const float4 a = mix(top[low + q], top[high + q], at_x.share);
            const float4 z = mix(bottom[low + q], bottom[high + q], at_x.share);
            const float4 slope = make_float4(z.x - a.x, z.y - a.y, z.z - a.z, z.w - a.w);
            for (int r = 0; r < kRun; ++r) {
                if (r >= rows) break;
                float4 at = a;
                add(at, share[r], slope);
                at = make_float4(power_of_two(at.x), power_of_two(at.y), power_of_two(at.z),
                                 power_of_two(at.w));
                sum[r] += (at.x + at.y) + (at.z + at.w);
                if (pass != Pass::sums) to[q * kWindow + r * kWindowX] = at;
            }
        }
        if (pass == Pass::values) continue;
        for (int r = 0; r < kRun; ++r) {
            if (r >= rows) break;
            float* at = inverse + slot + r * kWindowX;
            const float total = first ? sum[r] : *at + sum[r];
            *at = last ? 1.0f / total : total;
            bad |= last && !(total >= kLeastSum);
        }
    }
    return bad;
}

__device__ __forceinline__ float upsampled(const Logits& source, int k, const Between& y, const Between& x) {
    const int top = y.low * source.row_stride, bottom = y.high * source.row_stride;
    const int low = x.low * source.column_stride, high = x.high * source.column_stride;
    return mixed(mixed(source.at(k, top + low), source.at(k, top + high), x.share),
                 mixed(source.at(k, bottom + low), source.at(k, bottom + high), x.share), y.share);
}

// What to do where evaluate() says so, where a neighbour is read in too many places, and where a logit is
// not finite: the pixels of the thread, one tap after the other from the low-resolution logits, as in
// aggregate_labels_pixel. Their sums go to their slots in `values`, as if this were the window.
__device__ __forceinline__ void evaluate_directly(const Work& work, const Shared& shared, const Tile& tile,
                                                  int s, const Window& window, bool everywhere, int k0) {
    const int K = work.p.classes, classes = 4 * work.layout.quads, taps = s == 0 ? 1 : 4;
    const Logits source(work.p, tile.b, s);
    for (int t = 0; t < kPixels * taps; ++t) {
        const int tap = t % taps, row = first_row() + t / taps, lane = threadIdx.x % 32;
        float* to = reinterpret_cast<float*>(shared.values + row * kWindowX + lane);
        if (tap == 0) {
            for (int k = 0; k < classes; ++k) to[k / 4 * (4 * kWindow) + k % 4] = 0.0f;
        }
        float2 at = make_float2(float(tile.x + lane), float(tile.y + row));
        if (s > 0) {
            at = shared.seen[(s - 1) * kTile + row * kTileX + lane];
            if (everywhere ? at.x < 0.0f : !lies_in(window, at)) continue;
        }
        const int left = int(at.x), top = int(at.y), y = top + (tap >> 1), x = left + (tap & 1);
        if (y >= work.p.near.height || x >= work.p.near.width) continue;
        const Taps<float> weights{{}, at.x - float(left), at.y - float(top)};
        const Between at_y = between(work.axis_y, y), at_x = between(work.axis_x, x);
        float most = -INFINITY, sum = 0.0f;
        for (int k = 0; k < K; ++k) most = fmaxf(most, upsampled(source, k, at_y, at_x));
        for (int k = 0; k < K; ++k) sum += power_of_two((upsampled(source, k, at_y, at_x) - most) * kLog2e);
        const float factor = weights.weight(tap) / sum;
        for (int k = 0; k < classes && k0 + k < K; ++k) {
            to[k / 4 * (4 * kWindow) + k % 4] +=
                factor * power_of_two((upsampled(source, k0 + k, at_y, at_x) - most) * kLog2e);
        }
    }
}

// ---- what a pixel collects ----

using Sums = float4[kPixels][kQuads];

// Adds what the slots of the pixels themselves hold.
__device__ __forceinline__ void collect_own(int quads, const float4* slot, const float weight[kPixels],
                                            Sums sum) {
    for (int q = 0; q < kQuads; ++q) {
        if (q >= quads) break;
        for (int i = 0; i < kPixels; ++i) add(sum[i][q], weight[i], slot[q * kWindow + i * kWindowX]);
    }
}

// Adds what a neighbour shows. seen: where the pixels of the thread lie in it, kTileX apart. Nearly always
// each pixel reads one row below that of the pixel above it: then ten taps serve all four instead of sixteen.
__device__ __forceinline__ void collect(const Shared& shared, int quads, const Window& window,
                                        const float* inverse, const float2* seen, Sums sum) {
    float weight[kPixels][4];
    int top[kPixels], bottom[kPixels];  // slots of the left taps
    bool any[kPixels];
    for (int i = 0; i < kPixels; ++i) {
        const float2 at = seen[i * kTileX];
        any[i] = lies_in(window, at);
        const int x = int(at.x), y = int(at.y);
        top[i] = any[i] ? (y - window.y) * kWindowX + x - window.x : 0;
        bottom[i] = top[i] + kWindowX;
        const float a = at.x - float(x), b = at.y - float(y);
        const float* sums = inverse + top[i];
        weight[i][0] = any[i] ? (1.0f - a) * (1.0f - b) * sums[0] : 0.0f;
        weight[i][1] = any[i] ? a * (1.0f - b) * sums[1] : 0.0f;
        weight[i][2] = any[i] ? (1.0f - a) * b * sums[kWindowX] : 0.0f;
        weight[i][3] = any[i] ? a * b * sums[kWindowX + 1] : 0.0f;
    }
    bool follows[kPixels];  // in the whole warp: the taps above the pixel are those below the one above it
    for (int i = 0; i < kPixels; ++i) {
        // A pixel that reads nothing borrows the rows of the pixels around it.
        if (!any[i] && i > 0) top[i] = bottom[i - 1];
        if (!any[i]) bottom[i] = i + 1 < kPixels && any[i + 1] ? top[i + 1] : top[i];
        follows[i] = __all_sync(kAll, i > 0 && top[i] == bottom[i - 1]);
    }
    if (!__any_sync(kAll, any[0] || any[1] || any[2] || any[3])) return;
    for (int q = 0; q < kQuads; ++q) {
        if (q >= quads) break;
        const float4* plane = shared.values + q * kWindow;
        float4 left, right;
        for (int i = 0; i < kPixels; ++i) {
            if (!follows[i]) {
                left = plane[top[i]];
                right = plane[top[i] + 1];
            }
            add(sum[i][q], weight[i][0], left);
            add(sum[i][q], weight[i][1], right);
            left = plane[bottom[i]];
            right = plane[bottom[i] + 1];
            add(sum[i][q], weight[i][2], left);
            add(sum[i][q], weight[i][3], right);
        }
    }
}

}  // namespace tiled
}  // namespace vda
