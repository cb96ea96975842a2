// Fast CUDA kernels of warp.h: warp (bilinear) and warp_occlusion, in one pass over the pixels.
//
// A thread takes 2 rows of 1 pixel (fp32) or 2 (16 bit), see pack.cuh, and works out taps and weights once
// for all channels. Where all its taps lie in the frame, as nearly everywhere, it reads them unconditionally:
// 24 gathers of an RGB image in flight with fp32. Elsewhere it does its pixels one after another with the
// checks of sampling.h.
//
// Bytes per pixel of C channels, element size s, flow size f: warp 2 f + 2 C s, warp_occlusion 2 f + 3 C s +
// 1; RGB with fp32 flow: 32 and 45 (fp32), 20 and 27 (16 bit).
#include "taps.cuh"
#include "warp.h"
#include "warp_channels_last.cuh"

namespace vda {
namespace {

// Channels whose gathers are in flight together where their number is not known: 32 gathers, 16 with the
// frame beside them. More would spill.
template <int N>
constexpr int kUnroll = N < 4 ? 4 / N : 1;
template <int N>
constexpr int kUnrollBeside = N < 2 ? 2 / N : 1;

template <typename T, int C, bool Packed>  // C: channels, 0 for any number
__global__ void __launch_bounds__(256) warp_kernel(WarpParams p) {
    constexpr int N = Packed ? kSpan<T> : 1, R = kRows<N>;
    const PackOfPixels<R, N> at;
    if (at.x >= p.width || at.y >= p.height) return;
    const int channels = C > 0 ? C : p.channels;
    const int64_t plane = int64_t(p.height) * p.width;
    const T* image = sample_of<T>(p.image.data, at.b, p.image.stride[0]);
    T* out = sample_of<T>(p.out, at.b, channels * plane);
    const int stride_y = int(p.image.stride[2]), stride_x = Packed ? 1 : int(p.image.stride[3]);

    Position<float> position[R][N];
    load_positions(p.flow, at.b, at.y, at.x, p.height, position);
    Inner taps[R][N];
    if (!inner_taps(position, p.height, p.width, stride_y, stride_x, taps)) {
        one_by_one(position, at.y, at.x, p.height, [&](Position<float> from, int y, int x) {
            const Taps<float> all = bilinear_taps(from, p.height, p.width, stride_y, stride_x, p.padding);
            for (int c = 0; c < channels; ++c) {
                store(out + c * plane + y * p.width + x, sample(image + c * p.image.stride[1], all));
            }
        });
        return;
    }
    const int first = at.y * p.width + at.x, rows = p.height - at.y;
#pragma unroll(C > 0 ? C : kUnroll<N>)
    for (int c = 0; c < channels; ++c) {
        Pack<T, N> value[R];
#pragma unroll
        for (int i = 0; i < R * N; ++i) {
            store(&value[i / N].at[i % N], inner_sample(image, taps[i / N][i % N], stride_x));
        }
        store_rows(out + first, value, p.width, rows);
        image += p.image.stride[1];
        out += plane;
    }
}

template <typename T, int C, bool Packed>
__global__ void __launch_bounds__(256) warp_occlusion_kernel(WarpOcclusionParams p, float limit) {
    constexpr int N = Packed ? kSpan<T> : 1, R = kRows<N>;
    const PackOfPixels<R, N> at;
    if (at.x >= p.width || at.y >= p.height) return;
    const int channels = C > 0 ? C : p.channels;
    const int64_t plane = int64_t(p.height) * p.width;
    const T* frame = sample_of<T>(p.frame.data, at.b, p.frame.stride[0]);
    const T* neighbour = sample_of<T>(p.neighbour.data, at.b, p.neighbour.stride[0]);
    T* out = sample_of<T>(p.out, at.b, channels * plane);
    uint8_t* visible = sample_of<uint8_t>(p.visible, at.b, plane);
    const int stride_y = int(p.neighbour.stride[2]), stride_x = Packed ? 1 : int(p.neighbour.stride[3]);
    const int own_y = int(p.frame.stride[2]), own_x = Packed ? 1 : int(p.frame.stride[3]);

    Position<float> position[R][N];
    load_positions(p.flow, at.b, at.y, at.x, p.height, position);
    Inner taps[R][N];
    if (!inner_taps(position, p.height, p.width, stride_y, stride_x, taps)) {
        one_by_one(position, at.y, at.x, p.height, [&](Position<float> from, int y, int x) {
            const Taps<float> all =
                bilinear_taps(from, p.height, p.width, stride_y, stride_x, Padding::zeros);
            float error = 0;
            for (int c = 0; c < channels; ++c) {
                const float value = sample(neighbour + c * p.neighbour.stride[1], all);
                const float difference = load(frame + c * p.frame.stride[1] + y * own_y + x * own_x) - value;
                error += difference * difference;
                store(out + c * plane + y * p.width + x, value);
            }
            visible[y * p.width + x] = in_frame(from, p.height, p.width) && error < limit;
        });
        return;
    }
    const int rows = p.height - at.y;  // below the last the last is read again, and nothing is written
    const int own = at.y * own_y + at.x * own_x, first = at.y * p.width + at.x;
    float error[R][N] = {};
#pragma unroll(C > 0 ? C : kUnrollBeside<N>)
    for (int c = 0; c < channels; ++c) {
        Pack<T, N> value[R];
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const Pack<T, N> mine = load_pack<N>(frame + own + min(r, rows - 1) * own_y);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float there = inner_sample(neighbour, taps[r][n], stride_x);
                const float difference = load(&mine.at[n]) - there;
                error[r][n] += difference * difference;
                store(&value[r].at[n], there);
            }
        }
        store_rows(out + first, value, p.width, rows);
        frame += p.frame.stride[1];
        neighbour += p.neighbour.stride[1];
        out += plane;
    }
    Pack<uint8_t, N> seen[R];
#pragma unroll
    for (int i = 0; i < R * N; ++i) seen[i / N].at[i % N] = error[i / N][i % N] < limit;
    store_rows(visible + first, seen, p.width, rows);
}

