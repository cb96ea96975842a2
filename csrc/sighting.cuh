// The test of sighting.h for the optimised kernels: offsets inside a plane in 32 bits, and taps that a
// position inside the frame cannot lack not tested for. About 90 instructions a neighbour with three
// channels, where the readable version takes over 200.
#pragma once

#include "common.cuh"
#include "sighting.h"

namespace vda {

// Whether offsets inside a plane (and flow's second channel, which the caller keeps apart) fit 32 bits.
inline bool plane_in_32_bits(const int64_t stride[4], int height, int width) {
    return int64_t(height) * stride[2] + int64_t(width) * stride[3] < (int64_t(1) << 31);
}
inline bool planes_in_32_bits(const Neighbourhood& p) {
    return plane_in_32_bits(p.flows.first.stride, p.height, p.width) &&
           plane_in_32_bits(p.frame.stride, p.height, p.width) &&
           plane_in_32_bits(p.neighbour_frames.first.stride, p.height, p.width);
}

template <typename T>
__device__ __forceinline__ Position<float> flow_at(const void* data, int64_t sample, int64_t channel,
                                                   int offset) {
    const T* u = static_cast<const T*>(data) + sample;
    if constexpr (std::is_same_v<T, int16_t>)
        return {tenths(u[offset]), tenths((u + channel)[offset])};
    else
        return {load(u + offset), load(u + channel + offset)};
}

// FlowView::target of flow to neighbour j, with one look at the element type for both channels.
__device__ __forceinline__ Position<float> target_32(const Stack<FlowView>& flows, int64_t b, int j, int y,
                                                     int x) {
    const int64_t* stride = flows.first.stride;
    const int64_t sample = b * stride[0] + j * flows.step;
    const int offset = y * int(stride[2]) + x * int(stride[3]);
    Position<float> flow;
    switch (flows.first.dtype) {
        case Dtype::f16:
            flow = flow_at<half>(flows.first.data, sample, stride[1], offset);
            break;
        case Dtype::bf16:
            flow = flow_at<bfloat16>(flows.first.data, sample, stride[1], offset);
            break;
        case Dtype::i16:
            flow = flow_at<int16_t>(flows.first.data, sample, stride[1], offset);
            break;
        default:
            flow = flow_at<float>(flows.first.data, sample, stride[1], offset);
    }
    return {float(x) + flow.x, float(y) + flow.y};
}

// The four taps of a position inside the frame. Where the right column or the bottom row would lie outside,
// its weight is 0 and the tap beside it stands for it: whatever is there has been read anyway.
struct InnerTaps {
    int offset, right, down;  // of the first, and from it to the others
    float a, b;

    VDA_HD float weight(int tap) const { return ((tap & 1) ? a : 1.0f - a) * ((tap & 2) ? b : 1.0f - b); }
};

VDA_HD InnerTaps inner_taps(Position<float> at, int height, int width, int stride_y, int stride_x) {
    const int left = int(at.x), top = int(at.y);  // not negative
    return {top * stride_y + left * stride_x, left < width - 1 ? stride_x : 0,
            top < height - 1 ? stride_y : 0, at.x - float(left), at.y - float(top)};
}

template <typename T>
VDA_HD float sample_32(const T* plane, const InnerTaps& taps) {
    const T* first = plane + taps.offset;
    return taps.weight(0) * load(first) + taps.weight(1) * load(first + taps.right) +
           taps.weight(2) * load(first + taps.down) + taps.weight(3) * load(first + taps.down + taps.right);
}

// sighting(), wherever planes_in_32_bits.
__device__ __forceinline__ Sighting sighting_32(const Neighbourhood& p, float limit, int64_t b, int j, int y,
                                                int x) {
    const Position<float> at = target_32(p.flows, b, j, y, x);
    if (!in_frame(at, p.height, p.width)) return {at, false};
    const int64_t* stride = p.neighbour_frames.first.stride;
    const InnerTaps taps = inner_taps(at, p.height, p.width, int(stride[2]), int(stride[3]));
    const float* other = nth<float>(p.neighbour_frames, j, b);
    const float* frame = static_cast<const float*>(p.frame.data) + b * p.frame.stride[0];
    const int own = y * int(p.frame.stride[2]) + x * int(p.frame.stride[3]);
    float error = 0;
    for (int c = 0; c < p.channels; ++c, frame += p.frame.stride[1], other += stride[1]) {
        const float difference = frame[own] - sample_32(other, taps);
        error += difference * difference;
    }
    return {at, error < limit};
}

}  // namespace vda
