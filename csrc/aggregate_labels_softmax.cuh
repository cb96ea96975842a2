// The softmax of a source at full resolution, the middle part of the tiled CUDA kernel of aggregate_labels.h:
// from low-resolution logits to shared memory, or straight to the sums of a thread.
#pragma once

#include "aggregate_labels.cuh"
#include "fast_math.cuh"

namespace vda {
namespace tiled {

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

// ---- low resolution ----

// What one of the kStagers threads of a low-resolution pixel reads of the classes [k0, k0 + kClasses):
// classes first, first + kStagers, ..; all reads under way at once.
constexpr int kShare = kClasses / kStagers;
template <typename T>
__device__ __forceinline__ void load_share(const Logits& source, int k0, int classes, int offset,
                                           float (&value)[kShare]) {
    const T* from = fixed(static_cast<const T*>(source.data) + offset);
    for (int i = 0; i < kShare; ++i) {
        const int k = k0 + int(threadIdx.x) % kStagers + i * kStagers;
        value[i] = k < classes ? load(from + k * source.class_stride) : -INFINITY;
    }
}
__device__ __forceinline__ void load_share(const Logits& source, int k0, int classes, int offset,
                                           float (&value)[kShare]) {
    switch (source.dtype) {
        case Dtype::f16:
            return load_share<half>(source, k0, classes, offset, value);
        case Dtype::bf16:
            return load_share<bfloat16>(source, k0, classes, offset, value);
        default:
            return load_share<float>(source, k0, classes, offset, value);
    }
}

// Low-resolution logits of classes [k0, k0 + 4 quads), relative to the maximum over all classes. That is
// found here and kept in the plane `largest`, if there is one; without `find` it is taken from there.
// Neighbouring threads read neighbouring pixels of a plane, and neighbouring classes of channels-last logits.
// Whole block; a barrier has to follow.
__device__ __forceinline__ void stage(const Work& work, const Shared& shared, const Plan& plan, int k0,
                                      bool find, float* largest) {
    const Logits source = plan.source;
    const Region region = plan.region;
    const int n = region.rows * region.columns, first = threadIdx.x % kStagers, K = work.p.classes;
    for (int from = 0; from < n; from += kThreads / kStagers) {  // whole warps, for the shuffles
        const int pixel = from + int(threadIdx.x) / kStagers, i = min(pixel, n - 1), row = i / region.columns;
        const int y = min(region.row + row, work.axis_y.last);
        const int x = min(region.column + i - row * region.columns, work.axis_x.last);
        const int offset = y * source.row_stride + x * source.column_stride;
        float value[kShare], most = -INFINITY;
        for (int k = kClasses; find && k < K; k += kClasses) {
            load_share(source, k, K, offset, value);
            for (float v : value) most = fmaxf(most, v);
        }
        load_share(source, k0, K, offset, value);
        if (find) {
            for (float v : value) most = fmaxf(most, v);
            for (int step = 1; step < kStagers; step *= 2)
                most = fmaxf(most, __shfl_xor_sync(kAll, most, step));
            if (largest != nullptr && first == 0 && pixel < n) largest[i] = most;
        } else {
            most = largest[i];
        }
        if (pixel >= n) continue;
        float* to = shared.logits + i * kClasses + first;
        for (int m = 0; m < kShare; ++m) {  // classes that do not exist are minus infinity
            const float relative = (value[m] - most) * kLog2e;
            to[m * kStagers] = relative < kLowest ? kLowest : relative;  // NaN stays
        }
    }
}

// The logits around a column of full-resolution pixels, between two low-resolution rows: a + share slope.
struct Line {
    float4 a, slope;
};
__device__ __forceinline__ Line line_of(const float4* top, const float4* bottom, float share) {
    const float4 a = mix(top[0], top[kQuads], share), z = mix(bottom[0], bottom[kQuads], share);
    return {a, make_float4(z.x - a.x, z.y - a.y, z.z - a.z, z.w - a.w)};
}
__device__ __forceinline__ float4 exponentials(const Line& line, float share) {
    float4 at = line.a;
    add(at, share, line.slope);
    return make_float4(power_of_two(at.x), power_of_two(at.y), power_of_two(at.z), power_of_two(at.w));
}

// between(axis, i).share, low being known. Beyond the last low-resolution pixel the slope is 0.
__device__ __forceinline__ float share_of(const Axis& axis, float i, int low) {
    return fmaxf(axis.scale * i + axis.shift, 0.0f) - float(low);
}

// ---- a window ----

enum class Pass { whole, sums, values };

// Exponentials of the staged classes at every pixel of a window. A thread takes the rows of one run in one
// column: what lies between the same four low-resolution pixels is linear in y, so an exponential costs one
// FMA beside itself. Pass::sums only adds them up over the blocks of classes, first to last, and
// Pass::values takes the sums as done. Returns whether a sum is no number or too small to trust: then the
// window must not be used.
__device__ __forceinline__ bool evaluate(const Work& work, const Shared& shared, const Plan& plan,
                                         float* inverse, Pass pass, bool first, bool last) {
    const Window window = plan.window;
    const Region region = plan.region;
    const int quads = work.layout.quads, n = plan.runs * window.columns;
    bool bad = false;
    for (int i = threadIdx.x; i < n; i += kThreads) {
        const int run = i * plan.reciprocal >> 16, column = i - run * window.columns;
        const int row = plan.first[run], rows = plan.first[run + 1] - row;
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
        const int corner = (at_y.low - region.row) * region.columns + at_x.low - region.column;
        const float4* top = reinterpret_cast<const float4*>(shared.logits) + corner * kQuads;
        const float4* bottom = top + region.columns * kQuads;
        float share[kRun], sum[kRun] = {};
        for (int r = 0; r < kRun; ++r) share[r] = share_of(work.axis_y, float(y) + float(r), at_y.low);
        for (int q = 0; q < quads; ++q) {
            const Line line = line_of(top + q, bottom + q, at_x.share);
            for (int r = 0; r < kRun; r += kTogether) {
                if (r >= rows) break;
                float4 at[kTogether];
                for (int t = 0; t < kTogether; ++t) at[t] = exponentials(line, share[r + t]);
                for (int t = 0; t < kTogether; ++t) {
                    sum[r + t] += (at[t].x + at[t].y) + (at[t].z + at[t].w);
                    if (pass != Pass::sums && r + t < rows) to[q * kWindow + (r + t) * kWindowX] = at[t];
                }
            }
        }
        if (pass == Pass::values) continue;
        for (int r = 0; r < kRun; ++r) {
            if (r >= rows) break;
            float* at = inverse + slot + r * kWindowX;
            const float total = first ? sum[r] : *at + sum[r];
            *at = last ? reciprocal(total) : total;
            bad |= last && !(total >= kLeastSum);
        }
    }
    return bad;
}

// ---- the frame itself ----

using Sums = float4[kPixels][kQuads];  // of a thread: its pixels, its classes

// Softmax of the staged classes at the pixels of the thread, straight into its sums. inverse: of the sums
// over all classes where they are known, else null. Returns whether they can be trusted, as evaluate().
__device__ __forceinline__ bool evaluate_own(const Work& work, const Shared& shared, const float* inverse,
                                             Sums sum) {
    const Plan& plan = shared.plans[0];
    const Region region = plan.region;
    const int lane = threadIdx.x % 32, slot = first_row() * kWindowX + lane;
    const Between at_x = between(work.axis_x, min(plan.window.x + lane, work.p.near.width - 1));
    const float4* corner[kPixels];
    float share[kPixels], total[kPixels] = {};
    for (int i = 0; i < kPixels; ++i) {
        const int y = min(plan.window.y + first_row() + i, work.p.near.height - 1);
        const int low = between(work.axis_y, y).low;
        const int at = (low - region.row) * region.columns + at_x.low - region.column;
        corner[i] = reinterpret_cast<const float4*>(shared.logits) + at * kQuads;
        share[i] = share_of(work.axis_y, float(y), low);
    }
    for (int q = 0; q < kQuads; ++q) {
        Line line;
        for (int i = 0; i < kPixels; ++i) {
            if (i == 0 || corner[i] != corner[i - 1])
                line = line_of(corner[i] + q, corner[i] + region.columns * kQuads + q, at_x.share);
            sum[i][q] = exponentials(line, share[i]);
            total[i] += (sum[i][q].x + sum[i][q].y) + (sum[i][q].z + sum[i][q].w);
        }
    }
    bool good = true;
    for (int i = 0; i < kPixels; ++i) {
        const float factor = inverse != nullptr ? inverse[slot + i * kWindowX] : reciprocal(total[i]);
        good &= inverse != nullptr || total[i] >= kLeastSum;
        for (int q = 0; q < kQuads; ++q) {
            const float4 value = sum[i][q];
            sum[i][q] = make_float4(factor * value.x, factor * value.y, factor * value.z, factor * value.w);
        }
    }
    return good;
}

// ---- without a window ----

__device__ __forceinline__ float upsampled(const Logits& source, int k, const Between& y, const Between& x) {
    const int top = y.low * source.row_stride, bottom = y.high * source.row_stride;
    const int low = x.low * source.column_stride, high = x.high * source.column_stride;
    return mixed(mixed(source.at(k, top + low), source.at(k, top + high), x.share),
                 mixed(source.at(k, bottom + low), source.at(k, bottom + high), x.share), y.share);
}

// What to do where evaluate() says so, where a neighbour is read in too many places, and where a logit is
// not finite: the pixels of the thread, one tap after the other from the low-resolution logits, as in
// aggregate_labels_pixel. Their sums go to their slots in `values`, as if this were the window.
__device__ __forceinline__ void evaluate_directly(const Work& work, const Shared& shared, int s,
                                                  const Window& window, bool everywhere, int k0) {
    const int K = work.p.classes, classes = 4 * work.layout.quads, taps = s == 0 ? 1 : 4;
    const Tile tile = *shared.tile;
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
        const float factor = weights.weight(tap) * reciprocal(sum);
        for (int k = 0; k < classes && k0 + k < K; ++k) {
            to[k / 4 * (4 * kWindow) + k % 4] +=
                factor * power_of_two((upsampled(source, k0 + k, at_y, at_x) - most) * kLog2e);
        }
    }
}

}  // namespace tiled
}  // namespace vda
