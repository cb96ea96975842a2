// Both gradients of correlation.h, compiled per instruction set (multiversion.h). A gradient at a pixel is a
// sum over displacements of (an element of grad_out) times (the other map's features at the displaced pixel).
// For kPixels pixels one step apart the displaced pixels overlap: a banded matrix product weights[pixel][q] x
// features[q][channel], where q runs over the union of displaced pixels along x.
#include "transpose.simd.h"

constexpr int kVectors = kBytes == 64 ? 4 : 2;  // vectors of channels that share a broadcast of a weight

template <typename A>
using Vector = typename Lanes<A>::vector;

// Features of rows [begin, end) of one sample as [H][W][C rounded up], zero in the surplus.
template <typename T>
void pack_features(const CorrelationParams& p, const View& view, int64_t b, const Band& band, int64_t begin,
                   int64_t end) {
    using A = Acc<T>;
    const T* from = static_cast<const T*>(view.data) + b * view.stride[0];
    for (int64_t y = begin; y < end; ++y) {
        A* to = static_cast<A*>(p.workspace) + y * p.width * band.channels;
        if (band.channels > p.channels) memset(to, 0, p.width * band.channels * sizeof(A));
        const T* row = from + y * view.stride[2];
        if (view.stride[3] == 1) {
            transpose(row, view.stride[1], to, band.channels, p.channels, p.width, A(1));
            continue;
        }
        for (int x = 0; x < p.width; ++x) {
            for (int c = 0; c < p.channels; ++c)
                to[x * band.channels + c] = load(row + x * view.stride[3] + c * view.stride[1]);
        }
    }
}

// grad_out as the weights of one row y of one gradient: weights[j][x][kMargin + i], zero in the margins, the
// element of displacement (j, i) at pixel x of row y (first map) or of the row that displacement j leads here
// from (second).
template <typename T>
VDA_INLINE void pack_weights(const CorrelationParams& p, const Band& band, int64_t b, bool second, int64_t y,
                             Acc<T>* weights) {
    const int d = displacements(p);
    const int64_t* stride = p.grad_out.stride;
    for (int j = 0; j < d; ++j, weights += p.width * band.width) {
        const int64_t displaced = y + int64_t(second ? p.radius - j : j - p.radius) * p.stride;
        if (displaced < 0 || displaced >= p.height) continue;  // never read
        const T* from = static_cast<const T*>(p.grad_out.data) + b * stride[0] + int64_t(j) * d * stride[1] +
                        (second ? displaced : y) * stride[2];
        memset(weights, 0, p.width * band.width * sizeof(*weights));
        if (stride[3] == 1) {
            transpose(from, stride[1], weights + kMargin, band.width, d, p.width, Acc<T>(1));
            continue;
        }
        for (int x = 0; x < p.width; ++x) {
            for (int i = 0; i < d; ++i)
                weights[x * band.width + kMargin + i] = load(from + x * stride[3] + i * stride[1]);
        }
    }
}

// kPixels pixels (y, x0 + i * stride) of one gradient.
struct Piece {
    int64_t y;
    int x0;
    bool second;
};

// One block of Vectors vectors of channels of a piece, all displacements; kPixels * Vectors sums stay in
// registers. weights as from pack_weights; features and result point at the first channel of the block,
// result pixels `step` elements apart.
template <typename A, int Vectors>
VDA_INLINE void backward_tile(const CorrelationParams& p, const Band& band, const Piece& piece,
                              const A* weights, const A* features, A* result, int64_t step) {
    using U = typename Lanes<A>::unaligned;
    const int d = displacements(p);
    // Positions q of the band that lie inside the frame.
    const int before = piece.x0 / p.stride,
              after = (p.width - 1 - piece.x0) / p.stride;  // steps to the edges
    const int first = before < p.radius ? p.radius - before : 0;
    const int last = p.radius + after < d + kPixels - 2 ? p.radius + after : d + kPixels - 2;
    // Weight of pixel i at position q: at base[i] + q * weight_step.
    const int64_t weight_step = piece.second ? int64_t(p.stride) * band.width - 1 : 1;
    int64_t base[kPixels];
    for (int i = 0; i < kPixels; ++i) {
        const int x =
            i <= after ? piece.x0 + i * p.stride : piece.x0;  // of a pixel outside: anything readable
        base[i] = piece.second ? (piece.x0 - int64_t(p.radius) * p.stride) * band.width + kMargin + d - 1 + i
                               : x * band.width + kMargin - i;
    }
    Vector<A> sum[kPixels][Vectors] = {};
    for (int j = 0; j < d; ++j) {
        const int64_t row = piece.y + int64_t(piece.second ? p.radius - j : j - p.radius) * p.stride;
        if (row < 0 || row >= p.height) continue;
        const A* w = weights + int64_t(j) * p.width * band.width + first * weight_step;
        const A* from =
            features + (row * p.width + piece.x0 + int64_t(first - p.radius) * p.stride) * band.channels;
        for (int q = first; q <= last; ++q, w += weight_step, from += p.stride * band.channels) {
            Vector<A> f[Vectors];
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) f[v] = ((const U*)from)[v];
#pragma GCC unroll 8
            for (int i = 0; i < kPixels; ++i) {
                const Vector<A> weight = Vector<A>{} + w[base[i]];
#pragma GCC unroll 4
                for (int v = 0; v < Vectors; ++v) sum[i][v] += weight * f[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) {
        if (i > after) break;
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) ((U*)(result + i * step))[v] = sum[i][v];
    }
}

// One row of one gradient into result [W][C rounded up].
template <typename A>
VDA_INLINE void backward_row(const CorrelationParams& p, const Band& band, int64_t y, bool second,
                             const A* features, const A* weights, A* result) {
    constexpr int lanes = Lanes<A>::count;
    const int parities = p.stride < p.width ? p.stride : p.width;
    for (int group = 0; group < p.width; group += kPixels * p.stride) {
        for (int x0 = group; x0 < group + parities && x0 < p.width; ++x0) {
            const Piece piece{y, x0, second};
            const int64_t step = p.stride * band.channels;
            int64_t c = 0;
            for (; c + kVectors * lanes <= band.channels; c += kVectors * lanes) {
                backward_tile<A, kVectors>(p, band, piece, weights, features + c,
                                           result + x0 * band.channels + c, step);
            }
            for (; c < band.channels; c += lanes) {
                backward_tile<A, 1>(p, band, piece, weights, features + c, result + x0 * band.channels + c,
                                    step);
            }
        }
    }
}

// Rows [begin, end) of one gradient of one sample. scratch: band.scratch(p) elements.
template <typename T>
void backward_rows(const CorrelationParams& p, const Band& band, int64_t b, bool second, void* scratch,
                   int64_t begin, int64_t end) {
    using A = Acc<T>;
    A* weights = static_cast<A*>(scratch);
    A* result = weights + band.weights(p);
    const int64_t plane = int64_t(p.height) * p.width;
    T* grad = static_cast<T*>(second ? p.grad_f2 : p.grad_f1) + b * p.channels * plane;
    for (int64_t y = begin; y < end; ++y) {
        pack_weights<T>(p, band, b, second, y, weights);
        backward_row(p, band, y, second, static_cast<const A*>(p.workspace), weights, result);
        transpose(result, band.channels, grad + y * p.width, plane, p.width, p.channels, A(p.scale));
    }
}
