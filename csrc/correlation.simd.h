// Forward correlation.h, compiled per instruction set (multiversion.h): a register tile like that of a matrix
// product. Its operands are packed first, which is also where strides and 16-bit types end.

constexpr int kRows = 4;     // rows of f1 (of one parity) that share a load of f2
constexpr int kColumns = 6;  // displacements along x that share a load of f1
constexpr int kBand = 24;    // displacements along x whose sums are held at once
constexpr int kChunk = 64;   // channels between two visits of the sums; keeps both operands in L1

template <typename A>
using Vector = typename Lanes<A>::vector;

// Copies rows [begin, end) of all channels: a run of at most `lanes` pixels from x on goes to to(y, c, x). In
// blocks of rows or of channels, so that both contiguous and channels-last maps are read in the order in
// which they lie.
template <typename T, typename To>
VDA_INLINE void copy_rows(const CorrelationParams& p, const View& view, int64_t b, int64_t begin, int64_t end,
                          const To& to) {
    using A = Acc<T>;
    constexpr int lanes = Lanes<A>::count, kChannels = 16;
    const int64_t* stride = view.stride;
    const T* from = static_cast<const T*>(view.data) + b * stride[0];
    for (int c0 = 0; c0 < p.channels; c0 += kChannels) {
        const int c1 = c0 + kChannels < p.channels ? c0 + kChannels : p.channels;
        if (stride[3] == 1) {
            for (int c = c0; c < c1; ++c) {
                for (int64_t y = begin; y < end; ++y) {
                    const T* row = from + c * stride[1] + y * stride[2];
                    int x = 0;
                    if constexpr (!std::is_same_v<T, double>) {
                        for (; x + lanes <= p.width; x += lanes)
                            store_lanes(to(y, c, x), load_lanes(row + x));
                    }
                    for (; x < p.width; ++x) to(y, c, x / lanes * lanes)[x % lanes] = load(row + x);
                }
            }
        } else {
            for (int64_t y = begin; y < end; ++y) {
                for (int x = 0; x < p.width; ++x) {
                    const T* pixel = from + y * stride[2] + x * stride[3];
                    for (int c = c0; c < c1; ++c)
                        to(y, c, x / lanes * lanes)[x % lanes] = load(pixel + c * stride[1]);
                }
            }
        }
    }
}

// Rows [begin, end) of sample b in the layout of PackedCorrelation.
template <typename T>
void pack_rows(const CorrelationParams& p, const PackedCorrelation& size, int64_t b, int64_t begin,
               int64_t end) {
    using A = Acc<T>;
    constexpr int lanes = Lanes<A>::count;
    A* f1 = static_cast<A*>(p.workspace);
    A* f2 = f1 + p.height * size.f1_row;
    const int64_t covered = p.width / lanes * lanes;  // the rest of the last run has no pixel
    for (int64_t y = begin; y < end; ++y) {
        if (covered < p.width)
            memset(f1 + y * size.f1_row + covered * p.channels, 0, lanes * p.channels * sizeof(A));
        for (int c = 0; c < p.channels; ++c) {
            A* row = f2 + y * size.f2_row + c * size.f2_width;
            memset(row, 0, size.margin * sizeof(A));
            memset(row + size.margin + p.width, 0, (size.f2_width - size.margin - p.width) * sizeof(A));
        }
    }
    copy_rows<T>(p, p.f1, b, begin, end, [&](int64_t y, int c, int x) VDA_INLINED {
        return f1 + y * size.f1_row + int64_t(x) * p.channels + c * lanes;
    });
    copy_rows<T>(p, p.f2, b, begin, end, [&](int64_t y, int c, int x) VDA_INLINED {
        return f2 + y * size.f2_row + c * size.f2_width + size.margin + x;
    });
}

