// CUDA kernels of thresholds.h, the readable versions. Counting: each thread takes kRun neighbouring pixels
// (3 bytes each with fp16) and adds runs of equal cells to the table in L2 by integer atomics. Selecting: one
// block per class scans its table.
#include "common.cuh"
#include "thresholds.h"

namespace vda {
namespace {

constexpr int kRun = 8;
constexpr int kScan = 256;  // threads of a selecting block

__device__ void add_atomic(int64_t* cell, int64_t count) {
    // Two's complement addition is the same for signed and unsigned, and atomicAdd only knows the unsigned
    // type.
    atomicAdd(reinterpret_cast<unsigned long long*>(cell), (unsigned long long)(count));
}

template <typename T>
__global__ void count_kernel(ThresholdsParams p) {
    for_each_index(ceil_div<int64_t>(p.pixels, kRun), [&](int64_t i) {
        const int64_t end = (i + 1) * kRun;
        count_runs<T>(p, i * kRun, end < p.pixels ? end : p.pixels,
                      [&](int64_t cell, int64_t n) { add_atomic(p.histogram + cell, n); });
    });
}

template <typename T>
__global__ void refine_kernel(ThresholdsParams p) {
    for_each_index(p.pixels, [&](int64_t i) {
        refine_pixel<T>(p, i, [&](int64_t cell) { add_atomic(p.lower + cell, 1); });
    });
}

// A table cut in kScan pieces: prefix[t] values lie in the pieces before piece t. Whole block; ends in a
// barrier.
__device__ int64_t scan_table(const int64_t* table, int bins, int64_t* prefix) {
    const int t = threadIdx.x, piece = ceil_div(bins, kScan);
    int64_t sum = 0;
    for (int bin = t * piece; bin < bins && bin < (t + 1) * piece; ++bin) sum += table[bin];
    prefix[t + 1] = sum;
    __syncthreads();
    if (t == 0) {
        prefix[0] = 0;
        for (int i = 1; i <= kScan; ++i) prefix[i] += prefix[i - 1];
    }
    __syncthreads();
    return prefix[kScan];
}

// The bin that holds the value of ascending rank `rank`, and its rank inside that bin. The one thread whose
// piece holds the rank writes the answer.
__device__ void find_rank(const int64_t* table, int bins, const int64_t* prefix, int64_t rank, int64_t* key,
                          int64_t* rest) {
    const int t = threadIdx.x;
    if (rank < prefix[t] || rank >= prefix[t + 1]) return;
    int bin = t * ceil_div(bins, kScan);
    rank -= prefix[t];
    while (rank >= table[bin]) rank -= table[bin++];
    *key = bin;
    *rest = rank;
}

__global__ void select_kernel(ThresholdsParams p) {
    int64_t* prefix = dynamic_shared<int64_t>();
    const int k = blockIdx.x;
    const int64_t* table = p.histogram + int64_t(k) * p.bins;
    Selection* selection = p.selection + k;
    const int64_t n = scan_table(table, p.bins, prefix);
    if (threadIdx.x == 0) *selection = {n, {-1, -1, -1}, {0, 0, 0}};
    __syncthreads();
    if (n == 0) return;
    int64_t rank[kMaxRanks];
    wanted_ranks(p, p.theta[k], n, rank);
    for (int r = 0; r < ranks(p.rule); ++r) {
        find_rank(table, p.bins, prefix, rank[r], &selection->key[r], &selection->rest[r]);
    }
}

__global__ void update_kernel(ThresholdsParams p) {
    int64_t* prefix = dynamic_shared<int64_t>();
    int64_t* found = prefix + kScan + 1;  // [kMaxRanks] and one word for the unused rest
    const int k = blockIdx.x, n = ranks(p.rule);
    const Selection& selection = p.selection[k];
    if (p.lower != nullptr && selection.count > 0) {
        for (int r = 0; r < n; ++r) {
            const int64_t* table = p.lower + (int64_t(k) * n + r) * kLowerBins;
            scan_table(table, kLowerBins, prefix);
            find_rank(table, kLowerBins, prefix, selection.rest[r], found + r, found + kMaxRanks);
            __syncthreads();
        }
    }
    if (threadIdx.x != 0) return;
    double value[kMaxRanks] = {};
    for (int r = 0; r < n && selection.count > 0; ++r) {
        value[r] = value_of(p, selection.key[r], p.lower != nullptr ? found[r] : 0);
    }
    p.out[k] = next_theta(p, p.theta[k], selection.count, value);
}

template <typename... P>
int launch_pixels(void (*kernel)(P...), const ThresholdsParams& p, int64_t threads, void* stream) {
    if (threads == 0 || p.classes == 0) return kOk;
    return launch(kernel, linear_grid(threads), linear_block(), 0, stream, p);
}

int launch_classes(void (*kernel)(ThresholdsParams), const ThresholdsParams& p, void* stream) {
    if (p.classes == 0) return kOk;
    const size_t shared = (kScan + 1 + kMaxRanks + 1) * sizeof(int64_t);
    return launch(kernel, dim3(unsigned(p.classes), 1, 1), dim3(kScan, 1, 1), shared, stream, p);
}

}  // namespace

int thresholds_count_naive_cuda(const ThresholdsParams& p, void* stream) {
    const int64_t threads = ceil_div<int64_t>(p.pixels, kRun);
    return for_float(
        p.dtype, [&](auto type) { return launch_pixels(count_kernel<decltype(type)>, p, threads, stream); });
}

int thresholds_select_naive_cuda(const ThresholdsParams& p, void* stream) {
    return launch_classes(select_kernel, p, stream);
}

int thresholds_refine_naive_cuda(const ThresholdsParams& p, void* stream) {
    return for_float(p.dtype, [&](auto type) {
        return launch_pixels(refine_kernel<decltype(type)>, p, p.pixels, stream);
    });
}

int thresholds_update_naive_cuda(const ThresholdsParams& p, void* stream) {
    return launch_classes(update_kernel, p, stream);
}

}  // namespace vda
