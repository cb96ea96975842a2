// CUDA kernels of aggregate.h. Nothing but the result is written, and any number of neighbours costs no
// global memory: K (2 + J) values a pixel, plus the flow and the colours. With K = 19, two neighbours and
// fp32 flow and colours that is 356 bytes a pixel in fp32 and 204 in 16 bits: 747 and 428 MB at 1024x2048,
// 174 and 100 us at 4.3 TB/s.
//
// The readable kernel has one thread per pixel. It works out 64-bit offsets, tests every tap for being there,
// and takes the occlusion test anew for every 20 classes: 3500 instructions a pixel in the code for 9.0, with
// the four taps of one class under way at a time. The other one takes the test once, keeps in shared memory
// where a pixel is read, and reads 8 planes at a time, so that a thread has 32 taps under way: 1570
// instructions a pixel in fp32 and 1360 in 16 bits, where pixels come in pairs, which fill the 128 bytes that
// a warp reads at best. On 132 multiprocessors at 1.83 GHz that is 106 and 92 us of issue slots, less than
// memory takes.
#include "aggregate.h"

#include "sighting.cuh"

namespace vda {
namespace {

template <typename T>
__global__ void aggregate_kernel(AggregateParams p, float limit) {
    for_each_pixel(p.batch, p.near.height, p.near.width,
                   [&](int64_t b, int y, int x) { aggregate_pixel<T>(p, limit, b, y, x); });
}

// ---- several classes and pixels at a time ----

constexpr int kMostNeighbours = 8;  // in shared memory: 32 bytes each for every pixel of a block

// Neighbouring pixels of a row.
template <typename T, int kPixels>
struct alignas(sizeof(T) * kPixels) Pack {
    T value[kPixels];
};

// Where a pixel is read in a neighbour.
struct alignas(16) Spot {
    int offset[4];  // in a plane; the first is -1 where the pixel is not seen
    float weight[4];
};

template <int kPixels>
__device__ __forceinline__ void find_spots(const AggregateParams& p, float limit, int64_t b, int j, int row,
                                           int column, Spot* spots, int (&frames)[kPixels]) {
    int y[kPixels], x[kPixels];
    Sighting seen[kPixels];
    for (int i = 0; i < kPixels; ++i) {
        y[i] = row;
        x[i] = column + i;
    }
    sight(p.near, limit, b, j, y, x, seen);
    const int64_t* stride = p.neighbour_probs.first.stride;
    for (int i = 0; i < kPixels; ++i) {
        const InnerTaps taps =
            inner_taps(seen[i].at, p.near.height, p.near.width, int(stride[2]), int(stride[3]));
        Spot& spot = spots[i];
        for (int tap = 0; tap < 4; ++tap) spot.weight[tap] = taps.weight(tap);
        for (int tap = 0; tap < 4; ++tap) spot.offset[tap] = taps.offset[tap];
        if (!seen[i].visible) spot.offset[0] = -1;
        frames[i] += seen[i].visible;
    }
}

// The planes of one class; own and out at the pack.
template <typename T>
struct Planes {
    const T* own;
    const T* other;  // of the first neighbour
    T* out;
};

// kClasses classes of a pack, or what is left of them: the last is then repeated, rather than test each.
template <int kClasses, typename T, int kPixels>
__device__ __forceinline__ void add_up(const AggregateParams& p, Planes<T> at, int classes, const Spot* spots,
                                       int step, const float (&share)[kPixels]) {
    using P = Pack<T, kPixels>;
    const int64_t plane = int64_t(p.near.height) * p.near.width;
    const auto next = [&](int c, int64_t stride) { return c + 1 < classes ? stride : 0; };
    float sum[kClasses][kPixels];
    for (int c = 0; c < kClasses; at.own += next(c++, p.probs.stride[1])) {
        const P mine = *reinterpret_cast<const P*>(at.own);
        for (int i = 0; i < kPixels; ++i) sum[c][i] = load(mine.value + i);
    }
    for (int j = 0; j < p.near.neighbours; ++j, at.other += p.neighbour_probs.step, spots += step) {
        const T* others[kClasses];
        const T* other = at.other;
        for (int c = 0; c < kClasses; other += next(c++, p.neighbour_probs.first.stride[1]))
            others[c] = fixed(other);
        for (int i = 0; i < kPixels; ++i) {
            const Spot spot = spots[i];
            if (spot.offset[0] < 0) continue;
            for (int c = 0; c < kClasses; ++c) {
                float value = 0;
                for (int tap = 0; tap < 4; ++tap)
                    value += spot.weight[tap] * load(others[c] + spot.offset[tap]);
                sum[c][i] += value;
            }
        }
    }
    for (int c = 0; c < kClasses; at.out += next(c++, plane)) {
        P result;
        for (int i = 0; i < kPixels; ++i) store(result.value + i, sum[c][i] * share[i]);
        *reinterpret_cast<P*>(at.out) = result;
    }
}

template <typename T, int kPixels>
__global__ void __launch_bounds__(256) aggregate_packs_kernel(AggregateParams p, float limit) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, step = blockDim.x * blockDim.y * kPixels;
    Spot* spots =
        dynamic_shared<Spot>() + thread * kPixels;  // [J, threads, kPixels]; a thread sees its own only
    const int64_t plane = int64_t(p.near.height) * p.near.width;
    for_each_pixel(p.batch, p.near.height, p.near.width / kPixels, [&](int64_t b, int y, int pack) {
        const int x = pack * kPixels;
        int frames[kPixels];
        for (int i = 0; i < kPixels; ++i) frames[i] = 1;
        for (int j = 0; j < p.near.neighbours; ++j)
            find_spots(p, limit, b, j, y, x, spots + j * step, frames);
        float share[kPixels];
        for (int i = 0; i < kPixels; ++i) share[i] = 1.0f / float(frames[i]);
        Planes<T> at{static_cast<const T*>(p.probs.data) + b * p.probs.stride[0] + y * p.probs.stride[2] +
                         x * p.probs.stride[3],
                     nth<T>(p.neighbour_probs, 0, b),
                     static_cast<T*>(p.out) + b * p.classes * plane + int64_t(y) * p.near.width + x};
        for (int left = p.classes; left > 0;) {
            const int now = left > 4 ? 8 : 4;  // 19 = 8 + 8 + 3
            if (now == 8)
                add_up<8>(p, at, left, spots, step, share);
            else
                add_up<4>(p, at, left, spots, step, share);
            left -= now;
            at.own += now * p.probs.stride[1];
            at.other += now * p.neighbour_probs.first.stride[1];
            at.out += now * plane;
        }
    });
}

// Whether every row of every plane can be read and written in packs of n.
bool packs_of(const AggregateParams& p, int n) {
    const int64_t* s = p.probs.stride;
    const auto aligned = [&](const void* data) {
        return reinterpret_cast<uintptr_t>(data) % (n * size_of(p.dtype)) == 0;
    };
    return p.near.width % n == 0 && s[3] == 1 && s[0] % n == 0 && s[1] % n == 0 && s[2] % n == 0 &&
           aligned(p.probs.data) && aligned(p.out);
}

template <typename T, int kPixels>
int launch_packs(const AggregateParams& p, void* stream) {
    const size_t shared = size_t(p.near.neighbours) * 256 * kPixels * sizeof(Spot);
    return launch(aggregate_packs_kernel<T, kPixels>,
                  pixel_grid(p.batch, p.near.height, p.near.width / kPixels), pixel_block(), shared, stream,
                  p, not_below<float>(p.near.limit));
}

}  // namespace

