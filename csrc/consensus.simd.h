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

VDA_INLINE void consensus_strips(const ConsensusParams& p, int64_t b, int y) {
    const uint8_t* label = p.label.row(b, y);
    const uint8_t* reference = p.reference.row(b, 0);
    const uint8_t* visible = p.visible.data == nullptr ? nullptr : p.visible.row(b, y);
    uint8_t* out = p.out + (b * p.height + y) * p.width;
    for_strips(p.width, [&](int x0, int) VDA_INLINED {
        const auto from = strip_nearest(strip_position(p.flow, b, y, x0), p.height, p.width, Padding::zeros);
        const Ints warped = read_labels(reference, p.reference.stride[1], p.reference.stride[2], from,
                                        p.height, p.width, p.ignore);
        const Ints own = load_bytes(label + x0 * p.label.stride[2], p.label.stride[2]);
        Ints seen = splat(-1);
        if (visible != nullptr)
            seen = load_bytes(visible + x0 * p.visible.stride[2], p.visible.stride[2]) != 0;
        store_bytes(out + x0, agree(p.mode, own, warped, seen, p.ignore));
    });
}

void consensus_rows(const ConsensusParams& p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / p.height;
        const int y = int(row % p.height);
        if (in_strips(p.height, p.width)) {
            consensus_strips(p, b, y);
        } else {
            for (int x = 0; x < p.width; ++x) consensus_pixel(p, b, y, x);
        }
    }
}
