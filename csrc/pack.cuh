// Several neighbouring pixels per thread, for the kernels that are bound by memory: packs of elements that
// move in one access, and the positions that a pack of flow points to.
//
// How many pixels? Streams alone would take 16 bytes per thread. But L1 answers a gather from 32 banks of 4
// bytes: lanes whose pixels lie 16 bytes apart in the sampled image cost four passes where neighbours cost
// one. For 19 planes of fp32 that makes 360 passes per 32 pixels, while an H200's device memory delivers
// their 160 bytes each in about 300 cycles of a multiprocessor; for RGB 63 against 84. With 4 bytes of the
// sampled image per thread (1 pixel of fp32, 2 of 16 bit, 4 labels of a byte) it is 135 and 27. A stream
// loses nothing: a warp still reads whole lines of 128 bytes, and several rows per thread keep as much in
// flight as wider accesses would. Figures are worked out, not measured; kSpanBytes of 8 and 16 work too.
#pragma once

#include <initializer_list>

#include "common.cuh"
#include "sampling.h"

namespace vda {

constexpr int kSpanBytes = 4;  // of the sampled image, per thread and row

template <typename T>
constexpr int kSpan = kSpanBytes / int(sizeof(T)) > 1 ? kSpanBytes / int(sizeof(T)) : 1;

// Rows of N pixels per thread, so that two to four pixels are under way and registers stay below 80.
template <int N>
constexpr int kRows = N < 4 ? 2 : 1;

template <typename T, int N>
struct Pack {
    T at[N];
};

namespace detail {
template <int bytes>
struct WordOf;
template <>
struct WordOf<1> {
    using type = unsigned char;
};
template <>
struct WordOf<2> {
    using type = unsigned short;
};
template <>
struct WordOf<4> {
    using type = unsigned;
};
template <>
struct WordOf<8> {
    using type = uint2;
};
template <>
struct WordOf<16> {
    using type = uint4;
};
}  // namespace detail

// One access is at most 16 bytes.
template <typename T, int N>
constexpr int kAccess = int(sizeof(Pack<T, N>)) < 16 ? int(sizeof(Pack<T, N>)) : 16;

// N neighbouring elements through the read-only path. The address is a multiple of kAccess.
template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
    using Word = typename detail::WordOf<kAccess<T, N>>::type;
    constexpr int words = sizeof(Pack<T, N>) / sizeof(Word);
    Word word[words];
#pragma unroll
    for (int i = 0; i < words; ++i) word[i] = __ldg(reinterpret_cast<const Word*>(from) + i);
    Pack<T, N> pack;
    memcpy(&pack, word, sizeof(pack));
    return pack;
}

template <int N, typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& pack) {
    using Word = typename detail::WordOf<kAccess<T, N>>::type;
    constexpr int words = sizeof(Pack<T, N>) / sizeof(Word);
    Word word[words];
    memcpy(word, &pack, sizeof(pack));
#pragma unroll
    for (int i = 0; i < words; ++i) reinterpret_cast<Word*>(to)[i] = word[i];
}

// The first `rows` of R packs, one below the other.
template <typename T, int R, int N>
__device__ __forceinline__ void store_rows(T* to, const Pack<T, N> (&pack)[R], int stride_y, int rows) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
        if (r < rows) store_pack(to + r * stride_y, pack[r]);
    }
}

// One element through the read-only path, as it is and as a number.
template <typename T>
__device__ __forceinline__ T fetch(const T* from) {
    return load_pack<1>(from).at[0];
}
template <typename T>
__device__ __forceinline__ Acc<T> gather(const T* from) {
    const T element = fetch(from);
    return load(&element);
}

// ---- what a launcher asks before it takes packs ----

