// Correlation on the CPU: two register-blocked matrix-product-like tiles, one for the forward pass, one for
// the two gradients. Each is written once on GCC vectors of `Bytes` bytes and compiled for three instruction
// sets.
#include "correlation.h"

#include <algorithm>

#include "parallel.h"

namespace vda {
namespace {

#if defined(__GNUC__)
#define VDA_INLINE inline __attribute__((always_inline))
#else
#define VDA_INLINE inline
#endif

// A vector of `Bytes` bytes and the same vector at any element's address.
template <typename A, int Bytes>
struct Lanes {
    typedef A vector __attribute__((vector_size(Bytes)));
    typedef A unaligned __attribute__((vector_size(Bytes), aligned(sizeof(A)), may_alias));
    static constexpr int count = Bytes / sizeof(A);
};

constexpr int kAlign = 16;   // packed rows are multiples of this: the most lanes of any instruction set
constexpr int kRows = 4;     // forward: rows of f1 (of one parity) that share a load of f2
constexpr int kColumns = 3;  // forward: displacements along x that share a load of f1
constexpr int kBand = 24;    // forward: displacements along x whose sums are held at once
constexpr int kChunk = 64;   // forward: channels between two visits of those sums; keeps both operands in L1
constexpr int kPixels = 6;   // backward: pixels (of one parity) that share a load of features
constexpr int kVectors = 2;  // backward: vectors of channels that share a broadcast of the gradient

int round_up(int n, int multiple) { return ceil_div(n, multiple) * multiple; }

// ---------------------------------------------------------------------------------------------------------------
// Forward. Packed operands of one sample: f1 as [H][W / lanes][C][lanes], f2 as [H][C][pad + W + pad], zero
// padded.

struct Packed {
    int64_t f1_width, f2_width, f1_row, f2_row, margin;
    explicit Packed(const CorrelationParams& p)
        : f1_width(round_up(p.width, kAlign)),
          f2_width(f1_width + 2 * int64_t(p.radius) * p.stride),
          f1_row(f1_width * p.channels),
          f2_row(f2_width * p.channels),
          margin(int64_t(p.radius) * p.stride) {}
    int64_t elements(const CorrelationParams& p) const { return p.height * (f1_row + f2_row); }
};

template <typename T>
void pack_rows(const CorrelationParams& p, int64_t b, int lanes, Acc<T>* f1, Acc<T>* f2, int64_t y_begin,
               int64_t y_end) {
    const Packed size(p);
    const T* from1 = static_cast<const T*>(p.f1.data) + b * p.f1.stride[0];
    const T* from2 = static_cast<const T*>(p.f2.data) + b * p.f2.stride[0];
    for (int64_t y = y_begin; y < y_end; ++y) {
        std::fill_n(f1 + y * size.f1_row, size.f1_row, Acc<T>(0));
        std::fill_n(f2 + y * size.f2_row, size.f2_row, Acc<T>(0));
        for (int c = 0; c < p.channels; ++c) {
            const T* row1 = from1 + c * p.f1.stride[1] + y * p.f1.stride[2];
            const T* row2 = from2 + c * p.f2.stride[1] + y * p.f2.stride[2];
            Acc<T>* to1 = f1 + y * size.f1_row + int64_t(c) * lanes;
            Acc<T>* to2 = f2 + y * size.f2_row + c * size.f2_width + size.margin;
            for (int x = 0; x < p.width; ++x) {
                to1[int64_t(x / lanes) * lanes * p.channels + x % lanes] = load(row1 + x * p.f1.stride[3]);
                to2[x] = load(row2 + x * p.f2.stride[3]);
            }
        }
    }
}

// sums[column][row] += sum over `channels` of f1 (kRows vectors, one from each pointer) times f2 (Columns
// vectors, `step` apart). kRows * Columns accumulators stay in registers.
template <typename A, int Bytes, int Columns>
VDA_INLINE void forward_tile(const A* const f1[kRows], const A* f2, int64_t f2_width, int step, int channels,
                             A* sums) {
    using V = typename Lanes<A, Bytes>::vector;
    using U = typename Lanes<A, Bytes>::unaligned;
    constexpr int lanes = Lanes<A, Bytes>::count;
    V sum[Columns][kRows];
    for (int i = 0; i < Columns * kRows; ++i) sum[i / kRows][i % kRows] = *(const U*)(sums + i * lanes);
    for (int c = 0; c < channels; ++c, f2 += f2_width) {
        V a[kRows];
        for (int row = 0; row < kRows; ++row) a[row] = *(const U*)(f1[row] + c * lanes);
        for (int column = 0; column < Columns; ++column) {
            const V b = *(const U*)(f2 + column * step);
            for (int row = 0; row < kRows; ++row) sum[column][row] += a[row] * b;
        }
    }
    for (int i = 0; i < Columns * kRows; ++i) *(U*)(sums + i * lanes) = sum[i / kRows][i % kRows];
}

// sums[column][row] for `columns` displacements from f2 on: all channels, chunk by chunk.
template <typename A, int Bytes>
VDA_INLINE void forward_band(const CorrelationParams& p, const A* const f1[kRows], const A* f2,
                             int64_t f2_width, int columns, A* sums) {
    constexpr int lanes = Lanes<A, Bytes>::count;
    std::fill_n(sums, columns * kRows * lanes, A(0));
    for (int c = 0; c < p.channels; c += kChunk) {
        const int n = std::min(kChunk, p.channels - c);
        const A* a[kRows];
        for (int row = 0; row < kRows; ++row) a[row] = f1[row] + int64_t(c) * lanes;
        const A* b = f2 + c * f2_width;
        int column = 0;
        for (; column + kColumns <= columns; column += kColumns) {
            forward_tile<A, Bytes, kColumns>(a, b + int64_t(column) * p.stride, f2_width, p.stride, n,
                                             sums + column * kRows * lanes);
        }
        for (; column < columns; ++column) {
            forward_tile<A, Bytes, 1>(a, b + int64_t(column) * p.stride, f2_width, p.stride, n,
                                      sums + column * kRows * lanes);
        }
    }
}

// All outputs of kRows rows of one parity, first row y0. Row y0 + t * stride of f2 serves row i of the group
// at vertical displacement step t - i, so one load of f2 feeds kRows outputs.
template <typename T, int Bytes>
VDA_INLINE void forward_rows(const CorrelationParams& p, int64_t b, const Acc<T>* f1, const Acc<T>* f2,
                             int y0) {
    using A = Acc<T>;
    constexpr int lanes = Lanes<A, Bytes>::count;
    const Packed size(p);
    const int d = displacements(p);
    const int64_t plane = int64_t(p.height) * p.width;
    T* out = static_cast<T*>(p.out) + b * d * d * plane;
    const A scale = A(1) / A(p.channels);
    alignas(64) A sums[kBand * kRows * lanes];
    for (int t = -p.radius; t <= p.radius + kRows - 1; ++t) {
        const int64_t row2 = y0 + int64_t(t) * p.stride;
        const bool exists = row2 >= 0 && row2 < p.height;
        for (int x0 = 0; x0 < p.width; x0 += lanes) {
            const int count = std::min(lanes, p.width - x0);
            const A* a[kRows];
            for (int row = 0; row < kRows; ++row) {  // rows below the frame repeat the first; never stored
                const int64_t y = y0 + int64_t(row) * p.stride;
                a[row] = f1 + (y < p.height ? y : y0) * size.f1_row + int64_t(x0) * p.channels;
            }
            for (int k0 = 0; k0 < d; k0 += kBand) {
                const int columns = std::min(kBand, d - k0);
                if (exists) {
                    const A* from = f2 + row2 * size.f2_row + x0 + int64_t(k0) * p.stride;
                    forward_band<A, Bytes>(p, a, from, size.f2_width, columns, sums);
                } else {
                    std::fill_n(sums, columns * kRows * lanes, A(0));
                }
                for (int row = 0; row < kRows; ++row) {
                    const int j = t - row;
                    const int64_t y = y0 + int64_t(row) * p.stride;
                    if (j < -p.radius || j > p.radius || y >= p.height) continue;
                    T* to = out + (int64_t(j + p.radius) * d + k0) * plane + y * p.width + x0;
                    for (int k = 0; k < columns; ++k, to += plane) {
                        const A* from = sums + (k * kRows + row) * lanes;
                        for (int i = 0; i < count; ++i) store(to + i, from[i] * scale);
                    }
                }
            }
        }
    }
}

// Groups are numbered parity first, so neighbours in the list are neighbours in the frame.
template <typename T, int Bytes>
VDA_INLINE void forward_groups(const CorrelationParams& p, int64_t b, const Acc<T>* f1, const Acc<T>* f2,
                               int64_t begin, int64_t end) {
    const int parities = std::min(p.stride, p.height);
    for (int64_t group = begin; group < end; ++group) {
        const int64_t y0 = group % parities + group / parities * kRows * p.stride;
        if (y0 < p.height) forward_rows<T, Bytes>(p, b, f1, f2, int(y0));
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Backward. One gradient at a pixel is a sum over displacements of (an element of grad_out) times (the other
// frame's features at the displaced pixel). For kPixels pixels one step apart the displaced pixels overlap: a
// banded matrix product weights[q][pixel] x features[q][channel], where q runs over the union of displaced
// pixels along x.

struct Band {
    int count;         // D + kPixels - 1 positions q
    int64_t channels;  // C rounded up
    explicit Band(const CorrelationParams& p)
        : count(displacements(p) + kPixels - 1), channels(round_up(p.channels, kAlign * kVectors)) {}
    int64_t features(const CorrelationParams& p) const { return int64_t(p.height) * p.width * channels; }
    int64_t weights(const CorrelationParams& p) const {
        return ceil_div(int64_t(displacements(p)) * count * kPixels, int64_t(kAlign)) * kAlign;
    }
};

// Features of one sample as [H][W][C rounded up], zero in the surplus.
template <typename T>
void pack_features(const CorrelationParams& p, const View& view, int64_t b, Acc<T>* to, int64_t y_begin,
                   int64_t y_end) {
    const int64_t channels = Band(p).channels;
    const T* from = static_cast<const T*>(view.data) + b * view.stride[0];
    for (int64_t y = y_begin; y < y_end; ++y) {
        Acc<T>* row = to + y * p.width * channels;
        std::fill_n(row, p.width * channels, Acc<T>(0));
        for (int c = 0; c < p.channels; ++c) {
            const T* source = from + c * view.stride[1] + y * view.stride[2];
            for (int x = 0; x < p.width; ++x) row[x * channels + c] = load(source + x * view.stride[3]);
        }
    }
}

// One kPixels-wide piece of one gradient: pixels (y, x0 + i * stride). Second is false for grad_f1 (gather
// from f2 at y + dy, weights at the pixel itself) and true for grad_f2 (gather from f1 at y - dy, weights
// there).
struct Piece {
    int64_t b;
    int y, x0;
    bool second;
};

VDA_INLINE int64_t displaced_row(const CorrelationParams& p, const Piece& piece, int j) {
    return piece.y + int64_t(piece.second ? -j : j) * p.stride;
}

template <typename T>
VDA_INLINE void pack_weights(const CorrelationParams& p, const Piece& piece, Acc<T>* weights) {
    const int d = displacements(p), band = Band(p).count;
    const T* grad = static_cast<const T*>(p.grad_out.data) + piece.b * p.grad_out.stride[0];
    for (int j = -p.radius; j <= p.radius; ++j) {
        const int64_t row = displaced_row(p, piece, j);
        if (row < 0 || row >= p.height) continue;
        const T* plane = grad + int64_t(j + p.radius) * d * p.grad_out.stride[1] +
                         (piece.second ? row : piece.y) * p.grad_out.stride[2];
        Acc<T>* to = weights + int64_t(j + p.radius) * band * kPixels;
        for (int q = 0; q < band; ++q) {
            const int64_t position = piece.x0 + int64_t(q - p.radius) * p.stride;
            for (int i = 0; i < kPixels; ++i) {
                const int64_t pixel = piece.x0 + int64_t(i) * p.stride;
                const int k = piece.second ? i - q + d - 1 : q - i;
                const bool valid = k >= 0 && k < d && pixel < p.width && position >= 0 && position < p.width;
                to[q * kPixels + i] = valid ? load(plane + k * p.grad_out.stride[1] +
                                                   (piece.second ? position : pixel) * p.grad_out.stride[3])
                                            : Acc<T>(0);
            }
        }
    }
}

// kVectors vectors of channels of kPixels pixels: kPixels * kVectors accumulators stay in registers.
template <typename A, int Bytes>
VDA_INLINE void backward_tile(const CorrelationParams& p, const Piece& piece, const A* weights,
                              const A* features, A* result) {
    using V = typename Lanes<A, Bytes>::vector;
    using U = typename Lanes<A, Bytes>::unaligned;
    constexpr int lanes = Lanes<A, Bytes>::count;
    const Band band(p);
    V sum[kPixels][kVectors] = {};
    for (int j = -p.radius; j <= p.radius; ++j) {
        const int64_t row = displaced_row(p, piece, j);
        if (row < 0 || row >= p.height) continue;
        const A* w = weights + int64_t(j + p.radius) * band.count * kPixels;
        for (int q = 0; q < band.count; ++q) {
            const int64_t position = piece.x0 + int64_t(q - p.radius) * p.stride;
            if (position < 0 || position >= p.width) continue;
            const A* from = features + (row * p.width + position) * band.channels;
            V f[kVectors];
            for (int v = 0; v < kVectors; ++v) f[v] = *(const U*)(from + v * lanes);
            for (int i = 0; i < kPixels; ++i) {
                const A weight = w[q * kPixels + i];
                for (int v = 0; v < kVectors; ++v) sum[i][v] += weight * f[v];
            }
        }
    }
    for (int i = 0; i < kPixels; ++i) {
        for (int v = 0; v < kVectors; ++v) *(U*)(result + (i * kVectors + v) * lanes) = sum[i][v];
    }
}

template <typename T, int Bytes>
VDA_INLINE void backward_piece(const CorrelationParams& p, const Piece& piece, const Acc<T>* features,
                               Acc<T>* weights) {
    using A = Acc<T>;
    constexpr int lanes = Lanes<A, Bytes>::count;
    const int64_t plane = int64_t(p.height) * p.width;
    T* grad = static_cast<T*>(piece.second ? p.grad_f2 : p.grad_f1) + piece.b * p.channels * plane;
    const A scale = A(1) / A(p.channels);
    pack_weights<T>(p, piece, weights);
    alignas(64) A result[kPixels * kVectors * lanes];
    for (int c0 = 0; c0 < p.channels; c0 += kVectors * lanes) {
        backward_tile<A, Bytes>(p, piece, weights, features + c0, result);
        const int count = std::min(kVectors * lanes, p.channels - c0);
        for (int i = 0; i < kPixels; ++i) {
            const int64_t x = piece.x0 + int64_t(i) * p.stride;
            if (x >= p.width) break;
            T* to = grad + c0 * plane + int64_t(piece.y) * p.width + x;
            for (int c = 0; c < count; ++c) store(to + c * plane, result[i * kVectors * lanes + c] * scale);
        }
    }
}

template <typename T, int Bytes>
VDA_INLINE void backward_rows(const CorrelationParams& p, int64_t b, bool second, const Acc<T>* features,
                              Acc<T>* weights, int64_t begin, int64_t end) {
    const int parities = std::min(p.stride, p.width);
    for (int64_t y = begin; y < end; ++y) {
        for (int64_t group = 0; group < p.width; group += int64_t(kPixels) * p.stride) {
            for (int parity = 0; parity < parities && group + parity < p.width; ++parity) {
                backward_piece<T, Bytes>(p, {b, int(y), int(group) + parity, second}, features, weights);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Instruction sets. The bodies above are always inlined, hence compiled for the set of the function they end
// up in.

template <typename T>
struct Kernels {
    void (*forward)(const CorrelationParams&, int64_t, const Acc<T>*, const Acc<T>*, int64_t, int64_t);
    void (*backward)(const CorrelationParams&, int64_t, bool, const Acc<T>*, Acc<T>*, int64_t, int64_t);
    int bytes;
};

#define VDA_KERNELS(name, target, bytes)                                                                    \
    template <typename T>                                                                                   \
    target void forward_##name(const CorrelationParams& p, int64_t b, const Acc<T>* f1, const Acc<T>* f2,   \
                               int64_t begin, int64_t end) {                                                \
        forward_groups<T, bytes>(p, b, f1, f2, begin, end);                                                 \
    }                                                                                                       \
    template <typename T>                                                                                   \
    target void backward_##name(const CorrelationParams& p, int64_t b, bool second, const Acc<T>* features, \
                                Acc<T>* weights, int64_t begin, int64_t end) {                              \
        backward_rows<T, bytes>(p, b, second, features, weights, begin, end);                               \
    }

VDA_KERNELS(baseline, , 16)
#if defined(__x86_64__) && defined(__GNUC__)
VDA_KERNELS(avx2, __attribute__((target("avx2,fma"))), 32)
VDA_KERNELS(avx512, __attribute__((target("avx512f,fma"))), 64)
#endif

template <typename T>
Kernels<T> kernels() {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f")) return {forward_avx512<T>, backward_avx512<T>, 64};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return {forward_avx2<T>, backward_avx2<T>, 32};
    }
#endif
    return {forward_baseline<T>, backward_baseline<T>, 16};
}

template <typename T>
int forward(const CorrelationParams& p, int threads) {
    using A = Acc<T>;
    const Packed size(p);
    const Kernels<T> kernel = kernels<T>();
    A* f1 = static_cast<A*>(p.workspace);
    A* f2 = f1 + p.height * size.f1_row;
    const int parities = std::min(p.stride, p.height);
    const int64_t groups = int64_t(parities) * ceil_div(ceil_div(p.height, p.stride), kRows);
    for (int64_t b = 0; b < p.batch; ++b) {
        parallel_for(p.height, 8, threads, [&](int64_t begin, int64_t end) {
            pack_rows<T>(p, b, kernel.bytes / int(sizeof(A)), f1, f2, begin, end);
        });
        parallel_for(groups, 1, threads,
                     [&](int64_t begin, int64_t end) { kernel.forward(p, b, f1, f2, begin, end); });
    }
    return kOk;
}

template <typename T>
int backward(const CorrelationParams& p, int threads) {
    using A = Acc<T>;
    const Band band(p);
    const Kernels<T> kernel = kernels<T>();
    A* features = static_cast<A*>(p.workspace);
    A* weights = features + band.features(p);
    for (int64_t b = 0; b < p.batch; ++b) {
        for (const bool second : {false, true}) {
            if (!(second ? p.grad_f2 : p.grad_f1)) continue;
            parallel_for(p.height, 8, threads, [&](int64_t begin, int64_t end) {
                pack_features<T>(p, second ? p.f1 : p.f2, b, features, begin, end);
            });
            parallel_for(threads, 1, threads, [&](int64_t slot, int64_t slot_end) {
                for (; slot < slot_end; ++slot) {  // a slot owns one block of the workspace
                    kernel.backward(p, b, second, features, weights + slot * band.weights(p),
                                    p.height * slot / threads, p.height * (slot + 1) / threads);
                }
            });
        }
    }
    return kOk;
}

}  // namespace

int64_t correlation_workspace(const CorrelationParams& p, bool backward, int threads) {
    const int64_t element = p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float);
    const Band band(p);
    return element * (backward ? band.features(p) + threads * band.weights(p) : Packed(p).elements(p));
}

int correlation_cpu(const CorrelationParams& p, int threads) {
    switch (p.dtype) {
        case Dtype::f32:
            return forward<float>(p, threads);
        case Dtype::f64:
            return forward<double>(p, threads);
        case Dtype::f16:
            return forward<half>(p, threads);
        case Dtype::bf16:
            return forward<bfloat16>(p, threads);
    }
    return kBadDtype;
}

int correlation_backward_cpu(const CorrelationParams& p, int threads) {
    switch (p.dtype) {
        case Dtype::f32:
            return backward<float>(p, threads);
        case Dtype::f64:
            return backward<double>(p, threads);
        case Dtype::f16:
            return backward<half>(p, threads);
        case Dtype::bf16:
            return backward<bfloat16>(p, threads);
    }
    return kBadDtype;
}

}  // namespace vda
