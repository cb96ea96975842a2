// CUDA kernels of aggregate_labels.h: the readable one, a thread per pixel that evaluates the softmax of
// every tap anew, 1 + 4 J of them; and the tiled one, a block per tile.
#include "aggregate_labels.cuh"

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

// The best class so far of the pixels of a thread.
struct Decision {
    float best[kPixels];
    int label[kPixels];
    bool valid[kPixels];
};

__device__ __forceinline__ void decide(const AggregateLabelsParams& p, int k0, const Sums sum,
                                       Decision& made) {
    for (int i = 0; i < kPixels; ++i) {
        if (k0 == 0) {
            made.best[i] = -1.0f;
            made.label[i] = 0;
            made.valid[i] = true;
        }
        made.valid[i] &= sum[i][0].x == sum[i][0].x;  // one NaN makes all classes of a softmax NaN
    }
    for (int q = 0; q < kQuads; ++q) {
        for (int c = 0; c < 4; ++c) {
            const int k = k0 + 4 * q + c;
            if (k >= p.classes) break;
            const float weight = p.weight != nullptr ? p.weight[k] : 1.0f;
            for (int i = 0; i < kPixels; ++i) {
                const float4& all = sum[i][q];
                const float value = weight * (c == 0 ? all.x : c == 1 ? all.y : c == 2 ? all.z : all.w);
                if (!(value > made.best[i])) continue;
                made.best[i] = value;
                made.label[i] = k;
            }
        }
    }
}

__device__ __forceinline__ void write(const AggregateLabelsParams& p, const Tile& tile, const Decision& made,
                                      const int frames[kPixels]) {
    const int x = tile.x + threadIdx.x % 32;
    for (int i = 0; i < kPixels; ++i) {
        const int y = tile.y + first_row() + i;
        const bool inside = y < p.near.height && x < p.near.width, valid = inside && made.valid[i];
        const half confidence = to_half(made.valid[i] ? made.best[i] / float(frames[i]) : 0.0f);
        if (inside) {
            const int64_t at = (int64_t(tile.b) * p.near.height + y) * p.near.width + x;
            p.label[at] = made.valid[i] ? uint8_t(made.label[i]) : kNoLabel;
            p.confidence[at] = confidence;
        }
        if (p.histogram == nullptr) continue;
        // Confidences that round to 1 would queue up at one cell: a warp adds equal cells together.
        const int bin = valid ? bin_of(confidence) : -1,
                  cell = bin < 0 ? -1 : made.label[i] * kHalfBins + bin;
        const unsigned same = __match_any_sync(kAll, cell);
        if (cell >= 0 && int(threadIdx.x % 32) == __ffs(int(same)) - 1) count(p, cell, __popc(same));
    }
}

