// Rows of aggregate.h, compiled per instruction set (multiversion.h), in strips (strip.h); rows narrower than
// a strip pixel by pixel. Where the pixels of a strip lie in a neighbour is worked out once for kClasses
// class planes.

constexpr int kClasses = 32;  // class planes whose sums are held at once

template <typename T>
VDA_INLINE void aggregate_strips(const AggregateParams& p, float limit, int64_t b, int y, const T* own,
                                 T* out) {
    const int64_t plane = int64_t(p.near.height) * p.near.width;
    const int64_t* stride = p.neighbour_probs.first.stride;
    for_strips(p.near.width, [&](int x0, int) VDA_INLINED {
        Floats sum[kClasses], frames;
        for (int k0 = 0; k0 < p.classes; k0 += kClasses) {
            const int classes = p.classes - k0 < kClasses ? p.classes - k0 : kClasses;
            for (int k = 0; k < classes; ++k) {
                sum[k] = load_lanes(own + (k0 + k) * p.probs.stride[1] + x0 * p.probs.stride[3],
                                    p.probs.stride[3]);
            }
            frames = splat(1.0f);
            for (int j = 0; j < p.near.neighbours; ++j) {
                const auto seen = strip_sighting(p.near, limit, b, j, y, x0);
                if (!any(seen.visible)) continue;
                frames += seen.visible ? splat(1.0f) : Floats{};
                const T* other = nth<T>(p.neighbour_probs, j, b) + k0 * stride[1];
                for (int k = 0; k < classes; ++k) {
                    const auto value = sample(other + k * stride[1], stride[2], stride[3], seen.taps);
                    sum[k] += seen.visible ? value : Floats{};
                }
            }
            for (int k = 0; k < classes; ++k) store_lanes(out + (k0 + k) * plane + x0, sum[k] / frames);
        }
    });
}

template <typename T>
VDA_INLINE void aggregate_row(const AggregateParams& p, int64_t b, int y) {
    const float limit = not_below<float>(p.near.limit);
    const int64_t plane = int64_t(p.near.height) * p.near.width;
    const T* own = static_cast<const T*>(p.probs.data) + b * p.probs.stride[0] + y * p.probs.stride[2];
    T* out = static_cast<T*>(p.out) + b * p.classes * plane + int64_t(y) * p.near.width;
    if (p.near.width >= kLanes) return aggregate_strips(p, limit, b, y, own, out);
    for (int x = 0; x < p.near.width; ++x) aggregate_pixel<T>(p, limit, b, y, x);
}

template <typename T>
void aggregate_rows(const AggregateParams& p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) aggregate_row<T>(p, i / p.near.height, int(i % p.near.height));
}
