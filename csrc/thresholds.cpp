// CPU kernels of thresholds.h. Each thread fills its own table of 32-bit counts, then the tables are added.
#include "thresholds.h"

#include "parallel.h"

namespace vda {
namespace {

constexpr int64_t kPixelsPerThread =
    1 << 18;  // a table of its own has to be cleared and added: make it worth it
constexpr int64_t kMaxPixels = (int64_t(1) << 32) - 1;  // what the 32-bit counts hold

int slots(const ThresholdsParams& p, int threads) {
    return int(std::max<int64_t>(1, std::min<int64_t>(threads, p.pixels / kPixelsPerThread)));
}

template <typename T>
void count(const ThresholdsParams& p, int threads) {
    const int tables = slots(p, threads);
    if (tables == 1) {
        count_runs<T>(p, 0, p.pixels, [&](int64_t cell, int64_t n) { p.histogram[cell] += n; });
        return;
    }
    const int64_t cells = int64_t(p.classes) * p.bins;
    parallel_for(tables, 1, tables, [&](int64_t slot, int64_t end) {
        for (; slot < end; ++slot) {
            uint32_t* own = p.workspace + slot * cells;
            std::fill_n(own, cells, 0u);
            count_runs<T>(p, p.pixels * slot / tables, p.pixels * (slot + 1) / tables,
                          [&](int64_t cell, int64_t n) { own[cell] += uint32_t(n); });
        }
    });
    parallel_for(cells, 1 << 16, threads, [&](int64_t begin, int64_t end) {
        for (int slot = 0; slot < tables; ++slot) {
            const uint32_t* own = p.workspace + slot * cells;
            for (int64_t cell = begin; cell < end; ++cell) p.histogram[cell] += own[cell];
        }
    });
}

// Few pixels get as far as this, those near a threshold, so all threads share one table.
void add_relaxed(int64_t* cell) {
#if defined(__GNUC__)
    __atomic_fetch_add(cell, 1, __ATOMIC_RELAXED);
#else
#error "no 64-bit atomic addition for this compiler"
#endif
}

template <typename T>
void refine(const ThresholdsParams& p, int threads) {
    parallel_for(p.pixels, kPixelsPerThread, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            refine_pixel<T>(p, i, [&](int64_t cell) { add_relaxed(p.lower + cell); });
        }
    });
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
    if (p.pixels > kMaxPixels) return kBadSize;
    switch (p.dtype) {
        case Dtype::f32:
            return count<float>(p, threads), kOk;
        case Dtype::f16:
            return count<half>(p, threads), kOk;
        case Dtype::bf16:
            return count<bfloat16>(p, threads), kOk;
        case Dtype::f64:
            break;
    }
    return kBadDtype;
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
    switch (p.dtype) {
        case Dtype::f32:
            return refine<float>(p, threads), kOk;
        case Dtype::f16:
            return refine<half>(p, threads), kOk;
        case Dtype::bf16:
            return refine<bfloat16>(p, threads), kOk;
        case Dtype::f64:
            break;
    }
    return kBadDtype;
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