int aggregate_naive_cuda(const AggregateParams& p, void* stream) {
    if (p.batch == 0 || p.classes == 0 || p.near.height == 0 || p.near.width == 0) return kOk;
    return for_float(p.dtype, [&](auto type) {
        return launch(aggregate_kernel<decltype(type)>, pixel_grid(p.batch, p.near.height, p.near.width),
                      pixel_block(), 0, stream, p, not_below<float>(p.near.limit));
    });
}

int aggregate_cuda(const AggregateParams& p, void* stream) {
    if (p.batch == 0 || p.classes == 0 || p.near.height == 0 || p.near.width == 0) return kOk;
    const int H = p.near.height, W = p.near.width;
    if (p.near.neighbours > kMostNeighbours || !planes_in_32_bits(p.near) ||
        !plane_in_32_bits(p.probs.stride, H, W) || !plane_in_32_bits(p.neighbour_probs.first.stride, H, W) ||
        int64_t(H) * W > INT32_MAX)
        return aggregate_naive_cuda(p, stream);
    return for_float(p.dtype, [&](auto type) {
        using T = decltype(type);
        constexpr int kPair = sizeof(T) == 2 ? 2 : 1;
        return packs_of(p, kPair) ? launch_packs<T, kPair>(p, stream) : launch_packs<T, 1>(p, stream);
    });
}

}  // namespace vda
