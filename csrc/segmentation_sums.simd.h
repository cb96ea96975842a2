// Bands of segmentation_sums.h in float, compiled per instruction set (multiversion.h): strips of
// neighbouring pixels, exponents to the base 2.

#include "upsampling.simd.h"

constexpr float kLog2 = 0.693147181f;  // the natural logarithm of 2
constexpr int kMaxClasses = 255;

// log2(x) within 2e-7 of it, x from 1 on; NaN stays NaN.
VDA_INLINE Floats binary_logarithm(Floats x) {
    const Ints bits = reinterpret<Ints>(x), n = (bits - 0x3f3504f3) >> 23;  // x = 2^n m, m about 1
    const Floats m = reinterpret<Floats>(bits - (n << 23)), t = (m - 1.0f) / (m + 1.0f), s = t * t;
    Floats series = s * 0.320598900f + 0.412198590f;  // 2 atanh(t) / log 2
    series = series * s + 0.577078016f;
    series = series * s + 0.961796694f;
    series = series * s + 2.885390082f;
    return x == x ? to_floats(n) + series * t : x;
}

VDA_INLINE float sum_of(Floats x) {
    float sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += x[i];
    return sum;
}

// The softmax of a strip; see Softmax of segmentation_sums.h.
struct StripSoftmax {
    Floats inverse, log_sum;  // 1 / the sum of the powers, and the logarithm of the sum
    Floats total, mean;       // of the exponents
};

VDA_INLINE Floats bounded(Floats exponent) { return larger(splat(-126.0f), exponent); }

// Writes the exponents [K], relative to their maximum, and the powers [K].
VDA_INLINE StripSoftmax softmax_strip(const Scratch& scratch, int classes, const Columns& at,
                                      Floats* exponent, Floats* power) {
    Floats most = splat(-INFINITY), sum{}, total{}, mean{};
    for (int k = 0; k < classes; ++k) {
        exponent[k] = upsampled(scratch.logits + k * scratch.logit_width, at);
        most = larger(most, exponent[k]);
    }
    for (int k = 0; k < classes; ++k) {
        exponent[k] -= most;
        power[k] = power_of_two(exponent[k]);
        sum += power[k];
        total += exponent[k];
        mean += power[k] * bounded(exponent[k]);
    }
    const Floats inverse = 1.0f / sum;
    return {inverse, binary_logarithm(sum), total, mean * inverse};
}

VDA_INLINE void load_row(const Params& p, int64_t n, int y, const Between& at, const Scratch& scratch) {
    const int64_t frame = int64_t(p.classes) * p.logit_height * p.logit_width;
    upsample_rows(static_cast<const float*>(p.logits) + n * frame, p.classes, p.logit_height, p.logit_width,
                  at, 0, p.logit_width, scratch.logits, scratch.logit_width);
    const uint8_t* from = p.label.row(n, y);
    for (int x = 0; x < p.width; ++x) scratch.labels[x] = from[x * p.label.stride[2]];
}

VDA_INLINE Ints load_labels(const int32_t* from) {
    Ints labels;
    memcpy(&labels, from, sizeof(labels));
    return labels;
}

// Calls body(y, between(y)) for the full-resolution rows of a band.
template <typename Body>
VDA_INLINE void for_rows(const Params& p, const Band& band, const Body& body) {
    const Axis axis = upsampling_axis(p.logit_height, p.height, p.align_corners);
    for (int y = 0; y < p.height; ++y) {
        const Between at = between(axis, y);
        if (at.low >= band.row0 && at.low < band.row1) body(y, at);
    }
}

VDA_INLINE void clear(float* values, int64_t n) { memset(values, 0, size_t(n) * sizeof(float)); }

// ---- sums ----

// Adds a strip to row [terms_of(K)].
VDA_INLINE void add_strip(const Params& p, const Scratch& scratch, const Axis& axis_x, int x, Floats* row) {
    const int K = p.classes;
    Floats exponent[kMaxClasses], power[kMaxClasses], own{};
    const StripSoftmax s = softmax_strip(scratch, K, columns_of(axis_x, x), exponent, power);
    const Ints label = load_labels(scratch.labels + x), labelled = below(label, K);
    row[kEntropy] += label == kUnlabelled ? s.log_sum - s.mean : Floats{};
    if (!any(labelled)) return;
    Floats *overlap = row + kOverlap, *square = overlap + K, *count = square + K;
    for (int k = 0; k < K; ++k) {
        const Ints hit = label == k;
        const Floats probability = power[k] * s.inverse;
        own = hit ? exponent[k] : own;
        overlap[k] += hit ? probability : Floats{};
        square[k] += labelled ? probability * probability : Floats{};
        count[k] += hit ? splat(1.0f) : Floats{};
    }
    row[kCrossEntropy] += labelled ? s.log_sum - own : Floats{};
    row[kUniform] += labelled ? s.log_sum - s.total / float(K) : Floats{};
}

