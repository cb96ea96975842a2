// Rows of warp.h, compiled per instruction set (multiversion.h), in strips (strip.h); rows narrower than a
// strip, and doubles, pixel by pixel.

// ---- forward ----

template <typename T>
VDA_INLINE void forward_strips(const WarpParams& p, int64_t b, int y, const T* image, T* out) {
    for_strips(p.width, [&](int x0, int) VDA_INLINED {
        const auto at = strip_position(p.flow, b, y, x0);
        const auto taps = strip_taps(at, p.height, p.width, p.padding);
        for (int c = 0; c < p.channels; ++c) {
            const T* plane = image + c * p.image.stride[1];
            store_lanes(out + c * int64_t(p.height) * p.width + x0,
                        sample(plane, p.image.stride[2], p.image.stride[3], taps));
        }
    });
}

template <typename T>
VDA_INLINE void forward_row(const WarpParams& p, int64_t b, int y) {
    const int64_t plane = int64_t(p.height) * p.width;
    const T* image = static_cast<const T*>(p.image.data) + b * p.image.stride[0];
    T* out = static_cast<T*>(p.out) + b * p.channels * plane + int64_t(y) * p.width;
    if constexpr (!std::is_same_v<T, double>) {
        if (in_strips(p.height, p.width)) return forward_strips(p, b, y, image, out);
    }
    for (int x = 0; x < p.width; ++x) {
        const auto at = p.flow.target<Acc<T>>(b, y, x);
        const auto taps =
            bilinear_taps(at, p.height, p.width, p.image.stride[2], p.image.stride[3], p.padding);
        for (int c = 0; c < p.channels; ++c) {
            store(out + c * plane + x, sample(image + c * p.image.stride[1], taps));
        }
    }
}

template <typename S>
VDA_INLINE void nearest_strips(const WarpNearestParams& p, int64_t b, int y, const S* image, S* out) {
    for_strips(p.width, [&](int x0, int) VDA_INLINED {
        const auto at = strip_position(p.flow, b, y, x0);
        const auto from = strip_nearest(at, p.height, p.width, p.padding);
        for (int c = 0; c < p.channels; ++c) {
            const S* plane = image + c * p.image.stride[1];
            S* to = out + c * int64_t(p.height) * p.width + x0;
            for (int i = 0; i < kLanes; ++i) {
                const S pixel = plane[from.row[i] * p.image.stride[2] + from.column[i] * p.image.stride[3]];
                to[i] = from.exists[i] ? pixel : S(p.fill);
            }
        }
    });
}

// S has the size of an element; A is what positions are computed in.
template <typename S, typename A>
VDA_INLINE void nearest_row(const WarpNearestParams& p, int64_t b, int y) {
    const int64_t plane = int64_t(p.height) * p.width;
    const S* image = static_cast<const S*>(p.image.data) + b * p.image.stride[0];
    S* out = static_cast<S*>(p.out) + b * p.channels * plane + int64_t(y) * p.width;
    if constexpr (std::is_same_v<A, float>) {
        if (in_strips(p.height, p.width)) return nearest_strips(p, b, y, image, out);
    }
    for (int x = 0; x < p.width; ++x) {
        const int64_t from = nearest_offset(p.flow.target<A>(b, y, x), p.height, p.width, p.image.stride[2],
                                            p.image.stride[3], p.padding);
        for (int c = 0; c < p.channels; ++c) {
            out[c * plane + x] = from < 0 ? S(p.fill) : image[c * p.image.stride[1] + from];
        }
    }
}

// ---- backward ----

// plane[row][column] += share, pixel by pixel: two pixels of a strip may land on the same one.
VDA_INLINE void scatter(Floats share, Ints row, Ints column, Ints exists, int width, float* plane) {
    for (int i = 0; i < kLanes; ++i) {
        if (exists[i]) plane[row[i] * int64_t(width) + column[i]] += share[i];
    }
}

