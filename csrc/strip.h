// Strips for the CPU kernels: as many neighbouring pixels of a row as a vector has lanes, and where their
// flow points. The vector form of sampling.h; flow is smooth, so the taps of a strip nearly always lie in a
// window of two vectors by a few rows, which is loaded once and permuted instead of gathered. Included like
// simd.h.

struct StripPosition {
    Floats x, y;  // may be anything, NaN included
};

// Asks for what the next row will read here: a row is about a page, where the processor's own foresight ends.
VDA_INLINE void foresee(const float* from, int64_t stride_y) { __builtin_prefetch(from + stride_y); }

template <typename T>
VDA_INLINE void convert_flow(const FlowView& flow, int64_t i, float* uv) {
    const T* from = static_cast<const T*>(flow.data) + i;
    constexpr bool in_tenths = std::is_same_v<T, int16_t>;  // see tenths() of sampling.h
    for (int channel = 0; channel < 2; ++channel) {
        const Floats value = load_lanes(from + channel * flow.stride[1], flow.stride[3]);
        store_lanes(uv + channel * kLanes, in_tenths ? value / 10.0f : value);
    }
}

// The flow from element i on as uv [2, kLanes].
VDA_OUTLINE void convert_flow(const FlowView& flow, int64_t i, float* uv) {
    switch (flow.dtype) {
        case Dtype::f16:
            return convert_flow<half>(flow, i, uv);
        case Dtype::bf16:
            return convert_flow<bfloat16>(flow, i, uv);
        case Dtype::i16:
            return convert_flow<int16_t>(flow, i, uv);
        default:
            return convert_flow<float>(flow, i, uv);
    }
}

// The strip that begins at pixel (y, x0) of image b; not for flow in double.
VDA_INLINE StripPosition strip_position(const FlowView& flow, int64_t b, int y, int x0) {
    const int64_t i = b * flow.stride[0] + y * flow.stride[2] + x0 * flow.stride[3];
    const float* u = static_cast<const float*>(flow.data) + i;
    const float* v = u + flow.stride[1];
    float converted[2 * kLanes];
    if (flow.dtype != Dtype::f32 || flow.stride[3] != 1) {
        convert_flow(flow, i, converted);
        u = converted;
        v = converted + kLanes;
    } else {
        foresee(u, flow.stride[2]);
        foresee(v, flow.stride[2]);
    }
    return {to_floats(iota(x0)) + load_lanes(u), splat(float(y)) + load_lanes(v)};
}

// NaN fails every comparison, so it is in no frame.
VDA_INLINE Ints in_frame(const StripPosition& at, int height, int width) {
    return (at.x >= 0.0f) & (at.x <= float(width - 1)) & (at.y >= 0.0f) & (at.y <= float(height - 1));
}
VDA_INLINE Ints somewhere(const StripPosition& at) {
    return (absolute(at.x) <= kNowhere) & (absolute(at.y) <= kNowhere);
}

// Whether rows of this length are done in strips: the arithmetic below is exact for them.
VDA_INLINE bool in_strips(int height, int width) {
    constexpr int kLongest = 1 << 22;
    return width >= kLanes && width < kLongest && height < kLongest;
}

// Calls body(x0, done) for strips that cover [0, width), see in_strips. The last two may overlap: then the
// strip before has done the first `done` pixels already.
template <typename Body>
VDA_INLINE void for_strips(int width, const Body& body) {
    for (int x0 = 0; x0 < width; x0 += kLanes) {
        const int begin = x0 + kLanes <= width ? x0 : width - kLanes;
        body(begin, x0 - begin);
    }
}

// First column of a window of 2 * kLanes columns around a strip's. A strip may shrink or stretch along x: it
// may begin a quarter of a vector before its first pixel.
VDA_INLINE int window_column(Ints column, int width) {
    const int first = column[0] - kLanes / 4, last = width - 2 * kLanes;
    return first < 0 ? 0 : (first > last ? last : first);
}

// Nearest pixels, ties to the even coordinate; where none exists, row and column are safe to read all the
// same.
struct StripNearest {
    Ints row, column, exists;
};

VDA_INLINE StripNearest strip_nearest(const StripPosition& at, int height, int width, Padding padding) {
    StripPosition to{rounded(at.x), rounded(at.y)};
    const Ints exists = padding == Padding::zeros ? in_frame(to, height, width) : somewhere(at);
    to.x = exists ? to.x : Floats{};
    to.y = exists ? to.y : Floats{};
    if (padding == Padding::border) {
        to.x = smaller(larger(to.x, Floats{}), splat(float(width - 1)));
        to.y = smaller(larger(to.y, Floats{}), splat(float(height - 1)));
    }
    return {truncated(to.y), truncated(to.x), exists};
}

template <typename T>
VDA_OUTLINE void gather(const T* plane, const int32_t* row, const int32_t* column, int64_t stride_y,
                        int64_t stride_x, float* to) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) to[i] = load(plane + row[i] * stride_y + column[i] * stride_x);
}

