// CUDA kernel of consensus.h, the readable version: one thread per pixel. 11 bytes per pixel with fp32 flow:
// label 1, reference 1, flow 8, out 1; the reference is a gather, but neighbouring pixels point to
// neighbouring pixels.
#include "common.cuh"
#include "consensus.h"

namespace vda {
namespace {

__global__ void consensus_kernel(ConsensusParams p) {
    for_each_pixel(p.batch, p.height, p.width, [&](int64_t b, int y, int x) { consensus_pixel(p, b, y, x); });
}

}  // namespace

int consensus_naive_cuda(const ConsensusParams& p, void* stream) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    return launch(consensus_kernel, pixel_grid(p.batch, p.height, p.width), pixel_block(), 0, stream, p);
}

}  // namespace vda