template <typename T>
VDA_INLINE void backward_image_strips(const WarpBackwardParams& p, int64_t b, int y, const T* grad_out,
                                      float* plane) {
    for_strips(p.width, [&](int x0, int done) VDA_INLINED {
        const auto at = strip_position(p.flow, b, y, x0);
        const auto grad = load_lanes(grad_out + x0 * p.grad_out.stride[3], p.grad_out.stride[3]);
        const Ints due = iota(0) >= done;
        if (p.mode == Mode::nearest) {
            const auto to = strip_nearest(at, p.height, p.width, p.padding);
            return scatter(grad, to.row, to.column, to.exists & due, p.width, plane);
        }
        const auto to = strip_taps(at, p.height, p.width, p.padding);
        const Ints has_top = to.has_top & due, has_bottom = to.has_bottom & due;
        scatter(grad * to.weight[0], to.top, to.left, has_top & to.has_left, p.width, plane);
        scatter(grad * to.weight[1], to.top, to.right, has_top & to.has_right, p.width, plane);
        scatter(grad * to.weight[2], to.bottom, to.left, has_bottom & to.has_left, p.width, plane);
        scatter(grad * to.weight[3], to.bottom, to.right, has_bottom & to.has_right, p.width, plane);
    });
}

// Gradient of one [H, W] plane of the image.
template <typename T>
VDA_INLINE void backward_image_plane(const WarpBackwardParams& p, int64_t b, int c) {
    using A = Acc<T>;
    A* plane = static_cast<A*>(p.grad_image) + (b * p.channels + c) * int64_t(p.height) * p.width;
    for (int y = 0; y < p.height; ++y) {
        const T* grad_out = static_cast<const T*>(p.grad_out.data) + b * p.grad_out.stride[0] +
                            c * p.grad_out.stride[1] + y * p.grad_out.stride[2];
        if constexpr (!std::is_same_v<T, double>) {
            if (in_strips(p.height, p.width)) {
                backward_image_strips(p, b, y, grad_out, plane);
                continue;
            }
        }
        for (int x = 0; x < p.width; ++x) {
            const A grad = load(grad_out + x * p.grad_out.stride[3]);
            const Taps<A> taps =
                warp_taps<A>(p.flow, b, y, x, p.height, p.width, p.width, 1, p.mode, p.padding);
            for (int tap = 0; tap < 4; ++tap) {
                if (taps.offset[tap] >= 0) plane[taps.offset[tap]] += taps.weight(tap) * grad;
            }
        }
    }
}

template <typename T>
VDA_INLINE void backward_flow_strips(const WarpBackwardParams& p, int64_t b, int y, const T* grad_out,
                                     const T* image, float* grad_flow) {
    for_strips(p.width, [&](int x0, int) VDA_INLINED {
        const auto at = strip_position(p.flow, b, y, x0);
        const auto taps = strip_taps(at, p.height, p.width, p.padding);
        Floats gx{}, gy{};
        for (int c = 0; c < p.channels; ++c) {
            const auto grad = load_lanes(grad_out + c * p.grad_out.stride[1] + x0 * p.grad_out.stride[3],
                                         p.grad_out.stride[3]);
            Pair top, bottom;
            read_taps(image + c * p.image.stride[1], p.image.stride[2], p.image.stride[3], taps, top, bottom);
            gx += grad * ((1.0f - taps.b) * (top.right - top.left) + taps.b * (bottom.right - bottom.left));
            gy += grad * ((1.0f - taps.a) * (bottom.left - top.left) + taps.a * (bottom.right - top.right));
        }
        store_lanes(grad_flow + x0, gx);
        store_lanes(grad_flow + int64_t(p.height) * p.width + x0, gy);
    });
}