// Elements one by one, from anywhere in a plane.
template <typename T>
VDA_INLINE Floats gathered(const T* plane, Ints row, Ints column, int64_t stride_y, int64_t stride_x) {
    int32_t rows[kLanes], columns[kLanes];
    float values[kLanes];
    memcpy(rows, &row, sizeof(rows));
    memcpy(columns, &column, sizeof(columns));
    gather(plane, rows, columns, stride_y, stride_x, values);
    return load_lanes(values);
}

// Elements at the nearest pixels: labels as Ints, others as Floats. Nearly all strips touch one or two rows;
// which of the two cannot be foreseen, so both are read.
template <typename T>
VDA_INLINE auto read_nearest(const T* plane, int64_t stride_y, int64_t stride_x, const StripNearest& at,
                             int height, int width) {
    const auto wide = [](const T* from) VDA_INLINED {
        if constexpr (std::is_same_v<T, uint8_t>) return load_bytes(from);
        if constexpr (!std::is_same_v<T, uint8_t>) return load_lanes(from);
    };
    const int column = window_column(at.column, width);
    int row = at.row[0];
    row -= any(at.row < row);
    const int next = row + 1 < height ? row + 1 : row;
    const Ints index = at.column - column;
    if (all(below(index, 2 * kLanes) & below(at.row - row, next - row + 1)) && width >= 2 * kLanes &&
        stride_x == 1) {
        const T* upper = plane + row * stride_y + column;
        const T* lower = plane + next * stride_y + column;
        const auto first = permuted(wide(upper), wide(upper + kLanes), index);
        const auto second = permuted(wide(lower), wide(lower + kLanes), index);
        return at.row == row ? first : second;
    }
    const Floats values = gathered(plane, at.row, at.column, stride_y, stride_x);
    if constexpr (std::is_same_v<T, uint8_t>) return truncated(values);
    if constexpr (!std::is_same_v<T, uint8_t>) return values;
}

// The part of a plane that holds all taps of a strip, if `rows` is not 0: that many rows from `row` on, 2 *
// kLanes columns from `column` on.
struct Window {
    bool flat;  // two rows: every top tap lies in the first, every bottom tap in the second
    int rows, row, column;
};

VDA_INLINE Window find_window(Ints left, Ints right, Ints top, Ints bottom, int width) {
    constexpr int kMostRows = 6;  // more cost more than single reads
    Window window{false, 0, top[0], window_column(left, width)};
    const Ints fits = (left >= window.column) & (right < window.column + 2 * kLanes);
    if (width < 2 * kLanes || !all(fits)) return window;
    window.flat = all((top == window.row) & (bottom == window.row + 1));
    if (window.flat) {
        window.rows = 2;
    } else {
        window.row = lowest(top);
        const int rows = highest(bottom) - window.row + 1;
        window.rows = rows <= kMostRows ? rows : 0;
    }
    return window;
}

// Bilinear taps in a plane of height x width. A tap that does not exist (outside, unless the padding is
// border) lies on the plane's edge, where reading is safe.
struct StripTaps {
    Ints left, right, top, bottom;                  // columns and rows
    Ints has_left, has_right, has_top, has_bottom;  // whether they exist
    bool complete;                                  // whether all of them do
    Floats a, b;                                    // fractions of the position, along x and y
    Floats weight[4];                               // top left, top right, bottom left, bottom right
    Window window;
};

VDA_INLINE StripTaps strip_taps(const StripPosition& at, int height, int width, Padding padding) {
    StripTaps taps;
    const Ints read = padding == Padding::border ? somewhere(at)
                                                 : (at.x >= -1.0f) & (at.x < float(width)) & (at.y >= -1.0f) &
                                                       (at.y < float(height));
    const Floats px = read ? at.x : Floats{}, py = read ? at.y : Floats{};
    const Floats whole_x = floored(px), whole_y = floored(py);
    const Ints x = truncated(whole_x), y = truncated(whole_y);
    taps.a = px - whole_x;
    taps.b = py - whole_y;
    taps.has_left = taps.has_right = taps.has_top = taps.has_bottom = read;
    if (padding == Padding::zeros) {
        taps.has_left &= x >= 0;
        taps.has_right &= x < width - 1;
        taps.has_top &= y >= 0;
        taps.has_bottom &= y < height - 1;
    }
    taps.complete = all(taps.has_left & taps.has_right & taps.has_top & taps.has_bottom);
    taps.weight[0] = (1.0f - taps.b) * (1.0f - taps.a);
    taps.weight[1] = (1.0f - taps.b) * taps.a;
    taps.weight[2] = taps.b * (1.0f - taps.a);
    taps.weight[3] = taps.b * taps.a;
    taps.left = clamped(x, 0, width - 1);
    taps.right = clamped(x + 1, 0, width - 1);
    taps.top = clamped(y, 0, height - 1);
    taps.bottom = clamped(y + 1, 0, height - 1);
    taps.window = find_window(taps.left, taps.right, taps.top, taps.bottom, width);
    return taps;
}

