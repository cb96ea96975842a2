// Correlation (cost volume) of FlowNet2, forward and both gradients: kernel size 1, output stride 1, padding
// equal to the largest displacement.
//
//   out[b, d, y, x] = f(scale sum_c f1[b, c, y, x] f2[b, c, y + dy, x + dx]),   d = (j + radius) D + (i +
//   radius)
//
// with (dy, dx) = (j, i) * stride, j and i in [-radius, radius], D = 2 radius + 1, f2 = 0 outside the frame
// and f(x) = x where x > 0, else negative_slope x (LeakyReLU; 1 is none).
#pragma once

#include "common.h"

namespace vda {

struct CorrelationParams {
    View f1;             // [B, C, H, W]
    View f2;             // [B, C, H, W]
    View grad_out;       // [B, D*D, H, W], of the sum inside f; backward only
    void* out;           // [B, D*D, H, W] dense; forward only
    void* grad_f1;       // [B, C, H, W] dense; backward only, null when not wanted
    void* grad_f2;       // [B, C, H, W] dense; backward only, null when not wanted
    void* workspace;     // the bytes that the functions below ask for, aligned to 16
    int64_t batch;       // B
    int channels;        // C
    int height, width;   // H, W
    int radius, stride;  // max_displacement / stride (in steps), and the pixels of one step
    Dtype dtype;         // of every array; 16-bit types are accumulated in fp32
    double scale, negative_slope;
    bool channels_last;  // CUDA only: memory of both gradients is [B, H, W, C]
    bool allow_tf32;     // CUDA only: fp32 products may be rounded to TF32 (10 bits of mantissa) first
};

// Number of displacement steps along one axis, D.
VDA_HD int displacements(const CorrelationParams& p) { return 2 * p.radius + 1; }

// Bytes of workspace that the CPU kernels need.
int64_t correlation_workspace(const CorrelationParams& p, int threads);
int64_t correlation_backward_workspace(const CorrelationParams& p, int threads);

// The same of the CUDA kernels, which also look at f1 and f2 and at which gradients are wanted.
int64_t correlation_workspace_cuda(const CorrelationParams& p);
int64_t correlation_backward_workspace_cuda(const CorrelationParams& p);

int correlation_cpu(const CorrelationParams& p, int threads);
int correlation_backward_cpu(const CorrelationParams& p, int threads);

int correlation_cuda(const CorrelationParams& p, void* stream);
int correlation_backward_cuda(const CorrelationParams& p, void* stream);

// The readable versions, which also serve fp64, GPUs before compute capability 8.0 and sizes beyond 32-bit
// offsets. They need no workspace.
int correlation_naive_cuda(const CorrelationParams& p, void* stream);
int correlation_backward_naive_cuda(const CorrelationParams& p, void* stream);

}  // namespace vda
