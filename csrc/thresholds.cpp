// CPU kernels of thresholds.h. Each thread fills its own table of 32-bit counts, then the tables are added.
#include "thresholds.h"

#include <algorithm>

#include "parallel.h"

namespace vda {
namespace {

void add_relaxed(int64_t* cell) { __atomic_fetch_add(cell, 1, __ATOMIC_RELAXED); }

}  // namespace
}  // namespace vda

#define VDA_KERNELS "thresholds.simd.h"
#include "multiversion.h"

namespace vda {
namespace {

// A table of its own has to be cleared and added: it takes this many pixels to make it worth it.
constexpr int64_t kPixelsPerThread = 1 << 18;
constexpr int64_t kMaxPixels = (int64_t(1) << 32) - 1;  // what the 32-bit counts hold

template <typename T>
int count(const ThresholdsParams& p, int threads) {
    const int64_t tables = std::max<int64_t>(1, std::min<int64_t>(threads, p.pixels / kPixelsPerThread));
    if (tables == 1 || p.workspace == nullptr || p.pixels / tables >= kMaxPixels) {
        VDA_WIDEST(count_pixels<T, int64_t>)(p, p.histogram, 0, p.pixels);
        return kOk;
    }
    const int64_t cells = int64_t(p.classes) * p.bins;
    const auto pixels = VDA_WIDEST(count_pixels<T, uint32_t>);
    parallel_for(tables, 1, int(tables), [&](int64_t slot, int64_t) {
        uint32_t* own = p.workspace + slot * cells;
        std::fill_n(own, cells, 0u);
        pixels(p, own, p.pixels * slot / tables, p.pixels * (slot + 1) / tables);
    });
    parallel_for(cells, 1 << 16, threads, [&](int64_t begin, int64_t end) {
        for (int64_t slot = 0; slot < tables; ++slot) {
            const uint32_t* own = p.workspace + slot * cells;
            for (int64_t cell = begin; cell < end; ++cell) p.histogram[cell] += own[cell];
        }
    });
    return kOk;
}

template <typename T>
int refine(const ThresholdsParams& p, int threads) {
    const auto pixels = VDA_WIDEST(refine_pixels<T>);
    parallel_for(p.pixels, kPixelsPerThread / 4, threads,
                 [&](int64_t begin, int64_t end) { pixels(p, begin, end); });
    return kOk;
}

// The bin that holds the value of ascending rank `rank`, and its rank inside that bin.
int64_t find_rank(const int64_t* table, int bins, int64_t rank, int64_t* rest) {
    int bin = 0;
    while (bin < bins - 1 && rank >= table[bin]) rank -= table[bin++];
    *rest = rank;
    return bin;
}

}  // namespace

int thresholds_count_cpu(const ThresholdsParams& p, int threads) {
    return for_float(p.dtype, [&](auto type) { return count<decltype(type)>(p, threads); });
}

int thresholds_select_cpu(const ThresholdsParams& p, int) {
    for (int k = 0; k < p.classes; ++k) {
        const int64_t* table = p.histogram + int64_t(k) * p.bins;
        Selection& selection = p.selection[k];
        selection = {0, {-1, -1, -1}, {0, 0, 0}};
        for (int bin = 0; bin < p.bins; ++bin) selection.count += table[bin];
        if (selection.count == 0) continue;
        int64_t rank[kMaxRanks];
        wanted_ranks(p, p.theta[k], selection.count, rank);
        for (int r = 0; r < ranks(p.rule); ++r) {
            selection.key[r] = find_rank(table, p.bins, rank[r], &selection.rest[r]);
        }
    }
    return kOk;
}

int thresholds_refine_cpu(const ThresholdsParams& p, int threads) {
    return for_float(p.dtype, [&](auto type) { return refine<decltype(type)>(p, threads); });
}

int thresholds_update_cpu(const ThresholdsParams& p, int) {
    const int n = ranks(p.rule);
    for (int k = 0; k < p.classes; ++k) {
        const Selection& selection = p.selection[k];
        double value[kMaxRanks] = {};
        for (int r = 0; r < n && selection.count > 0; ++r) {
            int64_t rest, lower = 0;
            if (p.lower != nullptr) {
                lower = find_rank(p.lower + (int64_t(k) * n + r) * kLowerBins, kLowerBins, selection.rest[r],
                                  &rest);
            }
            value[r] = value_of(p, selection.key[r], lower);
        }
        p.out[k] = next_theta(p, p.theta[k], selection.count, value);
    }
    return kOk;
}

}  // namespace vda
