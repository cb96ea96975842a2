// Warp of an image whose channels lie together, [B, H, W, C] in memory, and are many, such as class
// probabilities.
//
// With a thread per pixel a gather of a warp would touch a cache line per lane. Here neighbouring lanes take
// neighbouring channels of one tap, and the 32 pixels of a row that a warp works on go through shared memory,
// since the result is [B, C, H, W]. 19 channels of fp32: 160 bytes per pixel; 130 reads of one or two lines,
// 19 stores and 51 accesses of shared memory per 32 pixels, some 260 cycles of L1 against 300 of device
// memory on an H200.
#pragma once

#include "taps.cuh"
#include "warp.h"

namespace vda {

constexpr int kTileRow = 32 + 1;  // pixels; the pad puts the channels of a pixel in different banks

// G lanes per pixel: 16 or 32.
template <typename T, int G>
__global__ void __launch_bounds__(256) warp_channels_last_kernel(WarpParams p) {
    constexpr unsigned kAllLanes = 0xffffffffu;
    const PackOfPixels<1, 1> at;
    if (at.y >= p.height) return;  // whole warps: a warp is 32 pixels of a row
    const int lane = int(threadIdx.x), channel = lane % G;
    float* tile = dynamic_shared<float>() + int(threadIdx.y) * G * kTileRow;
    const int64_t plane = int64_t(p.height) * p.width;
    const T* image = sample_of<T>(p.image.data, at.b, p.image.stride[0]);
    T* out = sample_of<T>(p.out, at.b, p.channels * plane) + at.y * p.width + at.x;
    const int stride_y = int(p.image.stride[2]), stride_x = int(p.image.stride[3]);

    // Each lane works out the taps of one pixel, and all share them by shuffles: where the pixel is an inner
    // one its offset and weights, elsewhere -1 and its position.
    Position<float> own[1][1];
    load_positions(p.flow, at.b, at.y, min(at.x, p.width - 1), p.height, own);
    Inner taps{-1, 0, own[0][0].x, own[0][0].y};
    if (is_inner(own[0][0], p.height, p.width)) taps = inner_taps(own[0][0], stride_y, stride_x);

    for (int first = 0; first < p.channels; first += G) {
        const T* plane_of_channel = image + min(first + channel, p.channels - 1);
#pragma unroll 4
        for (int step = 0; step < G; ++step) {
            const int pixel = lane / G * G + step;
            const int top = __shfl_sync(kAllLanes, taps.top, pixel);
            const float a = __shfl_sync(kAllLanes, taps.a, pixel), b = __shfl_sync(kAllLanes, taps.b, pixel);
            float value;
            if (top >= 0) {
                value = inner_sample(plane_of_channel, Inner{top, top + stride_y, a, b}, stride_x);
            } else {
                value = sample(plane_of_channel, bilinear_taps(Position<float>{a, b}, p.height, p.width,
                                                               stride_y, stride_x, p.padding));
            }
            tile[channel * kTileRow + pixel] = value;
        }
        __syncwarp();
        for (int c = 0; c < G && first + c < p.channels; ++c) {
            if (at.x < p.width) store(out + (first + c) * plane, tile[c * kTileRow + lane]);
        }
        __syncwarp();
    }
}

// Whether the kernel is for this image: with few channels a thread per pixel does better.
inline bool has_channels_last(const WarpParams& p) { return p.channels > 8 && p.image.stride[1] == 1; }

template <typename T>
int launch_channels_last(const WarpParams& p, void* stream) {
    const int lanes = p.channels > 16 ? 32 : 16;
    const auto kernel = lanes == 32 ? warp_channels_last_kernel<T, 32> : warp_channels_last_kernel<T, 16>;
    return launch(kernel, pack_grid<1, 1>(p.batch, p.height, p.width), pixel_block(),
                  8 * size_t(lanes) * kTileRow * sizeof(float), stream, p);
}

}  // namespace vda