// ---- launchers ----

template <typename T, typename... P, typename... A>
int run(void (*kernel)(P...), bool packed, int64_t batch, int height, int width, void* stream,
        const A&... args) {
    const dim3 grid = packed ? pack_grid<kRows<kSpan<T>>, kSpan<T>>(batch, height, width)
                             : pack_grid<kRows<1>, 1>(batch, height, width);
    return launch(kernel, grid, pixel_block(), 0, stream, args...);
}

}  // namespace

int warp_cuda(const WarpParams& p, void* stream) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    const bool fast =
        p.dtype != Dtype::f64 && p.flow.dtype != Dtype::f64 &&
        addressable(p.batch, p.height, p.width, {plane_of(p.flow.stride), plane_of(p.image.stride)});
    if (!fast) return warp_naive_cuda(p, stream);
    return for_float(p.dtype, [&](auto type) {
        using T = decltype(type);
        if (has_channels_last(p)) return launch_channels_last<T>(p, stream);
        constexpr int N = kSpan<T>;
        const bool packed = p.image.stride[3] == 1 && p.width % N == 0 && packs(p.flow, N) &&
                            packs(p.out, sizeof(T), N, 1, {p.width});
        const auto kernel = packed ? (p.channels == 3 ? warp_kernel<T, 3, true> : warp_kernel<T, 0, true>)
                                   : (p.channels == 3 ? warp_kernel<T, 3, false> : warp_kernel<T, 0, false>);
        return run<T>(kernel, packed, p.batch, p.height, p.width, stream, p);
    });
}

int warp_occlusion_cuda(const WarpOcclusionParams& p, void* stream) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    const bool fast =
        p.dtype != Dtype::f64 && p.flow.dtype != Dtype::f64 &&
        addressable(p.batch, p.height, p.width,
                    {plane_of(p.flow.stride), plane_of(p.frame.stride), plane_of(p.neighbour.stride)});
    if (!fast) return warp_occlusion_naive_cuda(p, stream);
    return for_float(p.dtype, [&](auto type) {
        using T = decltype(type);
        constexpr int N = kSpan<T>;
        const int64_t* own = p.frame.stride;
        const bool packed = p.neighbour.stride[3] == 1 && own[3] == 1 && p.width % N == 0 &&
                            packs(p.flow, N) &&
                            packs(p.frame.data, sizeof(T), N, 1, {own[0], own[1], own[2]}) &&
                            packs(p.out, sizeof(T), N, 1, {p.width}) && packs(p.visible, 1, N, 1, {p.width});
        const auto kernel =
            packed
                ? (p.channels == 3 ? warp_occlusion_kernel<T, 3, true> : warp_occlusion_kernel<T, 0, true>)
                : (p.channels == 3 ? warp_occlusion_kernel<T, 3, false> : warp_occlusion_kernel<T, 0, false>);
        return run<T>(kernel, packed, p.batch, p.height, p.width, stream, p, not_below<float>(p.limit));
    });
}

}  // namespace vda
