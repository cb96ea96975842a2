// to(column, row) = from(row, column), in blocks of one vector by one vector. Included by the kernels that
// need it.

// Rows become columns, in registers: after step `bit`, element (i, j) stands where bit `bit` of i and j is
// swapped.
VDA_INLINE void transpose_block(Floats block[kLanes]) {
#pragma GCC unroll 4
    for (int bit = 1; bit < kLanes; bit *= 2) {
        const Ints lane = iota(0);
        const Ints low = (lane & bit) != 0 ? lane - bit + kLanes : lane;
        const Ints high = low + bit;
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
            if ((i & bit) != 0) continue;
            const Floats a = block[i], b = block[i + bit];
            block[i] = permuted(a, b, low);
            block[i + bit] = permuted(a, b, high);
        }
    }
}

// from: [rows][columns], rows `from_stride` apart; to: [columns][rows], `to_stride` apart; times scale.
template <typename From, typename To>
VDA_INLINE void transpose(const From* from, int64_t from_stride, To* to, int64_t to_stride, int rows,
                          int columns, Acc<From> scale) {
    int row = 0;
    if constexpr (!std::is_same_v<From, double> && kBytes > 16) {
        for (; row + kLanes <= rows; row += kLanes) {
            int column = 0;
            for (; column + kLanes <= columns; column += kLanes) {
                Floats block[kLanes];
#pragma GCC unroll 16
                for (int i = 0; i < kLanes; ++i)
                    block[i] = load_lanes(from + (row + i) * from_stride + column);
                transpose_block(block);
#pragma GCC unroll 16
                for (int i = 0; i < kLanes; ++i)
                    store_lanes(to + (column + i) * to_stride + row, block[i] * scale);
            }
            for (; column < columns; ++column) {
                for (int i = row; i < row + kLanes; ++i) {
                    store(to + column * to_stride + i, load(from + i * from_stride + column) * scale);
                }
            }
        }
    }
    for (; row < rows; ++row) {
        for (int column = 0; column < columns; ++column) {
            store(to + column * to_stride + row, load(from + row * from_stride + column) * scale);
        }
    }
}
