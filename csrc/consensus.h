// Temporal consensus of two pseudo-label maps: the cut-out of Eq. 13 and the fill-in of Eq. 14.
#pragma once

#include "sampling.h"

namespace vda {

enum class ConsensusMode : int32_t { strict, lenient, fill_in };

struct ConsensusParams {
    const uint8_t* label;      // [B, H, W], strides of three
    const uint8_t* reference;  // [B, H, W], the other frame's labels
    const bool* visible;       // [B, H, W] or null: where fill_in may copy
    int64_t label_stride[3], reference_stride[3], visible_stride[3];
    FlowView flow;  // [B, 2, H, W], from label's frame to the reference's
    uint8_t* out;   // [B, H, W], contiguous
    int64_t batch;
    int height, width;
    uint8_t ignore;
    ConsensusMode mode;
};

int consensus_cpu(const ConsensusParams& p, int threads);
int consensus_cuda(const ConsensusParams& p, void* stream);

VDA_HD uint8_t agree(ConsensusMode mode, uint8_t label, uint8_t warped, bool visible, uint8_t ignore) {
    switch (mode) {
        case ConsensusMode::strict:
            return label == warped ? label : ignore;
        case ConsensusMode::lenient:
            return label == warped || warped == ignore ? label : ignore;
        default:
            return label == ignore && visible ? warped : label;
    }
}

VDA_HD void consensus_pixel(const ConsensusParams& p, int64_t b, int y, int x) {
    const uint8_t label = p.label[b * p.label_stride[0] + y * p.label_stride[1] + x * p.label_stride[2]];
    const int64_t from = nearest_offset(p.flow.target<float>(b, y, x), p.height, p.width,
                                        p.reference_stride[1], p.reference_stride[2], Padding::zeros);
    const uint8_t warped = from < 0 ? p.ignore : p.reference[b * p.reference_stride[0] + from];
    const bool visible =
        p.visible == nullptr ||
        p.visible[b * p.visible_stride[0] + y * p.visible_stride[1] + x * p.visible_stride[2]];
    p.out[(b * p.height + y) * p.width + x] = agree(p.mode, label, warped, visible, p.ignore);
}

}  // namespace vda
