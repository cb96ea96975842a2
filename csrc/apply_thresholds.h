// Pseudo labels from predictions, the last line of Algorithm 1: the label where its confidence passes the
// threshold of its class, `ignore` elsewhere.
#pragma once

#include "confidence.h"

namespace vda {

struct ApplyThresholdsParams {
    LabelView label;            // [B, H, W]
    ConfidenceView confidence;  // [B, H, W]
    ThetaView theta;            // [B or 1, K]
    uint8_t* out;               // [B, H, W], contiguous
    int64_t batch;
    int height, width, classes;
    uint8_t ignore;
    bool inclusive;  // a confidence equal to its threshold passes
};

int apply_thresholds_cpu(const ApplyThresholdsParams& p, int threads);
int apply_thresholds_cuda(const ApplyThresholdsParams& p, void* stream);
int apply_thresholds_naive_cuda(const ApplyThresholdsParams& p, void* stream);  // the readable kernel

VDA_HD void apply_thresholds_pixel(const ApplyThresholdsParams& p, int64_t b, int y, int x) {
    p.out[(b * p.height + y) * p.width + x] =
        kept(p.label.at(b, y, x), p.confidence.at(b, y, x), p.theta.row(b), p.classes, p.inclusive, p.ignore);
}

}  // namespace vda
