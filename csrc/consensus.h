// Temporal consensus of two pseudo-label maps: the cut-out of Eq. 13 and the fill-in of Eq. 14. Where
// confidences are given the maps are predictions, and what passes the thresholds is taken on the fly.
#pragma once

#include "confidence.h"
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
    // The rest may be null or 0, all of it: then the labels are final.
    ConfidenceView confidence, reference_confidence;
    ThetaView theta, reference_theta;
    int classes;
    bool inclusive;  // a confidence equal to its threshold passes
};

int consensus_cpu(const ConsensusParams& p, int threads);
int consensus_cuda(const ConsensusParams& p, void* stream);
int consensus_naive_cuda(const ConsensusParams& p, void* stream);  // the readable kernel

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
    const Pixel from = nearest_pixel(p.flow.target<float>(b, y, x), p.height, p.width, Padding::zeros);
    uint8_t label = p.label.at(b, y, x);
    uint8_t warped = from.exists ? p.reference.at(b, from.y, from.x) : p.ignore;
    if (p.confidence.data != nullptr) {
        label = kept(label, p.confidence.at(b, y, x), p.theta.row(b), p.classes, p.inclusive, p.ignore);
        if (from.exists) {
            warped = kept(warped, p.reference_confidence.at(b, from.y, from.x), p.reference_theta.row(b),
                          p.classes, p.inclusive, p.ignore);
        }
    }
    const bool visible = p.visible.data == nullptr || p.visible.at(b, y, x) != 0;
    p.out[(b * p.height + y) * p.width + x] = agree(p.mode, label, warped, visible, p.ignore);
}

}  // namespace vda
