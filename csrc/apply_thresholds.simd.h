// Rows of apply_thresholds.h, compiled per instruction set (multiversion.h).

template <typename T>
VDA_INLINE void apply_row(const ApplyThresholdsParams& p, const Bars& bars, int64_t b, int y) {
    const uint8_t* label = p.label.row(b, y);
    const T* confidence =
        static_cast<const T*>(p.confidence.data) + b * p.confidence.stride[0] + y * p.confidence.stride[1];
    uint8_t* out = p.out + (b * p.height + y) * p.width;
    int x = 0;
    for (; x + kLanes <= p.width; x += kLanes) {
        const Ints own = load_bytes(label + x * p.label.stride[2], p.label.stride[2]);
        const Floats found = load_lanes(confidence + x * p.confidence.stride[2], p.confidence.stride[2]);
        store_bytes(out + x, kept(own, found, bars, p.inclusive, p.ignore));
    }
    for (; x < p.width; ++x) apply_thresholds_pixel(p, b, y, x);
}

template <typename T>
void apply_rows(const ApplyThresholdsParams& p, int64_t begin, int64_t end) {
    Bars bars;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / p.height;
        bars.set(b, p.theta, p.classes);
        apply_row<T>(p, bars, b, int(i % p.height));
    }
}
