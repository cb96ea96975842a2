// Fast CUDA kernels of thresholds.h that read the pixels: count and refine. 3 bytes per pixel with fp16, 5
// with fp32, each read once. At 3 bytes an H200 has about 22 instructions of a warp for 32 pixels, an A100 or
// H100 32, hence the bit tricks: 12 for a pixel of the favourite cell (tally.cuh), 21 for another.
//
// What a thread does not count in a register goes, in count, to a table of the block in shared memory: the
// highest bins of every class as 32-bit counters, added to the table of all in L2 at the end. 80 KB of them:
// for 19 classes all of [0.5, 1] in fp16 (1025 bins, 78 KB), for 255 classes [0.96, 1]. One block of 1024
// threads fits everywhere (a block may have 163 KB on sm_80, 99 KB on sm_86 and sm_89, 227 KB on sm_90), and
// 32 warps are enough: 48 bytes in flight per thread. Lower confidences are rare and go straight to L2.
#include <type_traits>

#include "tally.cuh"

namespace vda {
namespace {

constexpr int kHotBins = 1024 + 1;
constexpr int kHotBytes = 80 * 1024;

int hot_bins(int classes, int bins) {
    return std::min({bins, kHotBins, kHotBytes / (classes * int(sizeof(unsigned)))});
}

// ---- count: cells are label << 24 | label << 16 | key ----

// Label n of a run and a key, in the lower or upper half of a word: one byte permutation. n is a constant
// after unrolling.
__device__ __forceinline__ unsigned cell_of(unsigned word, bool upper, unsigned labels, int n) {
    const unsigned label = unsigned(4 + n % 4);
    return __byte_perm(word, labels, label << 12 | label << 8 | (upper ? 0x32 : 0x10));
}

template <typename T>
__device__ __forceinline__ void cells_of(const ThresholdsParams& p, const TallyRun<T>& run,
                                         unsigned (&cell)[kTallyRun]) {
    Pack<T, kTallyRun> confidence;
    memcpy(&confidence, &run.confidence, sizeof(confidence));
#pragma unroll
    for (int n = 0; n < kTallyRun; ++n) {
        const int32_t bits = pattern(p, load(&confidence.at[n]));
        cell[n] = bits < 0 ? kNoCell : cell_of(unsigned(bits), true, run.label.at[n / 4], n);
    }
}

// The rare confidence outside [0, 1]: above counts as 1, -0 as 0, others lose their label.
__device__ __forceinline__ void repair(TallyRun<half>& run) {
    Pack<half, kTallyRun> confidence;
    Pack<uint8_t, kTallyRun> label;
    memcpy(&confidence, &run.confidence, sizeof(confidence));
    memcpy(&label, &run.label, sizeof(label));
#pragma unroll
    for (int n = 0; n < kTallyRun; ++n) {
        const unsigned bits = confidence.at[n].bits;
        if (bits > 0x7c00 && bits != 0x8000) label.at[n] = 255;
        confidence.at[n].bits = uint16_t(min(bits & 0x7fffu, 0x3c00u));
    }
    memcpy(&run.confidence, &confidence, sizeof(confidence));
    memcpy(&run.label, &label, sizeof(label));
}

// fp16 is its own key. One sum tells of both halves of a word whether they exceed 0x3c00, the 1.
__device__ __forceinline__ void cells_of(const ThresholdsParams&, TallyRun<half> run,
                                         unsigned (&cell)[kTallyRun]) {
    unsigned outside = 0;
#pragma unroll
    for (int i = 0; i < kTallyRun / 2; ++i) {
        outside |= run.confidence.at[i] | (run.confidence.at[i] + 0x43ff43ffu);
    }
    if (outside & 0x80008000u) repair(run);
#pragma unroll
    for (int n = 0; n < kTallyRun; ++n) {
        cell[n] = cell_of(run.confidence.at[n / 2], n % 2 == 1, run.label.at[n / 4], n);
    }
}

template <typename T, int bins>
__global__ void __launch_bounds__(kTallyThreads, 1)
    count_kernel(ThresholdsParams p, TallyShares shares, int hot) {
    p.bins = bins;
    unsigned* table = dynamic_shared<unsigned>();
    const NearTable near(table);
    const int cells = p.classes * hot, cold = bins - hot;
    for (int i = threadIdx.x; i < cells; i += kTallyThreads) table[i] = 0;
    __syncthreads();
    tally<T>(
        p, shares, unsigned(p.classes) << 24,
        [&](const TallyRun<T>& run, unsigned (&cell)[kTallyRun]) { cells_of(p, run, cell); },
        [&](unsigned cell, unsigned count) {
            const int label = int(cell >> 24), key = int(cell & 0xffff);
            if (key >= cold) {
                near.add(label * hot + key - cold, count);
            } else {
                add_to(p.histogram + label * bins + key, count);
            }
        });
    __syncthreads();
    // Each block begins elsewhere, so that they do not queue up at the same cells.
    const int turn = int(int64_t(cells) * blockIdx.x / gridDim.x);
    for (int i = threadIdx.x; i < cells; i += kTallyThreads) {
        const int cell = i + turn < cells ? i + turn : i + turn - cells;
        const unsigned count = table[cell];
        if (count > 0) add_to(p.histogram + cell / hot * bins + cold + cell % hot, count);
    }
}

// ---- refine: cells are label << 18 | rank << 16 | lower half ----

// The keys that the ranks of a class selected; kNoKey where there is none, or an earlier rank has the same.
struct alignas(8) Keys {
    uint16_t at[4];
};
constexpr uint16_t kNoKey = 0xffff;
static_assert(kMaxRanks <= 4 && kUpperBins <= kNoKey, "keys fit");

__device__ Keys keys_of(const ThresholdsParams& p, int label) {
    Keys keys = {{kNoKey, kNoKey, kNoKey, kNoKey}};
    if (label >= p.classes) return keys;
    const Selection& selection = p.selection[label];
    int64_t before = -1;  // the key of a class without pixels
#pragma unroll
    for (int r = 0; r < kMaxRanks; ++r) {
        if (r >= ranks(p.rule) || selection.key[r] == before) continue;
        before = selection.key[r];
        keys.at[r] = uint16_t(before);
    }
    return keys;
}

__device__ __forceinline__ unsigned refined(const ThresholdsParams& p, const Keys* keys, int label,
                                            float confidence) {
    const int32_t bits = pattern(p, confidence);
    const Keys wanted = keys[label];
    const int key = bits >> 16;  // of a skipped pixel -1, which is not kNoKey
    const unsigned cell = unsigned(label) << 18 | unsigned(bits & 0xffff);
    if (key == wanted.at[0]) return cell;
    if (key == wanted.at[1]) return cell | 1u << 16;
    return key == wanted.at[2] ? cell | 2u << 16 : kNoCell;
}

// The lower halves of one key are spread over 65536 cells, so there is nothing to hold in shared memory;
// those of bf16 and of saturated confidences are all 0, a favourite.
template <typename T>
__global__ void __launch_bounds__(kTallyThreads, 1) refine_kernel(ThresholdsParams p, TallyShares shares) {
    p.bins = kUpperBins;
    Keys* keys = dynamic_shared<Keys>();
    if (threadIdx.x < 256) keys[threadIdx.x] = keys_of(p, int(threadIdx.x));
    __syncthreads();
    const int n = ranks(p.rule);
    tally<T>(
        p, shares, kNoCell,
        [&](const TallyRun<T>& run, unsigned (&cell)[kTallyRun]) {
            Pack<T, kTallyRun> confidence;
            Pack<uint8_t, kTallyRun> label;
            memcpy(&confidence, &run.confidence, sizeof(confidence));
            memcpy(&label, &run.label, sizeof(label));
#pragma unroll
            for (int i = 0; i < kTallyRun; ++i) {
                cell[i] = refined(p, keys, label.at[i], load(&confidence.at[i]));
            }
        },
        [&](unsigned cell, unsigned count) {
            const int table = int(cell >> 18) * n + int(cell >> 16 & 3);
            add_to(p.lower + table * kLowerBins + int(cell & 0xffff), count);
        });
}

// ---- launchers ----

template <typename T, int bins>
int count(const ThresholdsParams& p, void* stream) {
    TallyShares shares;
    const int code = divide<T>(p, &shares), hot = hot_bins(p.classes, bins);
    if (code != kOk) return code;
    return launch(count_kernel<T, bins>, dim3(shares.blocks, 1, 1), dim3(kTallyThreads, 1, 1),
                  size_t(p.classes) * hot * sizeof(unsigned), stream, p, shares, hot);
}

template <typename T>
int refine(const ThresholdsParams& p, void* stream) {
    TallyShares shares;
    const int code = divide<T>(p, &shares);
    if (code != kOk) return code;
    return launch(refine_kernel<T>, dim3(shares.blocks, 1, 1), dim3(kTallyThreads, 1, 1), 256 * sizeof(Keys),
                  stream, p, shares);
}

}  // namespace

// fp16 is exact with kHalfBins, so nobody asks for the rest of it: the readable kernels would serve.
int thresholds_count_cuda(const ThresholdsParams& p, void* stream) {
    if (p.pixels == 0 || p.classes == 0) return kOk;
    return for_float(p.dtype, [&](auto type) {
        using T = decltype(type);
        if (p.bins == kHalfBins) return count<T, kHalfBins>(p, stream);
        if constexpr (std::is_same_v<T, half>) {
            return thresholds_count_naive_cuda(p, stream);
        } else {
            return count<T, kUpperBins>(p, stream);
        }
    });
}

int thresholds_refine_cuda(const ThresholdsParams& p, void* stream) {
    if (p.pixels == 0 || p.classes == 0) return kOk;
    if (p.dtype == Dtype::f32) return refine<float>(p, stream);
    if (p.dtype == Dtype::bf16) return refine<bfloat16>(p, stream);
    return thresholds_refine_naive_cuda(p, stream);
}

}  // namespace vda
