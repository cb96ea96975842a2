// Fast CUDA kernel of consensus.h: 8 pixels per thread, so that flow comes in accesses of 16 bytes and labels
// in accesses of 8; 8 gathers in flight, of two passes of L1 each (pack.cuh). The whole batch is one launch.
// 11 bytes per pixel with fp32 flow, 7 with 16 bits; with thresholds on the fly and 16-bit confidences 4
// more, and 2 KB of shared memory per block for the bars.
#include <type_traits>

#include "bars.cuh"
#include "consensus.h"
#include "pack.cuh"

namespace vda {
namespace {

constexpr int kPixels = 8;

struct Final {};  // instead of the type of the confidences: labels are final

// Elements of a thread's R rows of N pixels, of the array [.., H, W] whose sample begins at `from`. Rows
// below the last are the last again.
template <int R, int N, typename T>
__device__ __forceinline__ void load_own(const T* from, const PackOfPixels<R, N>& at, int height,
                                         const int64_t (&stride)[3], Pack<T, N> (&own)[R]) {
    const int first = N > 1 ? at.x : at.x * int(stride[2]);
#pragma unroll
    for (int r = 0; r < R; ++r) {
        own[r] = load_pack<N>(from + min(at.y + r, height - 1) * int(stride[1]) + first);
    }
}

template <ConsensusMode mode, int R, int N>
__device__ __forceinline__ void agree_all(Pack<uint8_t, N> (&own)[R], const uint8_t (&warped)[R][N],
                                          const Pack<uint8_t, N> (&visible)[R], uint8_t ignore) {
#pragma unroll
    for (int i = 0; i < R * N; ++i) {
        uint8_t& label = own[i / N].at[i % N];
        label = agree(mode, label, warped[i / N][i % N], visible[i / N].at[i % N] != 0, ignore);
    }
}

template <int R, int N>
__device__ __forceinline__ void agree_all(ConsensusMode mode, Pack<uint8_t, N> (&own)[R],
                                          const uint8_t (&warped)[R][N], const Pack<uint8_t, N> (&visible)[R],
                                          uint8_t ignore) {
    switch (mode) {  // the same for all threads
        case ConsensusMode::strict:
            return agree_all<ConsensusMode::strict>(own, warped, visible, ignore);
        case ConsensusMode::lenient:
            return agree_all<ConsensusMode::lenient>(own, warped, visible, ignore);
        default:
            return agree_all<ConsensusMode::fill_in>(own, warped, visible, ignore);
    }
}

// Takes only those labels, and those warped to their place, whose confidence passes. Where there is no pixel,
// warped is `ignore` and stays it, whatever the confidence.
template <typename T, int R, int N>
__device__ __forceinline__ void keep_all(const ConsensusParams& p, const float* bars,
                                         const Pack<T, N> (&confidence)[R], const T (&other)[R][N],
                                         Pack<uint8_t, N> (&own)[R], uint8_t (&warped)[R][N]) {
#pragma unroll
    for (int i = 0; i < R * N; ++i) {
        uint8_t &label = own[i / N].at[i % N], &there = warped[i / N][i % N];
        label = kept(label, load(&confidence[i / N].at[i % N]), bars, p.inclusive, p.ignore);
        there = kept(there, load(&other[i / N][i % N]), bars + kLabels, p.inclusive, p.ignore);
    }
}

template <typename T, int R, int N>
__global__ void __launch_bounds__(256) consensus_kernel(ConsensusParams p) {
    constexpr bool final = std::is_same_v<T, Final>;
    using Confidence = std::conditional_t<final, uint8_t, T>;
    const PackOfPixels<R, N> at;
    float* bars = dynamic_shared<float>();  // of the labels, and then of the reference
    if constexpr (!final) {
        const int i = int(threadIdx.y * 32 + threadIdx.x);
        load_bar(p.theta.row(at.b), p.classes, i, bars);
        load_bar(p.reference_theta.row(at.b), p.classes, i, bars + kLabels);
        __syncthreads();
    }
    if (at.x >= p.width || at.y >= p.height) return;

    Pack<uint8_t, N> own[R], visible[R];
    Pack<Confidence, N> confidence[R];
    load_own(sample_of<uint8_t>(p.label.data, at.b, p.label.stride[0]), at, p.height, p.label.stride, own);
    memset(visible, 1, sizeof(visible));
    if (p.visible.data != nullptr) {
        const uint8_t* seen = sample_of<uint8_t>(p.visible.data, at.b, p.visible.stride[0]);
        load_own(seen, at, p.height, p.visible.stride, visible);
    }
    if constexpr (!final) {
        const T* confidences = sample_of<T>(p.confidence.data, at.b, p.confidence.stride[0]);
        load_own(confidences, at, p.height, p.confidence.stride, confidence);
    }
    Position<float> position[R][N];
    load_positions(p.flow, at.b, at.y, at.x, p.height, position);

    const uint8_t* reference = as_is(sample_of<uint8_t>(p.reference.data, at.b, p.reference.stride[0]));
    uint8_t warped[R][N];
    Confidence other[R][N];
#pragma unroll
    for (int i = 0; i < R * N; ++i) {
        const Pixel from = nearest_of(position[i / N][i % N], p.height, p.width);
        const uint8_t there = fetch(reference + offset_of(from, p.reference.stride));
        warped[i / N][i % N] = from.exists ? there : p.ignore;
        if constexpr (!final) {
            const int64_t (&stride)[3] = p.reference_confidence.stride;
            other[i / N][i % N] =
                fetch(sample_of<T>(p.reference_confidence.data, at.b, stride[0]) + offset_of(from, stride));
        }
    }
    if constexpr (!final) keep_all(p, bars, confidence, other, own, warped);
    agree_all(p.mode, own, warped, visible, p.ignore);
    uint8_t* out = sample_of<uint8_t>(p.out, at.b, int64_t(p.height) * p.width) + at.y * p.width + at.x;
    store_rows(out, own, p.width, p.height - at.y);
}

// Whether every array but the gathered ones can be read in packs.
bool packed(const ConsensusParams& p) {
    const int64_t* stride = p.confidence.stride;
    return p.width % kPixels == 0 && packs(p.flow, kPixels) && packs(p.label, kPixels) &&
           packs(p.out, 1, kPixels, 1, {p.width}) &&
           (p.visible.data == nullptr || packs(p.visible, kPixels)) &&
           (p.confidence.data == nullptr || packs(p.confidence.data, size_of(p.confidence.dtype), kPixels,
                                                  stride[2], {stride[0], stride[1]}));
}

template <typename T>
int run(const ConsensusParams& p, void* stream) {
    const size_t shared = std::is_same_v<T, Final> ? 0 : 2 * kLabels * sizeof(float);
    if (packed(p)) {
        return launch(consensus_kernel<T, 1, kPixels>, pack_grid<1, kPixels>(p.batch, p.height, p.width),
                      pixel_block(), shared, stream, p);
    }
    return launch(consensus_kernel<T, 4, 1>, pack_grid<4, 1>(p.batch, p.height, p.width), pixel_block(),
                  shared, stream, p);
}

}  // namespace

int consensus_cuda(const ConsensusParams& p, void* stream) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    const bool fast =  // strides of absent arrays are 0
        p.flow.dtype != Dtype::f64 &&
        addressable(p.batch, p.height, p.width,
                    {plane_of(p.flow.stride), plane_of(p.label.stride), plane_of(p.reference.stride),
                     plane_of(p.visible.stride), plane_of(p.confidence.stride),
                     plane_of(p.reference_confidence.stride)});
    if (!fast) return consensus_naive_cuda(p, stream);
    if (p.confidence.data == nullptr) return run<Final>(p, stream);
    return for_float(p.confidence.dtype, [&](auto type) { return run<decltype(type)>(p, stream); });
}

}  // namespace vda
