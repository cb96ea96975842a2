// What the readable and the fast CUDA kernels of segmentation_sums.h share.
#pragma once

#include "common.cuh"
#include "segmentation_sums.h"

namespace vda {

// Sums over a block go to the workspace, [N, blocks of a frame, terms_of(K)]; this adds those of a frame in
// fixed order, in double.
int add_blocks(const SegmentationSumsParams& p, int64_t blocks, void* stream);

constexpr int kBlockPixels = 256;  // of the readable forward kernel
inline int64_t readable_blocks(const SegmentationSumsParams& p) {
    return ceil_div<int64_t>(int64_t(p.height) * p.width, kBlockPixels);
}

inline bool no_pixels(const SegmentationSumsParams& p) { return p.height == 0 || p.width == 0; }

}  // namespace vda
