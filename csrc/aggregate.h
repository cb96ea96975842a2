// Temporal aggregation of class probabilities, Eq. 10:
//
//   out_i(p) = (P_i(p) + sum_j visible_j(p) P_j(p + F_{i->j}(p))) / (1 + sum_j visible_j(p))
//
// with the bilinear warp and the occlusion test of warp.h.
#pragma once

#include "warp.h"

namespace vda {

struct AggregateParams {
    View probs;             // [B, K, H, W]
    View neighbour_probs;   // [B, J, K, H, W] without J
    FlowView flows;         // [B, J, 2, H, W] without J; from the frame to the neighbour
    View frame;             // [B, C, H, W] float
    View neighbour_frames;  // [B, J, C, H, W] float, without J
    // Bytes from one neighbour to the next in neighbour_probs, flows and neighbour_frames.
    int64_t probs_step, flows_step, frames_step;
    void* out;  // [B, K, H, W], contiguous, element type of probs
    int64_t batch;
    int neighbours, classes, channels, height, width;
    Dtype dtype;   // of probs, neighbour_probs and out: f32, f16 or bf16
    double limit;  // visible where the squared colour distance is below it
};

int aggregate_cpu(const AggregateParams& p, int threads);
int aggregate_cuda(const AggregateParams& p, void* stream);

template <typename T>
VDA_HD const T* neighbour(const View& view, int64_t step, int64_t b, int j) {
    return reinterpret_cast<const T*>(static_cast<const char*>(view.data) + j * step) + b * view.stride[0];
}

// Where pixel (y, x) of the frame lies in neighbour j, and whether it can be seen there: the test of
// warp_occlusion_pixel on fp32 frames.
struct Sighting {
    Position<float> at;
    bool visible;
};

VDA_HD Sighting sighting(const AggregateParams& p, float limit, int64_t b, int j, int y, int x) {
    FlowView flow = p.flows;
    flow.data = static_cast<const char*>(flow.data) + j * p.flows_step;
    const Position<float> at = flow.target<float>(b, y, x);
    if (!in_frame(at, p.height, p.width)) return {at, false};
    const Taps<float> taps = bilinear_taps(at, p.height, p.width, p.neighbour_frames.stride[2],
                                           p.neighbour_frames.stride[3], Padding::zeros);
    const float* frame = static_cast<const float*>(p.frame.data) + b * p.frame.stride[0] +
                         y * p.frame.stride[2] + x * p.frame.stride[3];
    const float* other = neighbour<float>(p.neighbour_frames, p.frames_step, b, j);
    float error = 0;
    for (int c = 0; c < p.channels; ++c) {
        const float difference =
            frame[c * p.frame.stride[1]] - sample(other + c * p.neighbour_frames.stride[1], taps);
        error += difference * difference;
    }
    return {at, error < limit};
}

}  // namespace vda
