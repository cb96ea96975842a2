// CUDA kernels of aggregate_labels.h: the readable one, a thread per pixel that evaluates the softmax of
// every tap anew, 1 + 4 J of them; and the tiled one.
//
// A block of the tiled kernel owns 32 x 16 pixels and finds where they are seen in the neighbours
// (locate). Neighbouring pixels share nearly all taps, so the softmax of a neighbour is evaluated once for
// every pixel of the box that holds the taps of the tile, 34 x 18 of them or 1.2 per pixel where the flow is
// smooth, and stays in shared memory: low-resolution logits are staged there less their maximum (stage),
// every exponential of a column of the box costs one FMA and one ex2 (evaluate), and the pixels collect four
// taps each (collect). A larger box is read through several windows; taps that are all over the neighbour,
// and logits that float32 exponentials cannot hold apart, are evaluated one by one (evaluate_directly).
//
// Per pixel with K = 19 (which counts as 20), two neighbours and logits at 1/8, counted in the code for 9.0:
// 68 ex2, some 480 other float operations and 1340 instructions in all; 890 bytes through shared memory; 59
// bytes of device memory (flow 16, colours 36, logits 4, label and confidence 3). For 1024x2048 on 132
// multiprocessors at 1.83 GHz that is 37 us of ex2 (16 a clock), 60 us of shared memory (128 bytes a
// clock), 29 us of device memory at 4.3 TB/s, and 90 us of issue slots (4 warps a clock), which are the
// bound. Registers (168) and shared memory (75 KB with J = 2) allow three blocks a multiprocessor there; they
// are seldom in the same phase and so share what the phases need in turn.
#include "aggregate_labels_softmax.cuh"

