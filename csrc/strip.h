// Strips for the CPU kernels: as many neighbouring pixels of a row as a vector has lanes, and where their
// flow points. The vector form of sampling.h; flow is smooth, so the taps of a strip nearly always lie in a
// window of two vectors by a few rows, which is loaded once and permuted instead of gathered. Included like
// simd.h.

struct StripPosition {
    Floats x, y;  // 0 where not usable
    Ints usable;  // finite, and not beyond kNowhere
};

template <typename T>
VDA_INLINE void add_flow(const FlowView& flow, int64_t i, StripPosition& at) {
    const T* from = static_cast<const T*>(flow.data) + i;
    const Floats u = load_lanes(from, flow.stride[3]);
    const Floats v = load_lanes(from + flow.stride[1], flow.stride[3]);
    constexpr bool in_tenths = std::is_same_v<T, int16_t>;  // see tenths() of sampling.h
    at.x += in_tenths ? u / 10.0f : u;
    at.y += in_tenths ? v / 10.0f : v;
}

// The strip that begins at pixel (y, x0) of image b; not for flow in double.
VDA_INLINE StripPosition strip_position(const FlowView& flow, int64_t b, int y, int x0) {
    StripPosition at{to_floats(iota(x0)), splat(float(y)), {}};
    const int64_t i = b * flow.stride[0] + y * flow.stride[2] + x0 * flow.stride[3];
    switch (flow.dtype) {
        case Dtype::f16:
            add_flow<half>(flow, i, at);
            break;
        case Dtype::bf16:
            add_flow<bfloat16>(flow, i, at);
            break;
        case Dtype::i16:
            add_flow<int16_t>(flow, i, at);
            break;
        default:
            add_flow<float>(flow, i, at);
    }
    at.usable = (absolute(at.x) <= kNowhere) & (absolute(at.y) <= kNowhere);
    at.x = at.usable ? at.x : splat(0.0f);
    at.y = at.usable ? at.y : splat(0.0f);
    return at;
}

VDA_INLINE Ints in_frame(const StripPosition& at, int height, int width) {
    return at.usable & (at.x >= 0.0f) & (at.x <= float(width - 1)) & (at.y >= 0.0f) &
           (at.y <= float(height - 1));
}

// Calls body(x0, done) for strips that cover [0, width), width >= kLanes. The last two may overlap: then the
// strip before has done the first `done` pixels already.
template <typename Body>
VDA_INLINE void for_strips(int width, const Body& body) {
    for (int x0 = 0; x0 < width; x0 += kLanes) {
        const int begin = x0 + kLanes <= width ? x0 : width - kLanes;
        body(begin, x0 - begin);
    }
}

// Nearest pixels, ties to the even coordinate; where none exists, row and column are safe to read all the
// same.
struct StripNearest {
    Ints row, column, exists;
};

VDA_INLINE StripNearest strip_nearest(const StripPosition& at, int height, int width, Padding padding) {
    const Ints x = truncated(rounded(at.x)), y = truncated(rounded(at.y));
    Ints exists = at.usable;
    if (padding == Padding::zeros) exists &= (x >= 0) & (x < width) & (y >= 0) & (y < height);
    return {clamped(y, 0, height - 1), clamped(x, 0, width - 1), exists};
}

// Bilinear taps in a plane of height x width. A tap that does not exist (outside, unless the padding is
// border) lies on the plane's edge, where reading is safe, and has weight 0.
struct StripTaps {
    Ints left, right, top, bottom;                  // columns and rows
    Ints has_left, has_right, has_top, has_bottom;  // whether they exist
    Floats a, b;                                    // fractions of the position, along x and y
    Floats left_weight, right_weight, top_weight, bottom_weight;
    Ints read;  // where any tap exists; elsewhere the sample is 0, whatever lies at the edge
    bool all_read;
    // The window that holds all taps, if `rows` is not 0: that many rows from `row` on, 2 * kLanes columns
    // from `column` on. It is flat if it has two rows, and every top tap lies in the first and every bottom
    // tap in the second.
    bool flat;
    int rows, row, column;
};

VDA_INLINE void find_window(int width, StripTaps& taps) {
    constexpr int kMostRows = 6;  // more cost more than single reads
    taps.rows = 0;
    if (width < 2 * kLanes) return;
    // The strip may shrink or stretch along x: its taps may begin a quarter of a vector before those of pixel
    // 0.
    const int column = taps.left[0] - kLanes / 4;
    taps.column = column < 0 ? 0 : (column > width - 2 * kLanes ? width - 2 * kLanes : column);
    const Ints fits = (taps.left >= taps.column) & (taps.right < taps.column + 2 * kLanes);
    taps.row = taps.top[0];
    taps.flat = all(fits & (taps.top == taps.row) & (taps.bottom == taps.row + 1));
    if (taps.flat) {
        taps.rows = 2;
    } else if (all(fits)) {
        taps.row = lowest(taps.top);
        const int rows = highest(taps.bottom) - taps.row + 1;
        taps.rows = rows <= kMostRows ? rows : 0;
    }
}

