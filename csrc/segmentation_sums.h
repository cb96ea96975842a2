// What the segmentation losses need of a frame: bilinear upsampling of its low-resolution logits, softmax and
// sums over its pixels in one pass, and the gradient by evaluating the softmax once more. No tensor of K
// channels at full resolution is stored.
#pragma once

#include "upsampling.h"

namespace vda {

constexpr int kUnlabelled = 255;  // label of a pixel that belongs to no class

// One row of `sums` and of its gradient. P is the softmax of a pixel, y its label.
enum SumIndex : int {
    kCrossEntropy,  // labelled pixels, -log P_y
    kEntropy,       // unlabelled pixels, -sum_k P_k log P_k
    kUniform,       // labelled pixels, -(1 / K) sum_k log P_k
    kOverlap,       // [K], labelled pixels, P_k where k = y
    // kOverlap + K:   [K], labelled pixels, P_k^2
};
VDA_HD constexpr int sums_of(int classes) { return kOverlap + 2 * classes; }
VDA_HD constexpr int terms_of(int classes) {
    return kOverlap + 3 * classes;
}  // with the pixels of each class

struct SegmentationSumsParams {
    const void* logits;  // [N, K, h, w], contiguous
    LabelView label;     // [N, H, W]; others than 0 .. K - 1 and kUnlabelled add nothing
    void* sums;          // forward: [N, sums_of(K)], contiguous
    int64_t* count;      // forward: [N, K], contiguous; labelled pixels of each class
    const void* grad;    // backward: [N, sums_of(K)], contiguous
    void* grad_logits;   // backward: [N, K, h, w], contiguous
    void* workspace;     // the bytes that the functions below ask for, not initialised
    int64_t batch;
    int classes;                    // K <= 255
    int height, width;              // H, W
    int logit_height, logit_width;  // h, w
    Dtype dtype;                    // of all but label and count: f32 or f64
    bool align_corners;             // of the upsampling, as in torch
};

int64_t segmentation_sums_workspace(const SegmentationSumsParams& p, int threads);
int64_t segmentation_sums_workspace_cuda(const SegmentationSumsParams& p);
int64_t segmentation_sums_backward_workspace(const SegmentationSumsParams& p, int threads);
int64_t segmentation_sums_backward_workspace_cuda(const SegmentationSumsParams& p);
int segmentation_sums_cpu(const SegmentationSumsParams& p, int threads);
int segmentation_sums_cuda(const SegmentationSumsParams& p, void* stream);
int segmentation_sums_backward_cpu(const SegmentationSumsParams& p, int threads);
int segmentation_sums_backward_cuda(const SegmentationSumsParams& p, void* stream);
// The readable CUDA kernels, which also serve what the fast ones do not.
int segmentation_sums_naive_cuda(const SegmentationSumsParams& p, void* stream);
int segmentation_sums_backward_naive_cuda(const SegmentationSumsParams& p, void* stream);

// ---- one pixel, the readable version ----

VDA_HD float exponential(float x) { return expf(x); }
VDA_HD double exponential(double x) { return exp(x); }
VDA_HD float logarithm(float x) { return logf(x); }
VDA_HD double logarithm(double x) { return log(x); }

// The softmax of a full-resolution pixel, whose logits are upsampled anew wherever they are asked for.
template <typename T>
struct Softmax {
    const T* logits;  // of the frame
    int64_t stride[4];
    BetweenOf<T> y, x;
    int label, classes;
    T most, sum;    // the largest logit, and the sum of exp(z_k - most)
    T total, mean;  // of z_k - most: the sum, and the mean under P

    VDA_HD bool labelled() const { return label < classes; }
    VDA_HD T logit(int k) const { return upsampled(logits + k * stride[1], stride, y, x); }
    VDA_HD T exponent(int k) const { return logit(k) - most; }
    VDA_HD T probability(int k) const { return exponential(exponent(k)) / sum; }
};

template <typename T>
VDA_HD Softmax<T> softmax_at(const SegmentationSumsParams& p, int64_t n, int y, int x) {
    const int64_t plane = int64_t(p.logit_height) * p.logit_width;
    Softmax<T> s{static_cast<const T*>(p.logits) + n * p.classes * plane,
                 {p.classes * plane, plane, p.logit_width, 1},
                 between(upsampling_axis<T>(p.logit_height, p.height, p.align_corners), y),
                 between(upsampling_axis<T>(p.logit_width, p.width, p.align_corners), x),
                 p.label.at(n, y, x),
                 p.classes,
                 T(-INFINITY),
                 T(0),
                 T(0),
                 T(0)};
    for (int k = 0; k < p.classes; ++k) {
        const T z = s.logit(k);
        s.most = z > s.most ? z : s.most;
    }
    for (int k = 0; k < p.classes; ++k) {
        const T u = s.exponent(k), e = exponential(u);
        s.sum += e;
        s.total += u;
        s.mean += e > T(0) ? e * u : e;  // the limit for a logit of minus infinity; NaN stays
    }
    s.mean /= s.sum;
    return s;
}

// What the pixel adds to sum i of terms_of(K).
template <typename T>
VDA_HD T term(const Softmax<T>& s, int i) {
    if (i == kEntropy) return s.label == kUnlabelled ? logarithm(s.sum) - s.mean : T(0);
    if (!s.labelled()) return T(0);
    if (i == kCrossEntropy) return logarithm(s.sum) - s.exponent(s.label);
    if (i == kUniform) return logarithm(s.sum) - s.total / T(s.classes);
    const int k = (i - kOverlap) % s.classes, which = (i - kOverlap) / s.classes;
    if (which == 0) return k == s.label ? s.probability(k) : T(0);
    if (which == 2) return T(k == s.label);
    const T probability = s.probability(k);
    return probability * probability;
}

// The gradient of a loss with respect to the upsampled logits of a pixel.
template <typename T>
struct PixelGradient {
    Softmax<T> s;
    const T* grad;  // of the sums of the frame
    T mean;         // of dL/dP under P

    VDA_HD T slope(int k, T probability) const {  // dL/dP_k by overlap and square
        const T square = T(2) * grad[kOverlap + s.classes + k] * probability;
        return k == s.label ? square + grad[kOverlap + k] : square;
    }
    VDA_HD T at(int k) const {
        const T u = s.exponent(k), e = exponential(u), probability = e / s.sum;
        if (!s.labelled()) {
            const T to_mean = e > T(0) ? u - s.mean : T(1);
            return s.label == kUnlabelled ? -grad[kEntropy] * probability * to_mean : T(0);
        }
        const T likely = grad[kCrossEntropy] + grad[kUniform] + slope(k, probability) - mean;
        return probability * likely - grad[kUniform] / T(s.classes) -
               (k == s.label ? grad[kCrossEntropy] : T(0));
    }
};

template <typename T>
VDA_HD PixelGradient<T> gradient_at(const SegmentationSumsParams& p, int64_t n, int y, int x) {
    PixelGradient<T> g{softmax_at<T>(p, n, y, x), static_cast<const T*>(p.grad) + n * sums_of(p.classes),
                       T(0)};
    for (int k = 0; k < p.classes && g.s.labelled(); ++k) {
        const T probability = g.s.probability(k);
        g.mean += probability * g.slope(k, probability);
    }
    return g;
}

}  // namespace vda
