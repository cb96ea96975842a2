// Correlation on the CPU, forward: a register tile like that of a matrix product. Its operands are packed
// first, which is also where strides and 16-bit types end.
#include "correlation.h"

#include <algorithm>

#include "parallel.h"
#include "simd.h"

namespace vda {
namespace {

constexpr int kRows = 4;     // rows of f1 (of one parity) that share a load of f2
constexpr int kColumns = 3;  // displacements along x that share a load of f1
constexpr int kBand = 24;    // displacements along x whose sums are held at once
constexpr int kChunk = 64;   // channels between two visits of those sums; keeps both operands in L1
constexpr int64_t kWorkPerThread = 1 << 20;  // multiply-adds

// Packed operands of one sample: f1 as [H][W / lanes][C][lanes], f2 as [H][C][pad + W + pad], zero
// padded.

struct Packed {
    int64_t f1_width, f2_width, f1_row, f2_row, margin;
    explicit Packed(const CorrelationParams& p)
        : f1_width(ceil_div(p.width, kMaxLanes) * kMaxLanes),
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

template <typename T>
void groups_baseline(const CorrelationParams& p, int64_t b, const Acc<T>* f1, const Acc<T>* f2, int64_t begin,
                     int64_t end) {
    forward_groups<T, 16>(p, b, f1, f2, begin, end);
}
template <typename T>
VDA_AVX2 void groups_avx2(const CorrelationParams& p, int64_t b, const Acc<T>* f1, const Acc<T>* f2,
                          int64_t begin, int64_t end) {
    forward_groups<T, 32>(p, b, f1, f2, begin, end);
}
template <typename T>
VDA_AVX512 void groups_avx512(const CorrelationParams& p, int64_t b, const Acc<T>* f1, const Acc<T>* f2,
                              int64_t begin, int64_t end) {
    forward_groups<T, 64>(p, b, f1, f2, begin, end);
}

template <typename T>
int forward(const CorrelationParams& p, int threads) {
    using A = Acc<T>;
    const Packed size(p);
    const int bytes = vector_bytes();
    const auto kernel = bytes == 64 ? groups_avx512<T> : (bytes == 32 ? groups_avx2<T> : groups_baseline<T>);
    A* f1 = static_cast<A*>(p.workspace);
    A* f2 = f1 + p.height * size.f1_row;
    const int64_t groups =
        int64_t(std::min(p.stride, p.height)) * ceil_div(ceil_div(p.height, p.stride), kRows);
    const int64_t row_work = int64_t(p.width) * p.channels, d = displacements(p);
    for (int64_t b = 0; b < p.batch; ++b) {
        parallel_for(p.height, ceil_div(kWorkPerThread / 16, row_work), threads,
                     [&](int64_t begin, int64_t end) {
                         pack_rows<T>(p, b, bytes / int(sizeof(A)), f1, f2, begin, end);
                     });
        parallel_for(groups, ceil_div(kWorkPerThread, kRows * row_work * d * d), threads,
                     [&](int64_t begin, int64_t end) { kernel(p, b, f1, f2, begin, end); });
    }
    return kOk;
}

}  // namespace

int64_t correlation_workspace(const CorrelationParams& p) {
    return Packed(p).elements(p) * (p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float));
}

int correlation_cpu(const CorrelationParams& p, int threads) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
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

}  // namespace vda