// Whether packs of N elements of `size` bytes are aligned in an array whose x is contiguous: its start, and
// every other stride.
inline bool packs(const void* data, int size, int n, int64_t stride_x,
                  std::initializer_list<int64_t> strides) {
    const int access = std::min(16, size * n);
    if (n > 1 && stride_x != 1) return false;
    if (reinterpret_cast<uintptr_t>(data) % uintptr_t(access) != 0) return false;
    return std::all_of(strides.begin(), strides.end(), [&](int64_t s) { return s * size % access == 0; });
}
inline bool packs(const FlowView& flow, int n) {
    return packs(flow.data, size_of(flow.dtype), n, flow.stride[3],
                 {flow.stride[0], flow.stride[1], flow.stride[2]});
}
inline bool packs(const LabelView& labels, int n) {
    return packs(labels.data, 1, n, labels.stride[2], {labels.stride[0], labels.stride[1]});
}

constexpr int kLongestSide = 1 << 22;  // of a frame: float positions and rounded() are exact, and to spare

// Whether the fast kernels can address these arrays, [.., H, W] with strides of y and x each: 32 bits inside
// a plane, one sample per block in z. Else the readable ones serve.
inline bool addressable(int64_t batch, int height, int width,
                        std::initializer_list<std::pair<int64_t, int64_t>> strides) {
    const auto small = [&](const std::pair<int64_t, int64_t>& stride) {
        const auto [y, x] = stride;
        return y >= 0 && x >= 0 && (height - 1) * y + (width - 1) * x < (int64_t(1) << 31);
    };
    return batch <= kMaxGridYZ && height <= 8 * kMaxGridYZ && height <= kLongestSide &&
           width <= kLongestSide && small({width, 1}) && std::all_of(strides.begin(), strides.end(), small);
}
template <size_t dimensions>
std::pair<int64_t, int64_t> plane_of(const int64_t (&stride)[dimensions]) {
    return {stride[dimensions - 2], stride[dimensions - 1]};
}

// Sample b of an array. In bytes, so that the compiler keeps it apart from the offset inside the sample: then
// the sum is the same for a whole block, and an address is this plus a 32-bit offset, one instruction.
template <typename T>
__device__ __forceinline__ const T* sample_of(const void* data, int64_t b, int64_t stride) {
    return reinterpret_cast<const T*>(static_cast<const char*>(data) + b * (stride * int(sizeof(T))));
}
template <typename T>
__device__ __forceinline__ T* sample_of(void* data, int64_t b, int64_t stride) {
    return reinterpret_cast<T*>(static_cast<char*>(data) + b * (stride * int(sizeof(T))));
}

// The same pointer, of which the compiler no longer knows where it comes from. With elements of a byte it
// would merge the two sums above after all, and do the first one anew at every gather.
template <typename T>
__device__ __forceinline__ const T* as_is(const T* pointer) {
#if defined(__CUDA_ARCH__)
    asm("" : "+l"(pointer));
#endif
    return pointer;
}

// ---- the pixels of a thread ----

// A block takes 8 R rows of 32 packs of N pixels; each thread R rows of one pack. One sample per block in z,
// so that everything that belongs to the sample is uniform and costs no vector register.
template <int R, int N>
dim3 pack_grid(int64_t batch, int height, int width) {
    return dim3(unsigned(ceil_div(width, 32 * N)), unsigned(ceil_div(height, 8 * R)), unsigned(batch));
}

template <int R, int N>
struct PackOfPixels {
    int64_t b;
    int x, y;  // the first pixel

    __device__ __forceinline__ PackOfPixels()
        : b(blockIdx.z),
          x(int(blockIdx.x * 32 + threadIdx.x) * N),
          y(int(blockIdx.y * 8 + threadIdx.y) * R) {}
};

// ---- flow ----

__device__ __forceinline__ float in_pixels(float flow) { return flow; }
__device__ __forceinline__ float in_pixels(half flow) { return to_float(flow); }
__device__ __forceinline__ float in_pixels(bfloat16 flow) { return to_float(flow); }
// tenths() without its division: the product is corrected by its exact error, which gives the rounded
// quotient for every int16 (a test tries them all). The intrinsics keep the compiler from merging it with
// what follows.
__device__ __forceinline__ float in_pixels(int16_t flow) {
    const float n = float(flow), guess = __fmul_rn(n, 0.1f);
    return __fmaf_rn(__fmaf_rn(-10.0f, guess, n), 0.1f, guess);
}