// kMany: more classes than are done at once. Then the sums over all of them come first.
template <bool kMany>
__global__ void __launch_bounds__(kThreads, 3) aggregate_labels_tile_kernel(Work work) {
    const AggregateLabelsParams& p = work.p;
    const Shared shared = shared_memory(work.layout);
    const int across = ceil_div(p.near.width, kTileX), down = ceil_div(p.near.height, kTileY);
    const Tile tile{int(blockIdx.x) / (across * down), int(blockIdx.x) / across % down * kTileY,
                    int(blockIdx.x) % across * kTileX};
    const int row = first_row(), lane = threadIdx.x % 32;
    int frames[kPixels];
    locate(work, shared, tile, frames);

    unsigned direct = 0;  // bit s: source s is evaluated directly
    for (int s = 0; s <= p.near.neighbours; ++s) {
        const int windows = windows_of(shared.boxes[s]);
        bool bad = windows > (kMany ? 1 : kMaxWindows);
        for (int k0 = 0; kMany && windows == 1 && k0 < p.classes; k0 += kClasses) {
            const Window window = window_of(shared.boxes[s], 0);
            stage(work, shared, Logits(p, tile.b, s), window, k0, k0 == 0,
                  shared.largest + s * work.layout.capacity);
            __syncthreads();
            bad |= __syncthreads_or(evaluate(work, shared, window, shared.inverse + s * kWindow, Pass::sums,
                                             k0 == 0, k0 + kClasses >= p.classes)) != 0;
        }
        direct |= unsigned(bad) << s;
    }

    Decision made;
    for (int k0 = 0; k0 < (kMany ? p.classes : 1); k0 += kClasses) {
        Sums sum = {};
        for (int s = 0; s <= p.near.neighbours; ++s) {
            float* inverse = shared.inverse + (kMany ? s * kWindow : 0);
            const bool everywhere = direct >> s & 1;
            const int windows = everywhere ? 1 : windows_of(shared.boxes[s]);
            for (int i = 0; i < windows; ++i) {
                bool directly = everywhere;
                if (directly) {
                    __syncthreads();  // all have collected from the source before
                } else {
                    const Window window = window_of(shared.boxes[s], i);
                    if (windows > 1) {
                        const float2* seen = shared.seen + (s - 1) * kTile + row * kTileX + lane;
                        bool any = false;
                        for (int r = 0; r < kPixels; ++r) any |= lies_in(window, seen[r * kTileX]);
                        if (!__syncthreads_or(any)) continue;
                    }
                    stage(work, shared, Logits(p, tile.b, s), window, k0, !kMany,
                          kMany ? shared.largest + s * work.layout.capacity : nullptr);
                    __syncthreads();
                    directly =
                        __syncthreads_or(evaluate(work, shared, window, inverse,
                                                  kMany ? Pass::values : Pass::whole, true, true)) != 0;
                }
                const Window window = window_of(shared.boxes[s], i);
                if (directly) evaluate_directly(work, shared, tile, s, window, everywhere, k0);
                if (directly || s == 0) {
                    const int slot = row * kWindowX + lane;
                    float weight[kPixels];
                    for (int r = 0; r < kPixels; ++r)
                        weight[r] = directly ? 1.0f : inverse[slot + r * kWindowX];
                    collect_own(work.layout.quads, shared.values + slot, weight, sum);
                } else {
                    collect(shared, work.layout.quads, window, inverse,
                            shared.seen + (s - 1) * kTile + row * kTileX + lane, sum);
                }
            }
        }
        decide(p, k0, sum, made);
    }
    write(p, tile, made, frames);
}

// ---- launching ----

// Low-resolution pixels under n pixels, at most.
int pixels_under(const Axis& axis, int n) {
    return std::min(axis.last + 1, int(axis.scale * float(n - 1)) + 3);
}

Layout layout_of(const AggregateLabelsParams& p, const Axis& axis_y, const Axis& axis_x) {
    const int J = p.near.neighbours, sources = p.classes > kClasses ? 1 + J : 1;
    Layout at{};
    at.quads = std::min(ceil_div(p.classes, 4), kQuads);
    at.sums = sources;
    at.capacity = pixels_under(axis_y, kWindowY) * pixels_under(axis_x, kWindowX);
    const auto take = [&](size_t bytes) {
        const int offset = at.bytes;
        at.bytes += int(ceil_div<size_t>(bytes, 16) * 16);
        return offset;
    };
    take(at.quads * kWindow * sizeof(float4));
    at.inverse = take(sources * kWindow * sizeof(float));
    at.seen = take(J * kTile * sizeof(float2));
    at.logits = take(at.capacity * at.quads * sizeof(float4));
    at.largest = take(sources > 1 ? sources * at.capacity * sizeof(float) : 0);
    at.boxes = take((1 + J) * sizeof(int4));
    at.runs = take((kWindowY + 2) * sizeof(int));
    return at;
}

bool in_32_bits(const AggregateLabelsParams& p) {
    const auto sample = [&](const int64_t stride[4]) {
        return p.classes * stride[1] + p.logit_height * stride[2] + p.logit_width * stride[3];
    };
    constexpr int64_t kMost = INT32_MAX;
    return planes_in_32_bits(p.near) && sample(p.logits.stride) <= kMost &&
           sample(p.neighbour_logits.first.stride) <= kMost && int64_t(p.classes) * kHalfBins <= kMost;
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
    const int64_t tiles = p.batch * ceil_div(p.near.height, kTileY) * ceil_div(p.near.width, kTileX);
    if (tiles > INT32_MAX) return kBadSize;
    int most = 0;
    const int code = most_shared_bytes(&most);
    if (code != cudaSuccess) return code;
    // Logits of far more pixels than the result has: too many of them lie under a window.
    if (work.layout.bytes > most || !in_32_bits(p)) return aggregate_labels_naive_cuda(p, stream);
    const auto kernel =
        p.classes > kClasses ? aggregate_labels_tile_kernel<true> : aggregate_labels_tile_kernel<false>;
    return launch(kernel, dim3(unsigned(tiles), 1, 1), dim3(kThreads, 1, 1), size_t(work.layout.bytes),
                  stream, work);
}

}  // namespace vda