// Values at the left and the right taps, in the rows of the top or of the bottom taps.
struct Pair {
    Floats left, right;
};

template <typename T>
VDA_INLINE Pair window_row(const T* from, const StripTaps& taps) {
    const Floats a = load_lanes(from), b = load_lanes(from + kLanes);
    return {permuted(a, b, taps.left - taps.window.column), permuted(a, b, taps.right - taps.window.column)};
}

template <typename T>
VDA_INLINE void read_places(const T* plane, int64_t stride_y, int64_t stride_x, const StripTaps& taps,
                            Pair& top, Pair& bottom) {
    if (taps.window.rows == 0 || stride_x != 1) {
        top.left = gathered(plane, taps.top, taps.left, stride_y, stride_x);
        top.right = gathered(plane, taps.top, taps.right, stride_y, stride_x);
        bottom.left = gathered(plane, taps.bottom, taps.left, stride_y, stride_x);
        bottom.right = gathered(plane, taps.bottom, taps.right, stride_y, stride_x);
        return;
    }
    const T* from = plane + taps.window.row * stride_y + taps.window.column;
    top = window_row(from, taps);
    if (taps.window.flat) {
        bottom = window_row(from + stride_y, taps);
        return;
    }
    bottom = top;
    for (int r = 1; r < taps.window.rows; ++r) {
        const Pair row = window_row(from + r * stride_y, taps);
        const Ints is_top = taps.top == taps.window.row + r, is_bottom = taps.bottom == taps.window.row + r;
        top.left = is_top ? row.left : top.left;
        top.right = is_top ? row.right : top.right;
        bottom.left = is_bottom ? row.left : bottom.left;
        bottom.right = is_bottom ? row.right : bottom.right;
    }
}

// Reads the taps of a strip in a plane of any strides; 0 for those that do not exist, whatever lies at the
// edge.
template <typename T>
VDA_INLINE void read_taps(const T* plane, int64_t stride_y, int64_t stride_x, const StripTaps& taps,
                          Pair& top, Pair& bottom) {
    read_places(plane, stride_y, stride_x, taps, top, bottom);
    if (taps.complete) return;
    top.left = taps.has_top & taps.has_left ? top.left : Floats{};
    top.right = taps.has_top & taps.has_right ? top.right : Floats{};
    bottom.left = taps.has_bottom & taps.has_left ? bottom.left : Floats{};
    bottom.right = taps.has_bottom & taps.has_right ? bottom.right : Floats{};
}

template <typename T>
VDA_INLINE Floats sample(const T* plane, int64_t stride_y, int64_t stride_x, const StripTaps& taps) {
    Pair top, bottom;
    read_taps(plane, stride_y, stride_x, taps, top, bottom);
    return taps.weight[0] * top.left + taps.weight[1] * top.right + taps.weight[2] * bottom.left +
           taps.weight[3] * bottom.right;
}

// The strip of sighting.h.
struct StripSighting {
    StripTaps taps;
    Ints visible;
};

VDA_INLINE StripSighting strip_sighting(const Neighbourhood& p, float limit, int64_t b, int j, int y,
                                        int x0) {
    const auto at = strip_position(nth(p.flows, j), b, y, x0);
    const auto taps = strip_taps(at, p.height, p.width, Padding::zeros);
    const int64_t* stride = p.neighbour_frames.first.stride;
    const float* frame = static_cast<const float*>(p.frame.data) + b * p.frame.stride[0] +
                         y * p.frame.stride[2] + x0 * p.frame.stride[3];
    const float* other = nth<float>(p.neighbour_frames, j, b);
    Floats error{};
    for (int c = 0; c < p.channels; ++c) {
        foresee(frame + c * p.frame.stride[1], p.frame.stride[2]);
        const Floats difference = load_lanes(frame + c * p.frame.stride[1], p.frame.stride[3]) -
                                  sample(other + c * stride[1], stride[2], stride[3], taps);
        error += difference * difference;
    }
    return {taps, in_frame(at, p.height, p.width) & (error < limit)};
}

// ---- labels with confidences: the vector form of confidence.h ----

// Thresholds by label; NaN, which nothing passes, for what is no class.
struct Bars {
    float bar[256];
    int64_t sample = -1;  // whose they are

    VDA_INLINE void set(int64_t b, const ThetaView& theta, int classes) {
        if (sample == b) return;
        sample = b;
        for (int k = 0; k < 256; ++k) bar[k] = k < classes ? theta.row(b)[k] : NAN;
    }
};

VDA_INLINE Ints kept(Ints label, Floats confidence, const Bars& bars, bool inclusive, uint8_t ignore) {
    const Floats bar = gathered(bars.bar, Ints{}, label, 0, 1);
    return (inclusive ? confidence >= bar : confidence > bar) ? label : splat(int(ignore));
}
