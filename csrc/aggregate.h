// Temporal aggregation of class probabilities, Eq. 10:
//
//   out_i(p) = (P_i(p) + sum_j visible_j(p) P_j(p + F_{i->j}(p))) / (1 + sum_j visible_j(p))
//
// with the bilinear warp and the occlusion test of warp.h.
#pragma once

#include "sighting.h"
#include "warp.h"

namespace vda {

struct AggregateParams {
    View probs;                   // [B, K, H, W]
    Stack<View> neighbour_probs;  // [B, J, K, H, W]
    Neighbourhood near;
    void* out;  // [B, K, H, W], contiguous, element type of probs
    int64_t batch;
    int classes;
    Dtype dtype;  // of probs, neighbour_probs and out: f32, f16 or bf16
};

int aggregate_cpu(const AggregateParams& p, int threads);
int aggregate_cuda(const AggregateParams& p, void* stream);
int aggregate_naive_cuda(const AggregateParams& p, void* stream);

// One pixel of the result. Sums of kClasses classes are held at once; with more classes than that the
// occlusion test is taken again for each block of them.
template <typename T>
VDA_HD void aggregate_pixel(const AggregateParams& p, float limit, int64_t b, int y, int x) {
    constexpr int kClasses = 20;
    const int64_t plane = int64_t(p.near.height) * p.near.width;
    const int64_t* stride = p.neighbour_probs.first.stride;
    const T* own = static_cast<const T*>(p.probs.data) + b * p.probs.stride[0] + y * p.probs.stride[2] +
                   x * p.probs.stride[3];
    T* out = static_cast<T*>(p.out) + b * p.classes * plane + int64_t(y) * p.near.width + x;
    for (int k0 = 0; k0 < p.classes; k0 += kClasses) {
        float sum[kClasses];
        for (int k = 0; k < kClasses; ++k) {
            sum[k] = k0 + k < p.classes ? load(own + (k0 + k) * p.probs.stride[1]) : 0.0f;
        }
        int frames = 1;
        for (int j = 0; j < p.near.neighbours; ++j) {
            const Sighting seen = sighting(p.near, limit, b, j, y, x);
            if (!seen.visible) continue;
            ++frames;
            const Taps<float> taps =
                bilinear_taps(seen.at, p.near.height, p.near.width, stride[2], stride[3], Padding::zeros);
            const T* other = nth<T>(p.neighbour_probs, j, b) + k0 * stride[1];
            for (int k = 0; k < kClasses; ++k) {
                if (k0 + k < p.classes) sum[k] += sample(other + k * stride[1], taps);
            }
        }
        for (int k = 0; k < kClasses; ++k) {
            if (k0 + k < p.classes) store(out + (k0 + k) * plane, sum[k] / float(frames));
        }
    }
}

}  // namespace vda
