// Correlation on the CPU, both gradients. One gradient at a pixel is a sum over displacements of (an element
// of grad_out) times (the other frame's features at the displaced pixel). For kPixels pixels one step apart
// the displaced pixels overlap: a banded matrix product weights[q][pixel] x features[q][channel], where q
// runs over the union of displaced pixels along x.
#include <algorithm>

#include "correlation.h"
#include "parallel.h"
#include "simd.h"

namespace vda {
namespace {

constexpr int kPixels = 6;                   // pixels (of one parity) that share a load of features
constexpr int kVectors = 2;                  // vectors of channels that share a broadcast of a weight
constexpr int64_t kWorkPerThread = 1 << 20;  // multiply-adds

struct Band {
    int count;         // D + kPixels - 1 positions q
    int64_t channels;  // C rounded up
    explicit Band(const CorrelationParams& p)
        : count(displacements(p) + kPixels - 1),
          channels(ceil_div(p.channels, kMaxLanes * kVectors) * kMaxLanes * kVectors) {}
    int64_t features(const CorrelationParams& p) const { return int64_t(p.height) * p.width * channels; }
    int64_t weights(const CorrelationParams& p) const {
        return ceil_div(int64_t(displacements(p)) * count * kPixels, int64_t(kMaxLanes)) * kMaxLanes;
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

template <typename T>
void rows_baseline(const CorrelationParams& p, int64_t b, bool second, const Acc<T>* features,
                   Acc<T>* weights, int64_t begin, int64_t end) {
    backward_rows<T, 16>(p, b, second, features, weights, begin, end);
}
template <typename T>
VDA_AVX2 void rows_avx2(const CorrelationParams& p, int64_t b, bool second, const Acc<T>* features,
                        Acc<T>* weights, int64_t begin, int64_t end) {
    backward_rows<T, 32>(p, b, second, features, weights, begin, end);
}
template <typename T>
VDA_AVX512 void rows_avx512(const CorrelationParams& p, int64_t b, bool second, const Acc<T>* features,
                            Acc<T>* weights, int64_t begin, int64_t end) {
    backward_rows<T, 64>(p, b, second, features, weights, begin, end);
}

template <typename T>
int backward(const CorrelationParams& p, int threads) {
    using A = Acc<T>;
    const Band band(p);
    const int bytes = vector_bytes();
    const auto kernel = bytes == 64 ? rows_avx512<T> : (bytes == 32 ? rows_avx2<T> : rows_baseline<T>);
    A* features = static_cast<A*>(p.workspace);
    A* weights = features + band.features(p);
    const int64_t row_work = int64_t(p.width) * p.channels, d = displacements(p);
    // A slot owns one block of the workspace and one range of rows.
    const int64_t slots =
        std::max<int64_t>(1, std::min<int64_t>(threads, p.height * row_work * d * d / kWorkPerThread));
    for (int64_t b = 0; b < p.batch; ++b) {
        for (const bool second : {false, true}) {
            if ((second ? p.grad_f2 : p.grad_f1) == nullptr) continue;
            parallel_for(p.height, ceil_div(kWorkPerThread / 16, row_work), threads,
                         [&](int64_t begin, int64_t end) {
                             pack_features<T>(p, second ? p.f1 : p.f2, b, features, begin, end);
                         });
            parallel_for(slots, 1, int(slots), [&](int64_t slot, int64_t slot_end) {
                for (; slot < slot_end; ++slot) {
                    kernel(p, b, second, features, weights + slot * band.weights(p), p.height * slot / slots,
                           p.height * (slot + 1) / slots);
                }
            });
        }
    }
    return kOk;
}

}  // namespace

int64_t correlation_backward_workspace(const CorrelationParams& p, int threads) {
    const Band band(p);
    const int64_t elements = band.features(p) + threads * band.weights(p);
    return elements * (p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float));
}

int correlation_backward_cpu(const CorrelationParams& p, int threads) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
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
