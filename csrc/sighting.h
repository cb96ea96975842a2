// Which pixels of a frame can be seen in its neighbours (the map I of Eq. 10): the test of
// warp_occlusion_pixel, taken on the fly. Shared by aggregate and aggregate_labels.
#pragma once

#include "sampling.h"

namespace vda {

struct Neighbourhood {
    Stack<FlowView> flows;         // [B, J, 2, H, W], from the frame to the neighbours
    View frame;                    // [B, C, H, W] float
    Stack<View> neighbour_frames;  // [B, J, C, H, W] float
    int neighbours, channels, height, width;
    double limit;  // visible where the squared colour distance is below it
};

// Where pixel (y, x) of the frame lies in neighbour j, and whether it can be seen there.
struct Sighting {
    Position<float> at;
    bool visible;
};

VDA_HD Sighting sighting(const Neighbourhood& p, float limit, int64_t b, int j, int y, int x) {
    const Position<float> at = nth(p.flows, j).target<float>(b, y, x);
    if (!in_frame(at, p.height, p.width)) return {at, false};
    const int64_t* stride = p.neighbour_frames.first.stride;
    const Taps<float> taps = bilinear_taps(at, p.height, p.width, stride[2], stride[3], Padding::zeros);
    const float* frame = static_cast<const float*>(p.frame.data) + b * p.frame.stride[0] +
                         y * p.frame.stride[2] + x * p.frame.stride[3];
    const float* other = nth<float>(p.neighbour_frames, j, b);
    float error = 0;
    for (int c = 0; c < p.channels; ++c) {
        const float difference = frame[c * p.frame.stride[1]] - sample(other + c * stride[1], taps);
        error += difference * difference;
    }
    return {at, error < limit};
}

}  // namespace vda
