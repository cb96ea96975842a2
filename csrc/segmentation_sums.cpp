// CPU kernels of segmentation_sums.h, split by bands of low-resolution rows. What a band adds up does not
// depend on who does it, and the bands are added in their order: the number of threads changes no bit.
#include "segmentation_sums.h"

#include <algorithm>

#include "parallel.h"

namespace vda {
namespace {

using Params = SegmentationSumsParams;

constexpr int kBands = 16;  // of a frame, at most

// The full-resolution rows whose low source row is one of [row0, row1).
struct Band {
    int64_t n;
    int row0, row1;
};

// What one thread works with. Lines of full-resolution pixels are `width` long, whole vectors.
struct Scratch {
    float* logits;    // [K, logit_width], of one full-resolution row, upsampled along y only
    int32_t* labels;  // [width], kNoPixel beyond the frame
    float *here,
        *next;       // backward: [K, width], gradients that belong to a low-resolution row and the next one
    int32_t* first;  // backward: [w + 1], the first full-resolution column from each low-resolution one on
    float* share;    // backward: [width], of the high source column
    int64_t width, logit_width;
};
constexpr int32_t kNoPixel = -1;

}  // namespace
}  // namespace vda

#define VDA_KERNELS "segmentation_sums.simd.h"
#include "multiversion.h"

namespace vda {
namespace {

int bands(const Params& p) { return std::min(kBands, p.logit_height); }

Band band_of(const Params& p, int64_t i) {
    const int64_t b = i % bands(p), h = p.logit_height;
    return {i / bands(p), int(h * b / bands(p)), int(h * (b + 1) / bands(p))};
}

// Cuts a thread's part of the workspace, or with base = null measures it. Returns its floats.
int64_t cut(const Params& p, bool backward, float* base, Scratch* scratch) {
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
        float* from = base == nullptr ? nullptr : base + used;
        used += ceil_div<int64_t>(floats, kMaxLanes) * kMaxLanes;
        return from;
    };
    scratch->width = ceil_div(p.width, kMaxLanes) * int64_t(kMaxLanes);
    scratch->logit_width = p.logit_width + 2 * kMaxLanes;
    scratch->logits = take(p.classes * scratch->logit_width);
    scratch->labels = reinterpret_cast<int32_t*>(take(scratch->width));
    if (!backward) return used;
    scratch->here = take(p.classes * scratch->width);
    scratch->next = take(p.classes * scratch->width);
    scratch->first = reinterpret_cast<int32_t*>(take(p.logit_width + 1));
    scratch->share = take(scratch->width);
    return used;
}

int64_t slots(const Params& p, int threads) { return std::min<int64_t>(threads, p.batch * bands(p)); }

// Calls body(band, its number, scratch) for every band of the batch; the scratches begin at `base`.
template <typename Body>
void for_bands(const Params& p, int threads, bool backward, float* base, const Body& body) {
    const int64_t n = p.batch * bands(p);
    std::atomic<int64_t> next{0};
    parallel_for(slots(p, threads), 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t slot = begin; slot < end; ++slot) {
            Scratch scratch{};
            const int64_t floats = cut(p, backward, nullptr, &scratch);
            cut(p, backward, base + slot * floats, &scratch);
            for (int64_t i = next++; i < n; i = next++) body(band_of(p, i), i, scratch);
        }
    });
}

// ---- sums ----

// totals [terms_of(K)], overwritten.
void add_up_band_double(const Params& p, const Band& band, double* totals) {
    const auto axis = upsampling_axis<double>(p.logit_height, p.height, p.align_corners);
    std::fill_n(totals, terms_of(p.classes), 0.0);
    for (int y = 0; y < p.height; ++y) {
        const int low = between(axis, y).low;
        for (int x = 0; x < p.width && low >= band.row0 && low < band.row1; ++x) {
            const Softmax<double> s = softmax_at<double>(p, band.n, y, x);
            for (int i = 0; i < terms_of(p.classes); ++i) totals[i] += term(s, i);
        }
    }
}

template <typename T>
void write_sums(const Params& p, const double* totals) {
    const int terms = terms_of(p.classes), sums = sums_of(p.classes);
    for (int64_t n = 0; n < p.batch; ++n) {
        for (int i = 0; i < terms; ++i) {
            double total = 0;
            for (int b = 0; b < bands(p); ++b) total += totals[(n * bands(p) + b) * terms + i];
            if (i < sums) {
                static_cast<T*>(p.sums)[n * sums + i] = T(total);
            } else {
                p.count[n * p.classes + i - sums] = int64_t(total);
            }
        }
    }
}