namespace detail {
template <typename F, int R, int N>
__device__ __forceinline__ void load_positions(const FlowView& flow, int64_t b, int y, int x, int height,
                                               Position<float> (&at)[R][N]) {
    const F* u = sample_of<F>(flow.data, b, flow.stride[0]);
    const F* v = sample_of<F>(u, 1, flow.stride[1]);
    Pack<F, N> along_x[R], along_y[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const int row = min(y + r, height - 1);
        const int i = row * int(flow.stride[2]) + (N > 1 ? x : x * int(flow.stride[3]));
        along_x[r] = load_pack<N>(u + i);
        along_y[r] = load_pack<N>(v + i);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            at[r][n] = {float(x) + float(n) + in_pixels(along_x[r].at[n]),  // the first sum is exact
                        float(min(y + r, height - 1)) + in_pixels(along_y[r].at[n])};
        }
    }
}
}  // namespace detail

// Sample positions of the N pixels from x on in rows y, y + 1 .. of image b. Rows below the last are the last
// again: harmless, and cheaper than a branch around the loads. The type is the same for all threads; float
// first, because it is the usual one.
template <int R, int N>
__device__ __forceinline__ void load_positions(const FlowView& flow, int64_t b, int y, int x, int height,
                                               Position<float> (&at)[R][N]) {
    if (flow.dtype == Dtype::f32) return detail::load_positions<float>(flow, b, y, x, height, at);
    if (flow.dtype == Dtype::f16) return detail::load_positions<half>(flow, b, y, x, height, at);
    if (flow.dtype == Dtype::bf16) return detail::load_positions<bfloat16>(flow, b, y, x, height, at);
    return detail::load_positions<int16_t>(flow, b, y, x, height, at);
}

// Position i of a thread. Registers have no addresses: selected, not indexed.
template <int R, int N>
__device__ __forceinline__ Position<float> pick(const Position<float> (&at)[R][N], int i) {
    Position<float> found = at[0][0];
#pragma unroll
    for (int k = 1; k < R * N; ++k) {
        if (k == i) found = at[k / N][k % N];
    }
    return found;
}

// ---- nearest pixel ----

// rint(at) as an integer, where it lies in [-2^22, 2^22): the sum has no bits left for the fraction, so the
// adder rounds, ties to even. Everything else, NaN and infinities included, gives a number outside [0, 2^22),
// hence a pixel of no frame that has at most 2^22 of them a side. One addition instead of two conversions at
// a quarter of the rate.
__device__ __forceinline__ int rounded(float at) {
    constexpr float kNoFraction = 12582912.0f;  // 1.5 * 2^23
    return int(__float_as_uint(__fadd_rn(at, kNoFraction)) - 0x4b400000u);
}

// nearest_pixel() of sampling.h without padding, for frames of at most kLongestSide.
__device__ __forceinline__ Pixel nearest_of(Position<float> p, int height, int width) {
    const int x = rounded(p.x), y = rounded(p.y);
    return {y, x, unsigned(x) < unsigned(width) && unsigned(y) < unsigned(height)};
}

// Its element offset in a plane; of the first element where there is no such pixel, so that the read needs no
// branch.
template <size_t dimensions>
__device__ __forceinline__ int offset_of(const Pixel& pixel, const int64_t (&stride)[dimensions]) {
    const int y = int(stride[dimensions - 2]), x = int(stride[dimensions - 1]);
    return pixel.exists ? pixel.y * y + pixel.x * x : 0;
}

// Padding::border: where a position is, it lies in the frame; nowhere stays nowhere.
template <int R, int N>
__device__ __forceinline__ void clamp_to_border(Position<float> (&at)[R][N], int height, int width) {
#pragma unroll
    for (int i = 0; i < R * N; ++i) {
        Position<float>& p = at[i / N][i % N];
        const bool is = somewhere(p);
        p.x = is ? fminf(fmaxf(p.x, 0.0f), float(width - 1)) : INFINITY;
        p.y = fminf(fmaxf(p.y, 0.0f), float(height - 1));
    }
}

}  // namespace vda
