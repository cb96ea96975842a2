// Counting of thresholds.h, compiled per instruction set (multiversion.h).

// Upper 16 bits (the bin) and lower 16 bits of what pattern() of thresholds.h returns; bin -1 where it skips.
struct Patterns {
    Ints bin, lower;
};

template <typename T>
VDA_INLINE Patterns patterns(const ThresholdsParams& p, const T* confidence) {
    const Ints one = splat(0x3f800000);
    if (p.bins == kHalfBins) {
        Ints bits;
        if constexpr (std::is_same_v<T, half>) {
            Shorts narrow;
            memcpy(&narrow, confidence, sizeof(narrow));
            bits = __builtin_convertvector(narrow, Ints);
        } else {
            const Floats value = load_lanes(confidence);
            bits = __builtin_convertvector(floats_to_half(value > 1.0f ? reinterpret<Floats>(one) : value),
                                           Ints);
        }
        const Ints skip = (bits > 0x7c00) & (bits != 0x8000);  // NaN, negative; -0 is 0
        bits = bits == 0x8000 ? Ints{} : (bits > 0x3c00 ? splat(0x3c00) : bits);
        return {bits | skip, Ints{}};
    }
    const Floats value = load_lanes(confidence);
    const Ints skip = ~(value >= 0.0f);  // NaN too
    const Ints bits = (value > 1.0f ? one : reinterpret<Ints>(value)) & 0x7fffffff;
    return {(bits >> 16) | skip, bits & 0xffff};
}

// table [K, bins] += pixels [begin, end). Where all pixels of a vector fall into one bin they are counted at
// once: real frames are smooth, and saturated confidences would otherwise queue up at one cell.
template <typename T, typename Count>
void count_pixels(const ThresholdsParams& p, Count* table, int64_t begin, int64_t end) {
    const T* confidence = static_cast<const T*>(p.confidence);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
        const Ints label = load_bytes(p.label + i);
        const Ints bin = patterns(p, confidence + i).bin;
        const Ints counts = (label < p.classes) & (bin >= 0);
        const Ints cell = counts ? label * p.bins + bin : splat(-1);
        const int first = cell[0];
        if (all(cell == first)) {
            if (first >= 0) table[first] += kLanes;
            continue;
        }
        int32_t cells[kLanes];
        memcpy(cells, &cell, sizeof(cells));
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; ++lane) {
            if (cells[lane] >= 0) ++table[cells[lane]];
        }
    }
    for (; i < end; ++i) {
        const int label = p.label[i];
        const int32_t bits = pattern(p, load(confidence + i));
        if (label < p.classes && bits >= 0) ++table[int64_t(label) * p.bins + (bits >> 16)];
    }
}

// lower [K, ranks, kLowerBins] += pixels [begin, end) whose bin some rank of their class has selected. Few
// are: those near a threshold. All threads share the table.
template <typename T>
void refine_pixels(const ThresholdsParams& p, int64_t begin, int64_t end) {
    const T* confidence = static_cast<const T*>(p.confidence);
    const int n = ranks(p.rule);
    int64_t i = begin;
    for (int r = 0; r < n; ++r) {
        int32_t selected[256];  // bin by label
        for (int k = 0; k < 256; ++k) selected[k] = k < p.classes ? int32_t(p.selection[k].key[r]) : -1;
        for (i = begin; i + kLanes <= end; i += kLanes) {
            int32_t wanted[kLanes];
#pragma GCC unroll 16
            for (int lane = 0; lane < kLanes; ++lane) wanted[lane] = selected[p.label[i + lane]];
            Ints key;
            memcpy(&key, wanted, sizeof(key));
            const Patterns found = patterns(p, confidence + i);
            const Ints hit = (found.bin == key) & (key >= 0);
            if (!any(hit)) continue;
            for (int lane = 0; lane < kLanes; ++lane) {
                if (hit[lane])
                    add_relaxed(p.lower + (int64_t(p.label[i + lane]) * n + r) * kLowerBins +
                                found.lower[lane]);
            }
        }
    }
    for (; i < end; ++i) refine_pixel<T>(p, i, [&](int64_t cell) { add_relaxed(p.lower + cell); });
}