template <typename T>
VDA_INLINE void backward_flow_row(const WarpBackwardParams& p, int64_t b, int y) {
    using A = Acc<T>;
    const int64_t plane = int64_t(p.height) * p.width;
    const T* grad_out =
        static_cast<const T*>(p.grad_out.data) + b * p.grad_out.stride[0] + y * p.grad_out.stride[2];
    const T* image = static_cast<const T*>(p.image.data) + b * p.image.stride[0];
    A* grad_flow = static_cast<A*>(p.grad_flow) + b * 2 * plane + int64_t(y) * p.width;
    if (p.mode == Mode::nearest) {
        for (int x = 0; x < p.width; ++x) grad_flow[x] = grad_flow[plane + x] = A(0);
        return;
    }
    if constexpr (!std::is_same_v<T, double>) {
        if (in_strips(p.height, p.width)) return backward_flow_strips(p, b, y, grad_out, image, grad_flow);
    }
    for (int x = 0; x < p.width; ++x) {
        A gx = 0, gy = 0;
        const Taps<A> taps = bilinear_taps(p.flow.target<A>(b, y, x), p.height, p.width, p.image.stride[2],
                                           p.image.stride[3], p.padding);
        for (int c = 0; c < p.channels; ++c) {
            const A grad = load(grad_out + c * p.grad_out.stride[1] + x * p.grad_out.stride[3]);
            add_flow_gradient(grad, image + c * p.image.stride[1], taps, gx, gy);
        }
        grad_flow[x] = gx;
        grad_flow[plane + x] = gy;
    }
}

// ---- occlusion ----

template <typename T>
VDA_INLINE void occlusion_strips(const WarpOcclusionParams& p, float limit, int64_t b, int y) {
    const int64_t plane = int64_t(p.height) * p.width;
    const T* frame = static_cast<const T*>(p.frame.data) + b * p.frame.stride[0] + y * p.frame.stride[2];
    const T* neighbour = static_cast<const T*>(p.neighbour.data) + b * p.neighbour.stride[0];
    T* out = static_cast<T*>(p.out) + b * p.channels * plane + int64_t(y) * p.width;
    uint8_t* visible = p.visible + b * plane + int64_t(y) * p.width;
    for_strips(p.width, [&](int x0, int) VDA_INLINED {
        const auto at = strip_position(p.flow, b, y, x0);
        const auto taps = strip_taps(at, p.height, p.width, Padding::zeros);
        Floats error{};  // squared distance, before any rounding to 16 bit
        for (int c = 0; c < p.channels; ++c) {
            const auto own =
                load_lanes(frame + c * p.frame.stride[1] + x0 * p.frame.stride[3], p.frame.stride[3]);
            const auto value = sample(neighbour + c * p.neighbour.stride[1], p.neighbour.stride[2],
                                      p.neighbour.stride[3], taps);
            error += (own - value) * (own - value);
            store_lanes(out + c * plane + x0, value);
        }
        store_bytes(visible + x0, in_frame(at, p.height, p.width) & (error < limit) & 1);
    });
}

template <typename T>
VDA_INLINE void occlusion_row(const WarpOcclusionParams& p, int64_t b, int y) {
    const auto limit = not_below<Acc<T>>(p.limit);
    if constexpr (!std::is_same_v<T, double>) {
        if (in_strips(p.height, p.width)) return occlusion_strips<T>(p, limit, b, y);
    }
    for (int x = 0; x < p.width; ++x) warp_occlusion_pixel<T>(p, limit, b, y, x);
}

// ---- what warp.cpp calls: rows [begin, end) of all rows of the batch, or planes ----

template <typename T>
void forward_rows(const WarpParams& p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) forward_row<T>(p, i / p.height, int(i % p.height));
}
template <typename S, typename A>
void nearest_rows(const WarpNearestParams& p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) nearest_row<S, A>(p, i / p.height, int(i % p.height));
}
template <typename T>
void backward_image_planes(const WarpBackwardParams& p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) backward_image_plane<T>(p, i / p.channels, int(i % p.channels));
}
template <typename T>
void backward_flow_rows(const WarpBackwardParams& p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) backward_flow_row<T>(p, i / p.height, int(i % p.height));
}
template <typename T>
void occlusion_rows(const WarpOcclusionParams& p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) occlusion_row<T>(p, i / p.height, int(i % p.height));
}
