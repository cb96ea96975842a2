// Upsampling of logits and their softmax in strips of full-resolution pixels, on upsampling.h. Included by
// the kernels that need it.

// The source columns of a strip, for one row of logits.
struct Columns {
    Ints low, high;  // relative to `first`
    Floats share;    // of the high one
    int first;
    bool window;  // all lie in 2 * kLanes columns from `first` on
};

VDA_INLINE Columns columns_of(const Axis& axis, int x0) {
    const Floats unlimited = axis.scale * to_floats(iota(x0)) + axis.shift;
    const Floats at = smaller(larger(unlimited, Floats{}), splat(float(axis.last)));
    const Ints low = truncated(at);
    const Floats share = at - to_floats(low);
    const Ints high = low < axis.last ? low + 1 : low;
    const bool window = high[kLanes - 1] - low[0] < 2 * kLanes;
    const int first = window ? low[0] : 0;
    return {low - first, high - first, share, first, window};
}

// 2^x for x <= 0 within 2e-7 of it, 2^-126 for everything below; NaN stays NaN.
VDA_INLINE Floats power_of_two(Floats x) {
    constexpr float kMagic = 12582912.0f + 127.0f;  // see rounded(); the sum ends in the bits of n + 127
    x = larger(splat(-126.0f), x);
    const Floats sum = x + kMagic, r = x - (sum - kMagic);
    Floats p = 1.326472731e-3f * r + 9.671512991e-3f;  // minimax on [-1/2, 1/2], 1 at 0
    p = p * r + 5.550733581e-2f;
    p = p * r + 2.402224243e-1f;
    p = p * r + 6.931470037e-1f;
    p = p * r + 1.0f;
    return p * reinterpret<Floats>(reinterpret<Ints>(sum) << 23);
}

// A strip of the full-resolution row that `line`, upsampled along y, belongs to; see mixed().
VDA_INLINE Floats upsampled(const float* line, const Columns& at) {
    Floats low, high;
    if (at.window) {
        const Floats a = load_lanes(line + at.first), b = load_lanes(line + at.first + kLanes);
        low = permuted(a, b, at.low);
        high = permuted(a, b, at.high);
    } else {
        low = gathered(line, Ints{}, at.low, 0, 1);
        high = gathered(line, Ints{}, at.high, 0, 1);
    }
    return at.share > 0.0f ? (1.0f - at.share) * low + at.share * high : low;
}

// Fills lines for row y, source columns [begin, end), times log2(e); logits [K, h, w] contiguous.
VDA_INLINE void upsample_rows(const float* logits, int classes, int h, int w, const Between& y, int begin,
                              int end, float* lines, int64_t width) {
    constexpr float kLog2e = 1.44269504f;
    const int64_t plane = int64_t(h) * w;
    for (int k = 0; k < classes; ++k, lines += width) {
        const float* top = logits + k * plane + int64_t(y.low) * w;
        const float* bottom = logits + k * plane + int64_t(y.high) * w;
        int x = begin;
        for (; x < end && w >= kLanes; x += kLanes) {
            const int from = x < w - kLanes ? x : w - kLanes;
            const Floats low = load_lanes(top + from), high = load_lanes(bottom + from);
            store_lanes(lines + from,
                        kLog2e * (y.share > 0.0f ? (1.0f - y.share) * low + y.share * high : low));
        }
        for (; x < end; ++x) lines[x] = kLog2e * mixed(top[x], bottom[x], y.share);
    }
}
