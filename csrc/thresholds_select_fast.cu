// Fast CUDA kernels of thresholds.h that read the tables: select and update, one block of 32 warps per class.
// A table is cut in a piece per warp: all warps add up theirs with coalesced loads, one warp scans the 32
// sums, and the warp whose piece holds a rank scans that piece, 128 bins at a time. The formula, in doubles,
// is one thread's work: GPUs without fast doubles would spend longer on it than on the table.
#include "common.cuh"
#include "thresholds.h"

namespace vda {
namespace {

constexpr int kWarps = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Scratch {
    int64_t before[kWarps + 1];  // values in the pieces before piece w; the last is their number
    int64_t rank[kMaxRanks];
    int64_t found[kMaxRanks];
    int64_t unused;
};

// Sum of the lanes up to and including this one.
__device__ __forceinline__ int64_t running_sum(int64_t value, int lane) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int64_t below = __shfl_up_sync(kAllLanes, value, unsigned(step));
        if (lane >= step) value += below;
    }
    return value;
}

// Fills before[] and returns the number of values. Whole block; ends in a barrier.
__device__ int64_t scan_table(const int64_t* table, int bins, int64_t* before) {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, piece = ceil_div(bins, kWarps);
    const int end = min((warp + 1) * piece, bins);
    int64_t sum = 0;
#pragma unroll 8
    for (int bin = warp * piece + lane; bin < end; bin += 32) sum += table[bin];
    sum = running_sum(sum, lane);
    if (lane == 31) before[warp + 1] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = running_sum(before[lane + 1], lane);
        __syncwarp();
        before[lane + 1] = sum;
        if (lane == 0) before[0] = 0;
    }
    __syncthreads();
    return before[kWarps];
}

// The bin that holds the value of ascending rank `rank`, and its rank inside that bin; written by one thread.
// Whole block, after scan_table.
__device__ void find_rank(const int64_t* table, int bins, const int64_t* before, int64_t rank, int64_t* key,
                          int64_t* rest) {
    constexpr int kPerLane = 4;
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, piece = ceil_div(bins, kWarps);
    if (rank < before[warp] || rank >= before[warp + 1]) return;  // the same for all lanes
    const int end = min((warp + 1) * piece, bins);
    rank -= before[warp];
    for (int first = warp * piece; first < end; first += 32 * kPerLane) {
        int64_t count[kPerLane], sum = 0;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
            const int bin = first + lane * kPerLane + i;
            count[i] = bin < end ? table[bin] : 0;
            sum += count[i];
        }
        const int64_t through = running_sum(sum, lane), total = __shfl_sync(kAllLanes, through, 31);
        if (rank >= total) {
            rank -= total;
            continue;
        }
        rank -= through - sum;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
            if (rank >= 0 && rank < count[i]) {
                *key = first + lane * kPerLane + i;
                *rest = rank;
            }
            rank -= count[i];
        }
        return;
    }
}

__global__ void __launch_bounds__(32 * kWarps) select_kernel(ThresholdsParams p) {
    Scratch& scratch = *dynamic_shared<Scratch>();
    const int k = int(blockIdx.x);
    const int64_t* table = p.histogram + int64_t(k) * p.bins;
    Selection& selection = p.selection[k];
    const int64_t n = scan_table(table, p.bins, scratch.before);
    if (threadIdx.x == 0) {
        selection = {n, {-1, -1, -1}, {0, 0, 0}};
        if (n > 0) wanted_ranks(p, p.theta[k], n, scratch.rank);
    }
    __syncthreads();
    if (n == 0) return;
    for (int r = 0; r < ranks(p.rule); ++r) {
        find_rank(table, p.bins, scratch.before, scratch.rank[r], &selection.key[r], &selection.rest[r]);
    }
}

__global__ void __launch_bounds__(32 * kWarps) update_kernel(ThresholdsParams p) {
    Scratch& scratch = *dynamic_shared<Scratch>();
    const int k = int(blockIdx.x), n = ranks(p.rule);
    const Selection& selection = p.selection[k];
    if (p.lower != nullptr && selection.count > 0) {
        const int64_t* table = nullptr;
        for (int r = 0; r < n; ++r) {
            // Keys ascend with the ranks, so equal ones follow one another and share the table of the first.
            if (r == 0 || selection.key[r] != selection.key[r - 1]) {
                table = p.lower + (int64_t(k) * n + r) * kLowerBins;
                scan_table(table, kLowerBins, scratch.before);
            }
            find_rank(table, kLowerBins, scratch.before, selection.rest[r], &scratch.found[r],
                      &scratch.unused);
            __syncthreads();
        }
    }
    if (threadIdx.x != 0) return;
    double value[kMaxRanks] = {};
    for (int r = 0; r < n && selection.count > 0; ++r) {
        value[r] = value_of(p, selection.key[r], p.lower != nullptr ? scratch.found[r] : 0);
    }
    p.out[k] = next_theta(p, p.theta[k], selection.count, value);
}

int launch_classes(void (*kernel)(ThresholdsParams), const ThresholdsParams& p, void* stream) {
    if (p.classes == 0) return kOk;
    return launch(kernel, dim3(unsigned(p.classes), 1, 1), dim3(32 * kWarps, 1, 1), sizeof(Scratch), stream,
                  p);
}

}  // namespace

int thresholds_select_cuda(const ThresholdsParams& p, void* stream) {
    return launch_classes(select_kernel, p, stream);
}

int thresholds_update_cuda(const ThresholdsParams& p, void* stream) {
    return launch_classes(update_kernel, p, stream);
}

}  // namespace vda