namespace vda {
namespace {

// ---- histogram ----

// Where a confidence counts in the histogram of its class, or -1.
__device__ int bin_of(half confidence) {
    const int bits = confidence.bits;
    if (bits & 0x8000) return bits == 0x8000 ? 0 : -1;  // weights may be negative,
    return bits > 0x3c00 ? 0x3c00 : bits;               // and lift it above 1
}

__device__ void count(const AggregateLabelsParams& p, int64_t cell, int n) {
    atomicAdd(reinterpret_cast<unsigned long long*>(p.histogram + cell), (unsigned long long)(n));
}

// ---- readable ----

template <typename T>
__global__ void aggregate_labels_kernel(AggregateLabelsParams p, float limit) {
    for_each_pixel(p.batch, p.near.height, p.near.width, [&](int64_t b, int y, int x) {
        uint8_t label;
        float confidence;
        aggregate_labels_pixel<T>(p, limit, b, y, x, &label, &confidence);
        const int64_t i = (b * p.near.height + y) * p.near.width + x;
        p.label[i] = label;
        p.confidence[i] = to_half(confidence);
        const int bin = bin_of(p.confidence[i]);
        if (p.histogram != nullptr && label != kNoLabel && bin >= 0)
            count(p, int64_t(label) * kHalfBins + bin, 1);
    });
}

// ---- tiled ----

using namespace tiled;

// ---- what a pixel collects ----

// Adds what evaluate_directly() left in the slots of the pixels.
__device__ __forceinline__ void collect_own(const Shared& shared, int quads, Sums sum) {
    const float4* slot = shared.values + first_row() * kWindowX + threadIdx.x % 32;
    for (int q = 0; q < kQuads; ++q) {
        if (q >= quads) break;
        for (int i = 0; i < kPixels; ++i) add(sum[i][q], 1.0f, slot[q * kWindow + i * kWindowX]);
    }
}

// Adds what a window of a neighbour shows, which holds all taps if `all`. seen: where the pixels of the
// thread lie in the neighbour, kTileX apart. Nearly always each pixel reads one row below that of the pixel
// above it: then ten taps serve all four instead of sixteen.
__device__ __forceinline__ void collect(const Shared& shared, int quads, const Window& window, bool all,
                                        const float* inverse, const float2* seen, Sums sum) {
    float weight[kPixels][4];
    int top[kPixels], bottom[kPixels];  // slots of the left taps
    bool any[kPixels];
    for (int i = 0; i < kPixels; ++i) {
        const float2 at = seen[i * kTileX];
        any[i] = at.x >= 0.0f && (all || lies_in(window, at));
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
        follows[i] = i > 0 && __all_sync(kAll, top[i] == bottom[i - 1]);
    }
    if (!__any_sync(kAll, any[0] || any[1] || any[2] || any[3])) return;
    for (int q = 0; q < kQuads; ++q) {
        if (q >= quads) break;
        const float4* plane = shared.values + q * kWindow;
        float4 left{}, right{};
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

// The best class so far of the pixels of a thread; kNoLabel and infinity once a sum is no number.
struct Decision {
    float best[kPixels];
    int label[kPixels];
};

__device__ __forceinline__ void decide(const AggregateLabelsParams& p, int k0, const Sums sum,
                                       Decision& made) {
    for (int i = 0; i < kPixels; ++i) {
        if (k0 == 0) {
            made.best[i] = -1.0f;
            made.label[i] = 0;
        }
        if (sum[i][0].x == sum[i][0].x) continue;  // one NaN makes all classes of a softmax NaN
        made.best[i] = INFINITY;
        made.label[i] = kNoLabel;
    }
    for (int q = 0; q < kQuads; ++q) {
        const int k = k0 + 4 * q;
        if (k >= p.classes) break;
        for (int i = 0; i < kPixels; ++i) {
            const float4& all = sum[i][q];
            float value[4] = {all.x, all.y, all.z, all.w};
            for (int c = 0; c < 4 && p.weight != nullptr; ++c)
                value[c] = k + c < p.classes ? value[c] * p.weight[k + c] : -INFINITY;
            // Without weights, what fills up the last four classes is 0, which exceeds nothing.
            for (int c = 0; c < 4; ++c) {
                if (!(value[c] > made.best[i])) continue;
                made.best[i] = value[c];
                made.label[i] = k + c;
            }
        }
    }
}

// best / frames, but for the last bit.
__device__ __forceinline__ float quotient(float best, int frames) {
    const float whole = float(frames), near = reciprocal(whole);
    return best * fmaf(fmaf(-whole, near, 1.0f), near, near);  // exact for 2, 4 and 8
}

__device__ __forceinline__ void write(const AggregateLabelsParams& p, const Shared& shared,
                                      const Decision& made) {
    const Tile tile = *shared.tile;
    const int x = tile.x + int(threadIdx.x) % 32;
    for (int i = 0; i < kPixels; ++i) {
        const int y = tile.y + first_row() + i, label = made.label[i];
        const bool inside = y < p.near.height && x < p.near.width;
        const float2* seen = shared.seen + (first_row() + i) * kTileX + threadIdx.x % 32;
        int frames = 1;
        for (int j = 0; j < p.near.neighbours; ++j) frames += seen[j * kTile].x >= 0.0f;
        const half confidence = to_half(label != kNoLabel ? quotient(made.best[i], frames) : 0.0f);
        if (inside) {
            const int64_t at = (int64_t(tile.b) * p.near.height + y) * p.near.width + x;
            p.label[at] = uint8_t(label);
            p.confidence[at] = confidence;
        }
        if (p.histogram == nullptr) continue;
        // Confidences that round to 1 would queue up at one cell: a warp adds equal cells together.
        const int bin = inside && label != kNoLabel ? bin_of(confidence) : -1;
        const int cell = bin < 0 ? -1 : label * kHalfBins + bin;
        const unsigned same = __match_any_sync(kAll, cell);
        if (cell >= 0 && int(threadIdx.x) % 32 == __ffs(int(same)) - 1) count(p, cell, __popc(same));
    }
}

// The sums over all classes, where there are more of them than are done at once.
__device__ __forceinline__ void add_up(const Work& work, const Shared& shared) {
    for (int s = 0; s <= work.p.near.neighbours; ++s) {
        const int windows = windows_of(shared.boxes[s]), K = work.p.classes;
        bool bad = windows > 1;
        for (int k0 = 0; windows == 1 && k0 < K; k0 += kClasses) {
            stage(work, shared, shared.plans[s], k0, k0 == 0, shared.largest + s * work.layout.capacity);
            __syncthreads();
            bad |= __syncthreads_or(evaluate(work, shared, shared.plans[s], shared.inverse + s * kWindow,
                                             Pass::sums, k0 == 0, k0 + kClasses >= K)) != 0;
        }
        __syncthreads();
        if (bad && threadIdx.x == 0)
            shared.boxes[s] = make_int4(0, 0, kFar, kFar);  // as if it were that wide
    }
    __syncthreads();
}

// Adds neighbour s - 1. kMany: more classes than are done at once; add_up() has gone before.
template <bool kMany>
__device__ __forceinline__ void add_neighbour(const Work& work, const Shared& shared, int s, int k0,
                                              Sums sum) {
    float* inverse = shared.inverse + (kMany ? s * kWindow : 0);
    const float2* seen = shared.seen + (s - 1) * kTile + first_row() * kTileX + threadIdx.x % 32;
    const int windows = windows_of(shared.boxes[s]);
    const bool everywhere = windows > kMaxWindows;
    for (int i = 0; i < (everywhere ? 1 : windows); ++i) {
        bool directly = everywhere;
        if (i > 0) {
            const Window window = window_of(shared.boxes[s], i);
            bool any = false;
            for (int r = 0; r < kPixels; ++r) any |= lies_in(window, seen[r * kTileX]);
            if (!__syncthreads_or(any)) continue;
            if (threadIdx.x < 32) make_plan(work, shared, s, i);
        }
        if (i > 0 || directly) __syncthreads();
        if (!directly) {
            stage(work, shared, shared.plans[s], k0, !kMany,
                  kMany ? shared.largest + s * work.layout.capacity : nullptr);
            __syncthreads();
            directly = __syncthreads_or(evaluate(work, shared, shared.plans[s], inverse,
                                                 kMany ? Pass::values : Pass::whole, true, true)) != 0;
        }
        const Window window = window_of(shared.boxes[s], i);
        if (directly) {
            evaluate_directly(work, shared, s, window, everywhere, k0);
            collect_own(shared, work.layout.quads, sum);
        } else {
            collect(shared, work.layout.quads, window, windows == 1, inverse, seen, sum);
        }
    }
}

template <bool kMany>
__global__ void __launch_bounds__(kThreads, kBlocks) aggregate_labels_tile_kernel(Work work) {
    const Shared shared = shared_memory(work.layout);
    const int sources = 1 + work.p.near.neighbours;
    locate(work, shared, {int(blockIdx.z), int(blockIdx.y) * kTileY, int(blockIdx.x) * kTileX});
    for (int s = threadIdx.x / 32; s < sources; s += kThreads / 32) make_plan(work, shared, s, 0);
    __syncthreads();
    if (kMany) add_up(work, shared);

    Decision made;
    for (int k0 = 0; k0 < (kMany ? work.p.classes : 1); k0 += kClasses) {
        Sums sum = {};
        bool directly = kMany && windows_of(shared.boxes[0]) > kMaxWindows;
        if (!directly) stage(work, shared, shared.plans[0], k0, !kMany, kMany ? shared.largest : nullptr);
        __syncthreads();
        if (!directly) directly = !evaluate_own(work, shared, kMany ? shared.inverse : nullptr, sum);
        if (directly) {
            evaluate_directly(work, shared, 0, shared.plans[0].window, true, k0);
            for (int i = 0; i < kPixels; ++i) {
                for (int q = 0; q < kQuads; ++q) sum[i][q] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
            collect_own(shared, work.layout.quads, sum);
        }
        __syncthreads();
        for (int s = 1; s < sources; ++s) add_neighbour<kMany>(work, shared, s, k0, sum);
        decide(work.p, k0, sum, made);
    }
    write(work.p, shared, made);
}

// ---- launching ----

Layout layout_of(const AggregateLabelsParams& p, const Axis& axis_y, const Axis& axis_x) {
    const int J = p.near.neighbours;
    const bool many = p.classes > kClasses;  // the whole of every source is known before its parts
    const int64_t capacity = int64_t(pixels_under(axis_y, kWindowY)) * pixels_under(axis_x, kWindowX);
    Layout at{};
    at.quads = std::min(ceil_div(p.classes, 4), kQuads);
    at.capacity = int(std::min<int64_t>(capacity, 1 << 20));  // far more than fits
    const auto take = [&](size_t bytes) {
        const int offset = at.bytes;
        at.bytes += int(ceil_div<size_t>(bytes, 16) * 16);
        return offset;
    };
    take(at.quads * kWindow * sizeof(float4));
    at.inverse = take((many ? 1 + J : 1) * kWindow * sizeof(float));
    at.seen = take(J * kTile * sizeof(float2));
    at.logits = take(at.capacity * kClasses * sizeof(float));
    at.largest = take(many ? (1 + J) * at.capacity * sizeof(float) : 0);
    at.boxes = take((1 + J) * sizeof(int4));
    at.tile = take(sizeof(Tile));
    at.plans = take((1 + J) * sizeof(Plan));
    return at;
}

bool in_32_bits(const AggregateLabelsParams& p) {
    const auto sample = [&](const int64_t stride[4]) {
        return p.classes * stride[1] + p.logit_height * stride[2] + p.logit_width * stride[3];
    };
    return planes_in_32_bits(p.near) && sample(p.logits.stride) <= INT32_MAX &&
           sample(p.neighbour_logits.first.stride) <= INT32_MAX;
}

// Bytes of shared memory that a block can have on the current device.
int most_shared_bytes(int* bytes) {
    int device = 0;
    int code = cudaGetDevice(&device);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (code != cudaSuccess) (void)cudaGetLastError();
    return code;
}

}  // namespace

int aggregate_labels_naive_cuda(const AggregateLabelsParams& p, void* stream) {
    if (p.batch == 0 || p.near.height == 0 || p.near.width == 0) return kOk;
    return for_float(p.dtype, [&](auto type) {
        return launch(aggregate_labels_kernel<decltype(type)>,
                      pixel_grid(p.batch, p.near.height, p.near.width), pixel_block(), 0, stream, p,
                      not_below<float>(p.near.limit));
    });
}

int aggregate_labels_cuda(const AggregateLabelsParams& p, void* stream) {
    if (p.batch == 0 || p.near.height == 0 || p.near.width == 0) return kOk;
    Work work{p,
              upsampling_axis(p.logit_height, p.near.height, p.align_corners),
              upsampling_axis(p.logit_width, p.near.width, p.align_corners),
              not_below<float>(p.near.limit),
              {}};
    work.layout = layout_of(p, work.axis_y, work.axis_x);
    int most = 0;
    const int code = most_shared_bytes(&most);
    if (code != cudaSuccess) return code;
    const int64_t down = ceil_div(p.near.height, kTileY);
    // The logits of far more pixels than the result has do not fit.
    if (work.layout.bytes > most || !in_32_bits(p) ||
        std::max(p.logit_height, p.logit_width) > kMostUpsampled || std::max(down, p.batch) > kMaxGridYZ)
        return aggregate_labels_naive_cuda(p, stream);
    const auto kernel =
        p.classes > kClasses ? aggregate_labels_tile_kernel<true> : aggregate_labels_tile_kernel<false>;
    // Three blocks take all that a multiprocessor of 228 KB has: a hint, so its failure means nothing.
    if (cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared) != cudaSuccess)
        (void)cudaGetLastError();
    const dim3 grid(unsigned(ceil_div(p.near.width, kTileX)), unsigned(down), unsigned(p.batch));
    return launch(kernel, grid, dim3(kThreads, 1, 1), size_t(work.layout.bytes), stream, work);
}

}  // namespace vda
