// Rows of aggregate.h, compiled per instruction set (multiversion.h), in strips (strip.h); rows narrower than
// a strip pixel by pixel. Where the pixels of a strip lie in a neighbour is worked out once for kClasses
// class planes.

constexpr int kClasses = 32;  // class planes whose sums are held at once
constexpr int kStrips =
    8;  // strips done together, so that each plane is read in runs that a cache can foresee

// Strips from pixels x[0], x[1], .. of a row, `count` of them.
template <typename T>
VDA_INLINE void aggregate_strips(const AggregateParams& p, float limit, int64_t b, int y,
                                 const int x[kStrips], int count, const T* own, T* out) {
    const int64_t plane = int64_t(p.near.height) * p.near.width;
    const int64_t* stride = p.neighbour_probs.first.stride;
    Floats sum[kClasses][kStrips], frames[kStrips];
    StripSighting seen[kStrips];
    for (int k0 = 0; k0 < p.classes; k0 += kClasses) {
        const int classes = p.classes - k0 < kClasses ? p.classes - k0 : kClasses;
        for (int i = 0; i < count; ++i) frames[i] = splat(1.0f);
        for (int k = 0; k < classes; ++k) {
            const T* from = own + (k0 + k) * p.probs.stride[1];
            for (int i = 0; i < count; ++i)
                sum[k][i] = load_lanes(from + x[i] * p.probs.stride[3], p.probs.stride[3]);
        }
        for (int j = 0; j < p.near.neighbours; ++j) {
            for (int i = 0; i < count; ++i) {
                seen[i] = strip_sighting(p.near, limit, b, j, y, x[i]);
                frames[i] += seen[i].visible ? splat(1.0f) : Floats{};
            }
            for (int k = 0; k < classes; ++k) {
                const T* from = nth<T>(p.neighbour_probs, j, b) + (k0 + k) * stride[1];
                for (int i = 0; i < count; ++i) {
                    const Floats value = sample(from, stride[2], stride[3], seen[i].taps);
                    sum[k][i] += seen[i].visible ? value : Floats{};
                }
            }
        }
        for (int k = 0; k < classes; ++k) {
            for (int i = 0; i < count; ++i) store_lanes(out + (k0 + k) * plane + x[i], sum[k][i] / frames[i]);
        }
    }
}

template <typename T>
VDA_INLINE void aggregate_row(const AggregateParams& p, int64_t b, int y) {
    const float limit = not_below<float>(p.near.limit);
    const int64_t plane = int64_t(p.near.height) * p.near.width;
    const T* own = static_cast<const T*>(p.probs.data) + b * p.probs.stride[0] + y * p.probs.stride[2];
    T* out = static_cast<T*>(p.out) + b * p.classes * plane + int64_t(y) * p.near.width;
    if (!in_strips(p.near.height, p.near.width)) {
        for (int x = 0; x < p.near.width; ++x) aggregate_pixel<T>(p, limit, b, y, x);
        return;
    }
    int x[kStrips], count = 0;
    for_strips(p.near.width, [&](int x0, int) VDA_INLINED {
        x[count++] = x0;
        if (count < kStrips && x0 + kLanes < p.near.width) return;
        aggregate_strips(p, limit, b, y, x, count, own, out);
        count = 0;
    });
}

template <typename T>
void aggregate_rows(const AggregateParams& p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) aggregate_row<T>(p, i / p.near.height, int(i % p.near.height));
}
