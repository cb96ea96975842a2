// Thresholds of all classes in shared memory, one per value that a byte can have.
#pragma once

#include "common.cuh"
#include "confidence.h"

namespace vda {

constexpr int kLabels = 256;

// bars[label] for the sample whose thresholds are theta; NaN, which nothing passes, where a label is no
// class. Done by a block of kLabels threads, of which this is number i; needs a barrier before use.
__device__ __forceinline__ void load_bar(const float* theta, int classes, int i, float* bars) {
    bars[i] = i < classes ? theta[i] : NAN;
}

// kept() of confidence.h.
__device__ __forceinline__ uint8_t kept(uint8_t label, float confidence, const float* bars, bool inclusive,
                                        uint8_t ignore) {
    const float bar = bars[label];
    return confidence > bar || (inclusive && confidence == bar) ? label : ignore;
}

}  // namespace vda
