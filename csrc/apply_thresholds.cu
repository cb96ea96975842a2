// CUDA kernel of apply_thresholds.h: one thread per pixel, 4 bytes per pixel with fp16 confidences.
#include "apply_thresholds.h"
#include "common.cuh"

namespace vda {
namespace {

__global__ void apply_thresholds_kernel(ApplyThresholdsParams p) {
    for_each_pixel(p.batch, p.height, p.width,
                   [&](int64_t b, int y, int x) { apply_thresholds_pixel(p, b, y, x); });
}

}  // namespace

int apply_thresholds_cuda(const ApplyThresholdsParams& p, void* stream) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    return launch(apply_thresholds_kernel, pixel_grid(p.batch, p.height, p.width), pixel_block(), 0, stream,
                  p);
}

}  // namespace vda