// totals [terms_of(K)], overwritten. A row is summed in float, rows in double.
void add_up_band(const Params& p, const Band& band, const Scratch& scratch, double* totals) {
    const Axis axis_x = upsampling_axis(p.logit_width, p.width, p.align_corners);
    const int terms = terms_of(p.classes);
    Floats row[terms_of(kMaxClasses)];
    memset(totals, 0, terms * sizeof(double));
    for (int64_t x = p.width; x < scratch.width; ++x) scratch.labels[x] = kNoPixel;
    for_rows(p, band, [&](int y, const Between& at) VDA_INLINED {
        load_row(p, band.n, y, at, scratch);
        memset(row, 0, terms * sizeof(Floats));
        for (int x = 0; x < p.width; x += kLanes) add_strip(p, scratch, axis_x, x, row);
        for (int i = 0; i < terms; ++i) totals[i] += (i < kOverlap ? double(kLog2) : 1.0) * sum_of(row[i]);
    });
}

// ---- gradient ----

// Adds what a strip hands back to the low-resolution rows `here` and `next`; grad [sums_of(K)] of the frame.
VDA_INLINE void backward_strip(const Params& p, const Scratch& scratch, const Axis& axis_x, int x,
                               float share, const float* grad) {
    const int K = p.classes;
    const float *by_overlap = grad + kOverlap, *by_square = by_overlap + K;
    Floats exponent[kMaxClasses], power[kMaxClasses], mean{};
    const StripSoftmax s = softmax_strip(scratch, K, columns_of(axis_x, x), exponent, power);
    const Ints label = load_labels(scratch.labels + x), labelled = below(label, K);
    for (int k = 0; k < K; ++k) {  // what dL/dP is on average under P
        const Floats probability = power[k] * s.inverse;
        const Floats slope = 2.0f * by_square[k] * probability;
        mean += probability * (label == k ? slope + by_overlap[k] : slope);
    }
    // P (constant + linear u + slope) - even; the constants of what a pixel is not are 0
    const Floats sharp = label == kUnlabelled ? splat(kLog2 * grad[kEntropy]) : Floats{};
    const Floats constant = labelled ? grad[kCrossEntropy] + grad[kUniform] - mean : sharp * s.mean;
    const Floats even = labelled ? splat(grad[kUniform] / float(K)) : Floats{};
    float *here = scratch.here + x, *next = scratch.next + x;
    for (int k = 0; k < K; ++k, here += scratch.width, next += scratch.width) {
        const Ints hit = label == k;
        const Floats probability = power[k] * s.inverse;
        const Floats slope = labelled ? 2.0f * by_square[k] * probability : Floats{};
        Floats factor = constant - sharp * bounded(exponent[k]) + slope;
        factor += hit ? splat(by_overlap[k]) : Floats{};
        const Floats g = probability * factor - even - (hit ? splat(grad[kCrossEntropy]) : Floats{});
        store_lanes(here, load_lanes(here) + (1.0f - share) * g);
        if (share > 0.0f) store_lanes(next, load_lanes(next) + share * g);
    }
}

// from [K, width], gradients of full-resolution columns, to `to` [K, w], whose planes lie `step` apart.
VDA_INLINE void reduce_columns(const Params& p, const Scratch& scratch, const float* from, float* to,
                               int64_t step) {
    for (int k = 0; k < p.classes; ++k, from += scratch.width, to += step) {
        float carried = 0;  // from the columns between the one before and this one
        for (int column = 0; column < p.logit_width; ++column) {
            float here = 0, next = 0;
            for (int x = scratch.first[column]; x < scratch.first[column + 1]; ++x) {
                here += (1.0f - scratch.share[x]) * from[x];
                next += scratch.share[x] > 0.0f ? scratch.share[x] * from[x] : 0.0f;
            }
            to[column] = carried + here;
            carried = next;
        }
    }
}

// Writes the rows [row0, row1) of the gradient, and to spill [K, w] what belongs to row1.
void backward_band(const Params& p, const Band& band, Scratch scratch, float* spill) {
    const Axis axis_x = upsampling_axis(p.logit_width, p.width, p.align_corners);
    const int64_t plane = int64_t(p.logit_height) * p.logit_width, lines = p.classes * scratch.width;
    const float* grad = static_cast<const float*>(p.grad) + band.n * sums_of(p.classes);
    float* to = static_cast<float*>(p.grad_logits) + band.n * p.classes * plane;
    for (int64_t x = p.width; x < scratch.width; ++x) scratch.labels[x] = kNoPixel;
    int column = 0;
    for (int x = 0; x < p.width; ++x) {
        const Between at = between(axis_x, x);
        scratch.share[x] = at.share;
        while (column <= at.low) scratch.first[column++] = x;
    }
    while (column <= p.logit_width) scratch.first[column++] = p.width;
    clear(scratch.here, lines);
    clear(scratch.next, lines);
    int row = band.row0;
    const auto finish_row = [&]() VDA_INLINED {
        reduce_columns(p, scratch, scratch.here, to + int64_t(row) * p.logit_width, plane);
        clear(scratch.here, lines);
        float* cleared = scratch.here;
        scratch.here = scratch.next;
        scratch.next = cleared;
        ++row;
    };
    for_rows(p, band, [&](int y, const Between& at) VDA_INLINED {
        while (row < at.low) finish_row();
        load_row(p, band.n, y, at, scratch);
        for (int x = 0; x < p.width; x += kLanes) backward_strip(p, scratch, axis_x, x, at.share, grad);
    });
    while (row < band.row1) finish_row();
    reduce_columns(p, scratch, scratch.here, spill, p.logit_width);
}
