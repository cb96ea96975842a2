// Counting equal things over millions of pixels: runs of pixels per thread, and a favourite that is counted
// in a register.
#pragma once

#include "pack.cuh"
#include "thresholds.h"

namespace vda {

constexpr int kTallyThreads = 1024;
constexpr int kTallyRun = 16;  // neighbouring pixels per thread and step: 32 bytes of fp16, 16 of labels
constexpr int64_t kTallyStep = kTallyThreads * kTallyRun;  // pixels per block and step
constexpr unsigned kNoCell = 0xffffffffu;

// How a persistent grid divides the pixels: `share` neighbouring ones per block, a multiple of kTallyStep, so
// that a thread's next run lies a few rows below its last and nearly always shows the same class.
struct TallyShares {
    unsigned blocks;
    int64_t share;
    bool aligned;  // runs can be read in packs
};

// A run as it lies in memory; unpacked where it is counted, so that the loads of the next one hold few
// registers.
template <typename T>
struct TallyRun {
    Pack<unsigned, kTallyRun * sizeof(T) / 4> confidence;
    Pack<unsigned, kTallyRun / 4> label;
};

// The run that begins at pixel i; what lies beyond `end` has the label 255, which is no class.
template <typename T>
__device__ __forceinline__ TallyRun<T> load_run(const ThresholdsParams& p, int64_t i, int64_t end,
                                                bool aligned) {
    const T* confidence = static_cast<const T*>(p.confidence) + i;
    const uint8_t* label = p.label + i;
    TallyRun<T> run;
    if (aligned && i + kTallyRun <= end) {
        run.confidence = load_pack<kTallyRun * sizeof(T) / 4>(reinterpret_cast<const unsigned*>(confidence));
        run.label = load_pack<kTallyRun / 4>(reinterpret_cast<const unsigned*>(label));
        return run;
    }
    Pack<T, kTallyRun> confidences;
    Pack<uint8_t, kTallyRun> labels;
#pragma unroll
    for (int n = 0; n < kTallyRun; ++n) {
        labels.at[n] = i + n < end ? label[n] : 255;
        confidences.at[n] = i + n < end ? confidence[n] : T{};
    }
    memcpy(&run.confidence, &confidences, sizeof(confidences));
    memcpy(&run.label, &labels, sizeof(labels));
    return run;
}

// Counters in shared memory. Their address is kept in a register: left to itself the compiler works it out
// anew at every addition, four instructions of the 20 that a pixel may take.
struct NearTable {
    unsigned* counters;
    unsigned address;  // in the shared window

    __device__ __forceinline__ explicit NearTable(unsigned* first) : counters(first), address(0) {
#if defined(__CUDA_ARCH__)
        asm volatile("{.reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a;}"
                     : "=r"(address)
                     : "l"(first));
#endif
    }
    __device__ __forceinline__ void add(int i, unsigned count) const {
#if defined(__CUDA_ARCH__)
        asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(address + 4u * unsigned(i)), "r"(count) : "memory");
#else
        atomicAdd(counters + i, count);
#endif
    }
};

// add(cell, n) so that every cell below `bound` is added as often as cells_of(run, cells) gives it for the
// block's share of the pixels.
//
// Most confidences of a trained network are saturated at one value, and neighbours belong to one class, so
// adding one by one would queue up at one address. A thread therefore holds a favourite cell, counts it in a
// register and adds it when a whole run went by without it; only other cells are added one by one. The loads
// of a run are issued before the run before it is counted: 48 bytes of fp16 and labels in flight per thread,
// 48 KB per multiprocessor.
template <typename T, typename CellsOf, typename Add>
__device__ __forceinline__ void tally(const ThresholdsParams& p, const TallyShares& shares, unsigned bound,
                                      const CellsOf& cells_of, const Add& add) {
    constexpr unsigned kNoFavourite = 0xfffffffeu;  // equal to no cell, not even kNoCell
    unsigned favourite = kNoFavourite, count = 0;
    const int64_t begin = blockIdx.x * shares.share;
    const int64_t end = min(begin + shares.share, p.pixels);
    int64_t i = begin + threadIdx.x * kTallyRun;
    TallyRun<T> run = load_run<T>(p, i, end, shares.aligned);
    for (; i < end; i += kTallyStep) {
        const TallyRun<T> next = load_run<T>(p, i + kTallyStep, end, shares.aligned);
        unsigned cell[kTallyRun], hits = 0;
        cells_of(run, cell);
#pragma unroll
        for (int n = 0; n < kTallyRun; ++n) {
            const bool hit = cell[n] == favourite;
            hits += hit;
            if (cell[n] < bound && !hit) add(cell[n], 1u);
        }
        count += hits;
        if (hits == 0) {
            if (count > 0) add(favourite, count);
            favourite = cell[kTallyRun - 1] < bound ? cell[kTallyRun - 1] : kNoFavourite;
            count = 0;
        }
        run = next;
    }
    // Many threads end with the same favourite: one addition per warp for all of them.
    const unsigned same = __match_any_sync(0xffffffffu, favourite);
    const unsigned sum = __reduce_add_sync(same, count);
    if (sum > 0 && threadIdx.x % 32 == unsigned(__ffs(int(same)) - 1)) add(favourite, sum);
}

// Integer sums wrap alike for signed and unsigned, and atomicAdd only knows the unsigned type.
__device__ __forceinline__ void add_to(int64_t* cell, unsigned count) {
    atomicAdd(reinterpret_cast<unsigned long long*>(cell), (unsigned long long)(count));
}

// Shares for one block per multiprocessor, fewer where there is not a step for each; returns a CUDA error
// code.
template <typename T>
int divide(const ThresholdsParams& p, TallyShares* shares) {
    int device = 0, processors = 1;
    int code = cudaGetDevice(&device);
    if (code == kOk) code = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (code != kOk) return (void)cudaGetLastError(), code;
    const int64_t steps = ceil_div(p.pixels, kTallyStep), each = ceil_div<int64_t>(steps, processors);
    *shares = {unsigned(ceil_div(steps, each)), each * kTallyStep,
               packs(p.confidence, int(sizeof(T)), kTallyRun, 1, {}) && packs(p.label, 1, kTallyRun, 1, {})};
    return kOk;
}

}  // namespace vda
