// Temporal consensus of two pseudo-label maps: the cut-out of Eq. 13 and the fill-in of Eq. 14.
#pragma once

#include "sampling.h"

namespace vda {

enum class ConsensusMode : int32_t { strict, lenient, fill_in };

struct ConsensusParams {
    LabelView label;      // [B, H, W]
    LabelView reference;  // [B, H, W], the other frame's labels
    LabelView visible;    // [B, H, W] of 0 and 1, or null: where fill_in may copy
    FlowView flow;        // [B, 2, H, W], from label's frame to the reference's
    uint8_t* out;         // [B, H, W], contiguous
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
    const int64_t from = nearest_offset(p.flow.target<float>(b, y, x), p.height, p.width,
                                        p.reference.stride[1], p.reference.stride[2], Padding::zeros);
    const uint8_t warped = from < 0 ? p.ignore : p.reference.data[b * p.reference.stride[0] + from];
    const bool visible = p.visible.data == nullptr || p.visible.at(b, y, x) != 0;
    p.out[(b * p.height + y) * p.width + x] = agree(p.mode, p.label.at(b, y, x), warped, visible, p.ignore);
}

}  // namespace vda
