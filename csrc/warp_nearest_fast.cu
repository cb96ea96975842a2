// Fast CUDA kernel of warp.h's nearest warp: elements are copied, 8 pixels per thread with labels of a byte
// (flow in accesses of 16 bytes, labels of 4), 4 with larger ones. Bytes per pixel with fp32 flow: 8 + 2 per
// byte of the element, so 10 for labels.
#include "pack.cuh"
#include "warp.h"

namespace vda {
namespace {

// S: an unsigned type of the elements' size.
template <typename S, bool Packed>
struct Shape {
    static constexpr int N = Packed ? kSpan<S> : 1;
    static constexpr int R = N > 1 ? 2 : 4;
};

template <typename S, bool Packed>
__global__ void __launch_bounds__(256) warp_nearest_kernel(WarpNearestParams p) {
    constexpr int N = Shape<S, Packed>::N, R = Shape<S, Packed>::R;
    const PackOfPixels<R, N> at;
    if (at.x >= p.width || at.y >= p.height) return;
    Position<float> position[R][N];
    load_positions(p.flow, at.b, at.y, at.x, p.height, position);
    if (p.padding == Padding::border) clamp_to_border(position, p.height, p.width);
    int from[R][N];
    bool exists[R][N];
#pragma unroll
    for (int i = 0; i < R * N; ++i) {
        const Pixel pixel = nearest_of(position[i / N][i % N], p.height, p.width);
        from[i / N][i % N] = offset_of(pixel, p.image.stride);
        exists[i / N][i % N] = pixel.exists;
    }
    const int64_t plane = int64_t(p.height) * p.width;
    const S* image = as_is(sample_of<S>(p.image.data, at.b, p.image.stride[0]));
    S* out = sample_of<S>(p.out, at.b, p.channels * plane);
    const int first = at.y * p.width + at.x;
    for (int c = 0; c < p.channels; ++c) {
        Pack<S, N> value[R];
#pragma unroll
        for (int i = 0; i < R * N; ++i) {
            const S there = fetch(image + from[i / N][i % N]);
            value[i / N].at[i % N] = exists[i / N][i % N] ? there : S(p.fill);
        }
        store_rows(out + first, value, p.width, p.height - at.y);
        image += p.image.stride[1];
        out += plane;
    }
}

template <typename S>
int run(const WarpNearestParams& p, void* stream) {
    constexpr int N = kSpan<S>;
    if (p.width % N == 0 && packs(p.flow, N) && packs(p.out, sizeof(S), N, 1, {p.width})) {
        const dim3 grid = pack_grid<Shape<S, true>::R, N>(p.batch, p.height, p.width);
        return launch(warp_nearest_kernel<S, true>, grid, pixel_block(), 0, stream, p);
    }
    const dim3 grid = pack_grid<Shape<S, false>::R, 1>(p.batch, p.height, p.width);
    return launch(warp_nearest_kernel<S, false>, grid, pixel_block(), 0, stream, p);
}

}  // namespace

int warp_nearest_cuda(const WarpNearestParams& p, void* stream) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    const bool fast =
        !p.double_flow && p.flow.dtype != Dtype::f64 &&
        addressable(p.batch, p.height, p.width, {plane_of(p.flow.stride), plane_of(p.image.stride)});
    if (!fast) return warp_nearest_naive_cuda(p, stream);
    switch (p.element_size) {
        case 1:
            return run<uint8_t>(p, stream);
        case 2:
            return run<uint16_t>(p, stream);
        case 4:
            return run<uint32_t>(p, stream);
        case 8:
            return run<uint64_t>(p, stream);
    }
    return kBadDtype;
}

}  // namespace vda