// sums[column][row] (= or +=) sum over `channels` of f1 (kRows vectors, one from each pointer) times f2
// (Columns vectors, `step` apart). All sums stay in registers.
template <typename A, int Columns>
VDA_INLINE void forward_tile(const A* const f1[kRows], const A* f2, int64_t f2_width, int step, int channels,
                             bool first, Vector<A>* sums) {
    using U = typename Lanes<A>::unaligned;
    Vector<A> sum[Columns][kRows];
#pragma GCC unroll 32
    for (int i = 0; i < Columns * kRows; ++i) sum[i / kRows][i % kRows] = first ? Vector<A>{} : sums[i];
    const A* a0 = f1[0];
    const A* a1 = f1[1];
    const A* a2 = f1[2];
    const A* a3 = f1[3];
    for (int c = 0; c < channels; ++c, f2 += f2_width) {
        const Vector<A> a[kRows] = {((const U*)a0)[c], ((const U*)a1)[c], ((const U*)a2)[c],
                                    ((const U*)a3)[c]};
#pragma GCC unroll 8
        for (int column = 0; column < Columns; ++column) {
            const Vector<A> b = *(const U*)(f2 + column * step);
#pragma GCC unroll 4
            for (int row = 0; row < kRows; ++row) sum[column][row] += a[row] * b;
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < Columns * kRows; ++i) sums[i] = sum[i / kRows][i % kRows];
}

// sums[column][row] for `columns` displacements from f2 on, all channels.
template <typename A>
VDA_INLINE void forward_band(const CorrelationParams& p, const A* const f1[kRows], const A* f2,
                             int64_t f2_width, int columns, Vector<A>* sums) {
    for (int c = 0; c < p.channels; c += kChunk) {
        const int n = p.channels - c < kChunk ? p.channels - c : kChunk;
        const A* a[kRows];
        for (int row = 0; row < kRows; ++row) a[row] = f1[row] + int64_t(c) * Lanes<A>::count;
        const A* b = f2 + c * f2_width;
        int k = 0;
        for (; k + kColumns <= columns; k += kColumns) {
            forward_tile<A, kColumns>(a, b + k * p.stride, f2_width, p.stride, n, c == 0, sums + k * kRows);
        }
        for (; k + 3 <= columns; k += 3) {
            forward_tile<A, 3>(a, b + k * p.stride, f2_width, p.stride, n, c == 0, sums + k * kRows);
        }
        for (; k < columns; ++k) {
            forward_tile<A, 1>(a, b + k * p.stride, f2_width, p.stride, n, c == 0, sums + k * kRows);
        }
    }
}

template <typename T>
VDA_INLINE void store_sums(const CorrelationParams& p, Vector<Acc<T>> sum, T* to, int count) {
    using A = Acc<T>;
    sum *= A(p.scale);
    if (p.negative_slope != 1.0) sum = sum > A(0) ? sum : sum * A(p.negative_slope);
    if constexpr (!std::is_same_v<T, double>) {
        if (count >= Lanes<A>::count) return store_lanes(to, sum);
    }
    for (int i = 0; i < Lanes<A>::count && i < count; ++i) store(to + i, sum[i]);
}

// All outputs of kRows rows of one parity, first row y0. Row y0 + t * stride of f2 serves row i of the group
// at vertical displacement step t - i, so one load of f2 feeds kRows outputs.
template <typename T>
VDA_INLINE void forward_rows(const CorrelationParams& p, const PackedCorrelation& size, int64_t b, int y0) {
    using A = Acc<T>;
    constexpr int lanes = Lanes<A>::count;
    const A* f1 = static_cast<const A*>(p.workspace);
    const A* f2 = f1 + p.height * size.f1_row;
    const int d = displacements(p);
    const int64_t plane = int64_t(p.height) * p.width;
    T* out = static_cast<T*>(p.out) + b * d * d * plane;
    Vector<A> sums[kBand * kRows];
    for (int t = -p.radius; t <= p.radius + kRows - 1; ++t) {
        const int64_t row2 = y0 + int64_t(t) * p.stride;
        const bool exists = row2 >= 0 && row2 < p.height;
        const A* f1_row[kRows];
        T* to_row[kRows];
        for (int row = 0; row < kRows; ++row) {
            const int64_t y = y0 + int64_t(row) * p.stride;
            const int j = t - row + p.radius;
            const bool wanted = j >= 0 && j < d && y < p.height;
            to_row[row] = wanted ? out + int64_t(j) * d * plane + y * p.width : nullptr;
            f1_row[row] =
                f1 + (y < p.height ? y : y0) * size.f1_row;  // of an unwanted row: anything readable
        }
        for (int x0 = 0; x0 < p.width; x0 += lanes) {
            const A* a[kRows];
            for (int row = 0; row < kRows; ++row) a[row] = f1_row[row] + int64_t(x0) * p.channels;
            for (int k0 = 0; k0 < d; k0 += kBand) {
                const int columns = d - k0 < kBand ? d - k0 : kBand;
                const auto each_result = [&](const auto& visit) VDA_INLINED {
                    for (int row = 0; row < kRows; ++row) {
                        if (to_row[row] == nullptr) continue;
                        T* to = to_row[row] + k0 * plane + x0;
                        for (int k = 0; k < columns; ++k, to += plane) visit(to, k * kRows + row);
                    }
                };
                each_result([](T* to, int)
                                VDA_INLINED { __builtin_prefetch(to, 1); });  // while the sums are made
                if (exists) {
                    const A* from = f2 + row2 * size.f2_row + x0 + int64_t(k0) * p.stride;
                    forward_band(p, a, from, size.f2_width, columns, sums);
                }
                each_result([&](T* to, int sum) VDA_INLINED {
                    store_sums(p, exists ? sums[sum] : Vector<A>{}, to, p.width - x0);
                });
            }
        }
    }
}

// Groups are numbered parity first, so neighbours in the list are neighbours in the frame.
template <typename T>
void forward_groups(const CorrelationParams& p, const PackedCorrelation& size, int64_t b, int64_t begin,
                    int64_t end) {
    const int parities = p.stride < p.height ? p.stride : p.height;
    for (int64_t group = begin; group < end; ++group) {
        const int64_t y0 = group % parities + group / parities * kRows * p.stride;
        if (y0 < p.height) forward_rows<T>(p, size, b, int(y0));
    }
}