// ---- gradient ----

void backward_double(const Params& p, int64_t n) {
    const int64_t plane = int64_t(p.logit_height) * p.logit_width;
    double* to = static_cast<double*>(p.grad_logits) + n * p.classes * plane;
    std::fill_n(to, p.classes * plane, 0.0);
    for (int y = 0; y < p.height; ++y) {
        for (int x = 0; x < p.width; ++x) {
            const PixelGradient<double> gradient = gradient_at<double>(p, n, y, x);
            const BetweenOf<double>&at_y = gradient.s.y, at_x = gradient.s.x;
            for (int k = 0; k < p.classes; ++k) {
                const double g = gradient.at(k);
                const auto add = [&](int row, double share_y, int column, double share_x) {
                    if (share_y > 0 && share_x > 0)
                        to[k * plane + int64_t(row) * p.logit_width + column] += share_y * share_x * g;
                };
                add(at_y.low, 1 - at_y.share, at_x.low, 1 - at_x.share);
                add(at_y.low, 1 - at_y.share, at_x.high, at_x.share);
                add(at_y.high, at_y.share, at_x.low, 1 - at_x.share);
                add(at_y.high, at_y.share, at_x.high, at_x.share);
            }
        }
    }
}

// What the bands have left for the first row of the one below them.
void add_spills(const Params& p, const float* spill) {
    const int64_t K = p.classes, h = p.logit_height, w = p.logit_width;
    float* to = static_cast<float*>(p.grad_logits);
    for (int64_t i = 0; i < p.batch * bands(p); ++i) {
        const Band band = band_of(p, i);
        if (band.row1 == p.logit_height) continue;
        for (int64_t k = 0; k < K; ++k) {
            float* row = to + ((band.n * K + k) * h + band.row1) * w;
            const float* from = spill + (i * K + k) * w;
            for (int64_t x = 0; x < w; ++x) row[x] += from[x];
        }
    }
}

int64_t spill_floats(const Params& p) {
    const int64_t floats = p.batch * bands(p) * p.classes * p.logit_width;
    return ceil_div<int64_t>(floats, kMaxLanes) * kMaxLanes;
}

}  // namespace

int64_t segmentation_sums_workspace(const Params& p, int threads) {
    Scratch scratch{};
    const int64_t scratches = slots(p, threads) * cut(p, false, nullptr, &scratch) * sizeof(float);
    return scratches + p.batch * bands(p) * terms_of(p.classes) * sizeof(double);
}

int segmentation_sums_cpu(const Params& p, int threads) {
    double* totals = static_cast<double*>(p.workspace);  // [N, bands, terms]
    const int64_t terms = terms_of(p.classes);
    if (p.dtype == Dtype::f64) {
        parallel_for(p.batch * bands(p), 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) add_up_band_double(p, band_of(p, i), totals + i * terms);
        });
        write_sums<double>(p, totals);
        return kOk;
    }
    if (p.dtype != Dtype::f32) return kBadDtype;
    const auto run = VDA_WIDEST(add_up_band);
    float* scratches = reinterpret_cast<float*>(totals + p.batch * bands(p) * terms);
    for_bands(p, threads, false, scratches, [&](const Band& band, int64_t i, const Scratch& scratch) {
        run(p, band, scratch, totals + i * terms);
    });
    write_sums<float>(p, totals);
    return kOk;
}

int64_t segmentation_sums_backward_workspace(const Params& p, int threads) {
    Scratch scratch{};
    return (spill_floats(p) + slots(p, threads) * cut(p, true, nullptr, &scratch)) * sizeof(float);
}

int segmentation_sums_backward_cpu(const Params& p, int threads) {
    if (p.dtype == Dtype::f64) {
        parallel_for(p.batch, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) backward_double(p, n);
        });
        return kOk;
    }
    if (p.dtype != Dtype::f32) return kBadDtype;
    const auto run = VDA_WIDEST(backward_band);
    float* spill = static_cast<float*>(p.workspace);  // [N, bands, K, w]
    const int64_t row = int64_t(p.classes) * p.logit_width;
    for_bands(
        p, threads, true, spill + spill_floats(p),
        [&](const Band& band, int64_t i, const Scratch& scratch) { run(p, band, scratch, spill + i * row); });
    add_spills(p, spill);
    return kOk;
}

}  // namespace vda
