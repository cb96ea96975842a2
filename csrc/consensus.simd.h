// Rows of consensus.h, compiled per instruction set (multiversion.h), in strips (strip.h); rows narrower than
// a strip pixel by pixel.

VDA_INLINE void consensus_strips(const ConsensusParams& p, int64_t b, int y) {
    const uint8_t* label = p.label.row(b, y);
    const uint8_t* reference = p.reference.row(b, 0);
    const uint8_t* visible = p.visible.data == nullptr ? nullptr : p.visible.row(b, y);
    uint8_t* out = p.out + (b * p.height + y) * p.width;
    for_strips(p.width, [&](int x0, int) VDA_INLINED {
        const auto at = strip_position(p.flow, b, y, x0);
        const auto from = strip_nearest(at, p.height, p.width, Padding::zeros);
        const bool all_exist = all(from.exists);
        uint8_t warped[kLanes], own[kLanes], seen[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            warped[i] =
                reference[from.row[i] * p.reference.stride[1] + from.column[i] * p.reference.stride[2]];
        }
        if (!all_exist) {
            for (int i = 0; i < kLanes; ++i) warped[i] = from.exists[i] ? warped[i] : p.ignore;
        }
        for (int i = 0; i < kLanes; ++i) own[i] = label[(x0 + i) * p.label.stride[2]];
        for (int i = 0; i < kLanes; ++i)
            seen[i] = visible == nullptr || visible[(x0 + i) * p.visible.stride[2]];
        for (int i = 0; i < kLanes; ++i) out[x0 + i] = agree(p.mode, own[i], warped[i], seen[i], p.ignore);
    });
}

void consensus_rows(const ConsensusParams& p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / p.height;
        const int y = int(row % p.height);
        if (p.width >= kLanes) {
            consensus_strips(p, b, y);
        } else {
            for (int x = 0; x < p.width; ++x) consensus_pixel(p, b, y, x);
        }
    }
}
