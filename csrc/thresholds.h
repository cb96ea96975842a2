// Class thresholds, Eq. 11: exact order statistics of the confidences of each class, from integer histograms.
// What psi is by each rule is in vda/ops/thresholds.py.
//
// A confidence in [0, 1] is ordered like its bit pattern. Sixteen bits of it are the key of a first histogram
// [K, bins]: all of fp16 (exact at once), or the upper half of fp32. For fp32 a second histogram counts the
// lower half of those pixels whose upper half was selected. No sort, no copy of the confidences, memory
// independent of their number, and integer counts do not depend on the order of atomics, so the result is the
// same bit for bit.
#pragma once

#include "common.h"

namespace vda {

constexpr int kHalfBins = 0x3c00 + 1;   // fp16 patterns of [0, 1]
constexpr int kUpperBins = 0x3f80 + 1;  // upper halves of the fp32 patterns of [0, 1]
constexpr int kLowerBins = 1 << 16;
constexpr int kMaxRanks = 3;
constexpr double kCap = 0.999;  // 16-bit confidences round to 1, and nothing exceeds a threshold of 1

enum class Rule : int32_t { paper, iast, portion };  // portion: CBST's, where 1 reaches a threshold of 1

// What one class selected: the n values counted, and for each wanted rank its key and its rank among equal
// keys.
struct Selection {
    int64_t count;
    int64_t key[kMaxRanks];
    int64_t rest[kMaxRanks];
};
constexpr int kSelectionWords = sizeof(Selection) / sizeof(int64_t);

struct ThresholdsParams {
    const void* confidence;  // [pixels], contiguous; NaN and negative values are skipped, above 1 counts as 1
    const uint8_t* label;    // [pixels], contiguous; labels >= classes are skipped
    int64_t pixels;
    Dtype dtype;  // of confidence: f32, f16 or bf16
    int classes;  // K
    int bins;     // kHalfBins: keys are fp16 patterns (confidence is rounded); kUpperBins: fp32 upper halves
    int64_t* histogram;    // [K, bins]; added to
    uint32_t* workspace;   // CPU only: [threads, K, bins], any contents
    Selection* selection;  // [K]
    int64_t* lower;        // [K, ranks(rule), kLowerBins]; zeroed; null with kHalfBins
    const double* theta;   // [K]
    double* out;           // [K], the new theta
    double alpha, beta, gamma;
    Rule rule;
};

// The four steps, in this order; refine only with kUpperBins.
int thresholds_count_cpu(const ThresholdsParams& p, int threads);   // confidence, label -> histogram
int thresholds_select_cpu(const ThresholdsParams& p, int threads);  // histogram, theta -> selection
int thresholds_refine_cpu(const ThresholdsParams& p, int threads);  // confidence, label, selection -> lower
int thresholds_update_cpu(const ThresholdsParams& p, int threads);  // selection, lower, theta -> out
int thresholds_count_cuda(const ThresholdsParams& p, void* stream);
int thresholds_select_cuda(const ThresholdsParams& p, void* stream);
int thresholds_refine_cuda(const ThresholdsParams& p, void* stream);
int thresholds_update_cuda(const ThresholdsParams& p, void* stream);
// The readable CUDA kernels. thresholds_refine_cuda counts ranks of equal key once, for the first of them,
// which only thresholds_update_cuda knows.
int thresholds_count_naive_cuda(const ThresholdsParams& p, void* stream);
int thresholds_select_naive_cuda(const ThresholdsParams& p, void* stream);
int thresholds_refine_naive_cuda(const ThresholdsParams& p, void* stream);
int thresholds_update_naive_cuda(const ThresholdsParams& p, void* stream);

// Every a * b + c below is written as fma: compilers contract differently for host and device, this they may
// not.

VDA_HD int ranks(Rule rule) { return rule == Rule::iast ? kMaxRanks : 1; }

// 32-bit pattern whose upper bits are the key: >= 0 where the pixel counts, -1 where it is skipped.
VDA_HD int32_t pattern(const ThresholdsParams& p, float confidence) {
    if (!(confidence >= 0.0f)) return -1;  // NaN too
    const float c = confidence > 1.0f ? 1.0f : confidence;
    if (p.bins == kHalfBins) return int32_t(uint32_t(to_half(c).bits & 0x7fffu) << 16);  // -0 is 0
    return int32_t(bit_cast<uint32_t>(c) & 0x7fffffffu);
}

VDA_HD double value_of(const ThresholdsParams& p, int64_t key, int64_t lower) {
    if (p.bins == kHalfBins) return double(to_float(half{uint16_t(key)}));
    return double(bit_cast<float>(uint32_t(key) << 16 | uint32_t(lower)));
}

// a * b, rounded. As an fma, so that no compiler can merge the product into an addition that follows.
VDA_HD double product(double a, double b) { return fma(a, b, 0.0); }

// theta^gamma. The pow of two libraries may differ in the last bit; products do not.
VDA_HD double powered(const ThresholdsParams& p, double theta) {
    double power = 1;
    const int n = p.gamma <= 64.0 ? int(p.gamma) : -1;
    if (double(n) == p.gamma) {
        for (int i = 0; i < n; ++i) power *= theta;
    } else {
        power = pow(theta, p.gamma);
    }
    return power;
}

VDA_HD int64_t clamped(double index, int64_t last) {
    if (!(index > 0.0)) return 0;  // NaN too
    return index < double(last) ? int64_t(index) : last;
}

// floor(alpha theta^gamma n), in [0, n]: products alone, each rounded, so every compiler finds the same.
VDA_HD int64_t selected(const ThresholdsParams& p, double theta, int64_t n) {
    return clamped(floor(p.alpha * powered(p, theta) * double(n)), n);
}

// Rule iast: numpy's percentile 100 (1 - alpha theta^gamma) of the n confidences and theta itself, linear
// interpolation, takes the elements floor(position) and floor(position) + 1 of n + 1.
VDA_HD double position(const ThresholdsParams& p, double theta, int64_t n) {
    const double at = product(fma(-p.alpha, powered(p, theta), 1.0), double(n));
    return at > 0.0 ? (at < double(n) ? at : double(n)) : 0.0;
}

// Ascending ranks, in [0, n), of the values that next_theta wants. n > 0.
VDA_HD void wanted_ranks(const ThresholdsParams& p, double theta, int64_t n, int64_t rank[kMaxRanks]) {
    if (p.rule != Rule::iast) {  // paper: element `selected` of the descending list; portion: the one before
        const int64_t r = n - selected(p, theta, n) - (p.rule == Rule::paper ? 1 : 0);
        rank[0] = r < 0 ? 0 : (r < n ? r : n - 1);
        return;
    }
    const int64_t low = int64_t(floor(position(p, theta, n)));
    for (int i = 0; i < kMaxRanks; ++i) {
        const int64_t r = low - 1 + i;
        rank[i] = r < 0 ? 0 : (r < n ? r : n - 1);
    }
}

// Element r of the ascending list that holds n values and theta: theta, held between its neighbours r - 1 and
// r.
VDA_HD double with_theta(double theta, bool has_below, double below, bool has_above, double above) {
    if (has_below && theta < below) return below;
    if (has_above && theta > above) return above;
    return theta;
}

// Eq. 11 for one class; value[i] belongs to wanted_ranks' rank[i]. A class without pixels keeps its theta; by
// rule portion it has none selected, and psi is 1.
VDA_HD double next_theta(const ThresholdsParams& p, double theta, int64_t n, const double value[kMaxRanks]) {
    double next = theta;
    if (n > 0 || p.rule == Rule::portion) {
        double psi = value[0];
        if (p.rule == Rule::portion && selected(p, theta, n) == 0) psi = 1.0;
        if (p.rule == Rule::iast) {
            const double at = position(p, theta, n);
            const int64_t low = int64_t(floor(at));
            const double a = with_theta(theta, low > 0, value[0], low < n, value[1]);
            const double b = with_theta(theta, true, value[1], low + 1 < n, value[2]);
            psi = low < n ? fma(b - a, at - double(low), a) : a;
        }
        next = fma(p.beta, theta, (1.0 - p.beta) * psi);
    }
    const double cap = p.rule == Rule::portion ? 1.0 : kCap;
    return next > cap ? cap : next;
}

// Counts neighbouring pixels of equal class and key once: real frames are smooth, and saturated confidences
// would otherwise queue up at one cell. `add(cell, count)` receives each run.
template <typename T, typename Add>
VDA_HD void count_runs(const ThresholdsParams& p, int64_t begin, int64_t end, const Add& add) {
    const T* confidence = static_cast<const T*>(p.confidence);
    int64_t cell = -1;
    int64_t run = 0;
    for (int64_t i = begin; i < end; ++i) {
        const int label = p.label[i];
        const int32_t bits = label < p.classes ? pattern(p, load(confidence + i)) : -1;
        if (bits < 0) continue;
        const int64_t next = int64_t(label) * p.bins + (bits >> 16);
        if (next != cell) {
            if (run > 0) add(cell, run);
            cell = next;
            run = 0;
        }
        ++run;
    }
    if (run > 0) add(cell, run);
}

// Second pass: `add(cell)` receives the lower half of every pixel whose key some rank of its class selected.
template <typename T, typename Add>
VDA_HD void refine_pixel(const ThresholdsParams& p, int64_t i, const Add& add) {
    const int label = p.label[i];
    if (label >= p.classes) return;
    const int32_t bits = pattern(p, load(static_cast<const T*>(p.confidence) + i));
    if (bits < 0) return;
    const int n = ranks(p.rule);
    for (int r = 0; r < n; ++r) {
        if (p.selection[label].key[r] != (bits >> 16)) continue;
        add((int64_t(label) * n + r) * kLowerBins + (bits & 0xffff));
    }
}

}  // namespace vda
