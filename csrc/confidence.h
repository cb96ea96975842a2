// Labels that come with confidences, and the thresholds of their classes: a label is kept where its
// confidence passes the threshold of its class (last line of Algorithm 1). Shared by thresholds and
// consensus.
#pragma once

#include "common.h"

namespace vda {

struct ConfidenceView {  // [B, H, W] of f32, f16 or bf16
    const void* data;    // null where labels are final
    int64_t stride[3];
    Dtype dtype;

    VDA_HD float at(int64_t b, int y, int x) const {
        const int64_t i = b * stride[0] + y * stride[1] + x * stride[2];
        switch (dtype) {
            case Dtype::f16:
                return load(static_cast<const half*>(data) + i);
            case Dtype::bf16:
                return load(static_cast<const bfloat16*>(data) + i);
            default:
                return load(static_cast<const float*>(data) + i);
        }
    }
};

struct ThetaView {
    const float* data;  // [B or 1, K], rows contiguous
    int64_t stride;     // K, or 0 where all samples share one row

    VDA_HD const float* row(int64_t b) const { return data + b * stride; }
};

// NaN passes nothing; neither does a label that is no class.
VDA_HD uint8_t kept(uint8_t label, float confidence, const float* theta, int classes, bool inclusive,
                    uint8_t ignore) {
    if (label >= classes) return ignore;
    const float bar = theta[label];
    return (inclusive ? confidence >= bar : confidence > bar) ? label : ignore;
}

}  // namespace vda
