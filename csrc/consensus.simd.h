// Rows of consensus.h, compiled per instruction set (multiversion.h), in strips (strip.h); rows narrower than
// a strip pixel by pixel.

// agree() of consensus.h.
VDA_INLINE Ints agree(ConsensusMode mode, Ints label, Ints warped, Ints visible, uint8_t ignore) {
    const Ints none = splat(int(ignore));
    switch (mode) {
        case ConsensusMode::strict:
            return label == warped ? label : none;
        case ConsensusMode::lenient:
            return (label == warped) | (warped == none) ? label : none;
        default:
            return (label == none) & visible ? warped : label;
    }
}

// T: type of the confidences; bars are read unless labels are final.
template <typename T, bool kFinal>
void consensus_strips(const ConsensusParams& given, int64_t b, int y, const Bars* bars,
                      const Bars* reference_bars) {
    const ConsensusParams p = given;  // nobody else's: what is stored below cannot change it
    const uint8_t* label = p.label.row(b, y);
    const uint8_t* reference = p.reference.row(b, 0);
    const uint8_t* visible = p.visible.data == nullptr ? nullptr : p.visible.row(b, y);
    const T* confidence =
        static_cast<const T*>(p.confidence.data) + b * p.confidence.stride[0] + y * p.confidence.stride[1];
    const int64_t* other_stride = p.reference_confidence.stride;
    const T* other = static_cast<const T*>(p.reference_confidence.data) + b * other_stride[0];
    uint8_t* out = p.out + (b * p.height + y) * p.width;
    for_strips(p.width, [&](int x0, int) VDA_INLINED {
        const auto from = strip_nearest(strip_position(p.flow, b, y, x0), p.height, p.width, Padding::zeros);
        Ints warped =
            read_nearest(reference, p.reference.stride[1], p.reference.stride[2], from, p.height, p.width);
        Ints own = load_bytes(label + x0 * p.label.stride[2], p.label.stride[2]);
        if constexpr (!kFinal) {
            own = kept(own, load_lanes(confidence + x0 * p.confidence.stride[2], p.confidence.stride[2]),
                       *bars, p.inclusive, p.ignore);
            warped =
                kept(warped, read_nearest(other, other_stride[1], other_stride[2], from, p.height, p.width),
                     *reference_bars, p.inclusive, p.ignore);
        }
        warped = from.exists ? warped : splat(int(p.ignore));
        Ints seen = splat(-1);
        if (visible != nullptr)
            seen = load_bytes(visible + x0 * p.visible.stride[2], p.visible.stride[2]) != 0;
        store_bytes(out + x0, agree(p.mode, own, warped, seen, p.ignore));
    });
}

template <typename T>
void consensus_rows(const ConsensusParams& p, int64_t begin, int64_t end) {
    const bool final = p.confidence.data == nullptr;
    Bars bars, reference_bars;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / p.height;
        const int y = int(row % p.height);
        if (!in_strips(p.height, p.width)) {
            for (int x = 0; x < p.width; ++x) consensus_pixel(p, b, y, x);
        } else if (final) {
            consensus_strips<T, true>(p, b, y, nullptr, nullptr);
        } else {
            bars.set(b, p.theta, p.classes);
            reference_bars.set(b, p.reference_theta, p.classes);
            consensus_strips<T, false>(p, b, y, &bars, &reference_bars);
        }
    }
}