VDA_INLINE StripTaps strip_taps(const StripPosition& at, int height, int width, Padding padding) {
    StripTaps taps;
    const Floats left = floored(at.x), top = floored(at.y), none{};
    const Ints x = truncated(left), y = truncated(top);
    taps.a = at.x - left;
    taps.b = at.y - top;
    taps.left_weight = 1.0f - taps.a;
    taps.right_weight = taps.a;
    taps.top_weight = 1.0f - taps.b;
    taps.bottom_weight = taps.b;
    taps.read = taps.has_left = taps.has_right = taps.has_top = taps.has_bottom = at.usable;
    if (padding == Padding::zeros) {
        taps.has_left &= (x >= 0) & (x < width);
        taps.has_right &= (x >= -1) & (x < width - 1);
        taps.has_top &= (y >= 0) & (y < height);
        taps.has_bottom &= (y >= -1) & (y < height - 1);
        taps.read = (taps.has_left | taps.has_right) & (taps.has_top | taps.has_bottom);
        taps.left_weight = taps.has_left ? taps.left_weight : none;
        taps.right_weight = taps.has_right ? taps.right_weight : none;
        taps.top_weight = taps.has_top ? taps.top_weight : none;
        taps.bottom_weight = taps.has_bottom ? taps.bottom_weight : none;
    }
    taps.all_read = all(taps.read);
    taps.left = clamped(x, 0, width - 1);
    taps.right = clamped(x + 1, 0, width - 1);
    taps.top = clamped(y, 0, height - 1);
    taps.bottom = clamped(y + 1, 0, height - 1);
    find_window(width, taps);
    return taps;
}

// Values at the left and the right taps, in the rows of the top or of the bottom taps.
struct Pair {
    Floats left, right;
};

template <typename T>
VDA_INLINE Pair window_row(const T* from, const StripTaps& taps) {
    const Floats a = load_lanes(from), b = load_lanes(from + kLanes);
    return {permuted(a, b, taps.left - taps.column), permuted(a, b, taps.right - taps.column)};
}

// Elements at the given offsets.
template <typename T>
VDA_INLINE Floats gathered(const T* plane, Ints row, Ints column, int64_t stride_y, int64_t stride_x) {
    int32_t rows[kLanes], columns[kLanes];
    float values[kLanes];
    memcpy(rows, &row, sizeof(rows));
    memcpy(columns, &column, sizeof(columns));
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) values[i] = load(plane + rows[i] * stride_y + columns[i] * stride_x);
    return load_lanes(values);
}

// Reads the taps of a strip in a plane of any strides.
template <typename T>
VDA_INLINE void read_taps(const T* plane, int64_t stride_y, int64_t stride_x, const StripTaps& taps,
                          Pair& top, Pair& bottom) {
    if (taps.rows == 0 || stride_x != 1) {
        top.left = gathered(plane, taps.top, taps.left, stride_y, stride_x);
        top.right = gathered(plane, taps.top, taps.right, stride_y, stride_x);
        bottom.left = gathered(plane, taps.bottom, taps.left, stride_y, stride_x);
        bottom.right = gathered(plane, taps.bottom, taps.right, stride_y, stride_x);
        return;
    }
    const T* from = plane + taps.row * stride_y + taps.column;
    top = window_row(from, taps);
    if (taps.flat) {
        bottom = window_row(from + stride_y, taps);
        return;
    }
    bottom = top;
    for (int r = 1; r < taps.rows; ++r) {
        const Pair row = window_row(from + r * stride_y, taps);
        const Ints is_top = taps.top == taps.row + r, is_bottom = taps.bottom == taps.row + r;
        top.left = is_top ? row.left : top.left;
        top.right = is_top ? row.right : top.right;
        bottom.left = is_bottom ? row.left : bottom.left;
        bottom.right = is_bottom ? row.right : bottom.right;
    }
}

template <typename T>
VDA_INLINE Floats sample(const T* plane, int64_t stride_y, int64_t stride_x, const StripTaps& taps) {
    Pair top, bottom;
    read_taps(plane, stride_y, stride_x, taps, top, bottom);
    const Floats value =
        taps.top_weight * (taps.left_weight * top.left + taps.right_weight * top.right) +
        taps.bottom_weight * (taps.left_weight * bottom.left + taps.right_weight * bottom.right);
    return taps.all_read ? value : (taps.read ? value : Floats{});
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
        const Floats difference = load_lanes(frame + c * p.frame.stride[1], p.frame.stride[3]) -
                                  sample(other + c * stride[1], stride[2], stride[3], taps);
        error += difference * difference;
    }
    return {taps, in_frame(at, p.height, p.width) & (error < limit)};
}
