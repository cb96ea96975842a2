// Fast CUDA kernels of warp.h's bilinear gradients.
//
// The flow's gradient alone is a gather like warp itself: 2 rows of 1 or 2 pixels per thread, no atomics; RGB
// in fp32 40 bytes per pixel. The image's is a scatter of 4 C additions per pixel, which L2 carries out; it
// is their number that counts there, so neighbours share: where the next pixel lands one pixel further, as
// nearly everywhere, its left taps are this one's right taps, and it adds for both: 2 C additions. Asked for
// both gradients, one kernel reads flow and incoming gradient once. Other modes, and sums in fixed point, are
// done by warp.cu.
#include "taps.cuh"
#include "warp.h"

namespace vda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// ---- gradient of the flow alone ----

template <typename T, bool Packed>
__global__ void __launch_bounds__(256) flow_gradient_kernel(WarpBackwardParams p) {
    constexpr int N = Packed ? kSpan<T> : 1, R = kRows<N>;
    const PackOfPixels<R, N> at;
    if (at.x >= p.width || at.y >= p.height) return;
    const int64_t plane = int64_t(p.height) * p.width;
    const T* grad_out = sample_of<T>(p.grad_out.data, at.b, p.grad_out.stride[0]);
    const T* image = sample_of<T>(p.image.data, at.b, p.image.stride[0]);
    float* grad_flow = sample_of<float>(p.grad_flow, at.b, 2 * plane);
    const int stride_y = int(p.image.stride[2]), stride_x = Packed ? 1 : int(p.image.stride[3]);
    const int out_y = int(p.grad_out.stride[2]), out_x = Packed ? 1 : int(p.grad_out.stride[3]);

    Position<float> position[R][N];
    load_positions(p.flow, at.b, at.y, at.x, p.height, position);
    Inner taps[R][N];
    if (!inner_taps(position, p.height, p.width, stride_y, stride_x, taps)) {
        one_by_one(position, at.y, at.x, p.height, [&](Position<float> from, int y, int x) {
            const Taps<float> all = bilinear_taps(from, p.height, p.width, stride_y, stride_x, p.padding);
            float gx = 0, gy = 0;
            for (int c = 0; c < p.channels; ++c) {
                const float grad = load(grad_out + c * p.grad_out.stride[1] + y * out_y + x * out_x);
                add_flow_gradient(grad, image + c * p.image.stride[1], all, gx, gy);
            }
            grad_flow[y * p.width + x] = gx;
            grad_flow[plane + y * p.width + x] = gy;
        });
        return;
    }
    const int rows = p.height - at.y;  // below the last the last is read again, and nothing is written
    const int from = at.y * out_y + at.x * out_x, first = at.y * p.width + at.x;
    Pack<float, N> gx[R] = {}, gy[R] = {};
#pragma unroll(N < 2 ? 2 : 1)
    for (int c = 0; c < p.channels; ++c) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const Pack<T, N> grad = load_pack<N>(grad_out + from + min(r, rows - 1) * out_y);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                add_inner_gradient(load(&grad.at[n]), image, taps[r][n], stride_x, gx[r].at[n], gy[r].at[n]);
            }
        }
        grad_out += p.grad_out.stride[1];
        image += p.image.stride[1];
    }
    store_rows(grad_flow + first, gx, p.width, rows);
    store_rows(grad_flow + plane + first, gy, p.width, rows);
}

// ---- gradient of the image, and of the flow with it ----

// A pixel whose taps are not all in the frame, all channels; grad_out, image and grad_image of its sample.
template <typename T, bool Flow>
__device__ __forceinline__ void add_edge(const WarpBackwardParams& p, Position<float> position,
                                         const T* grad_out, const T* image, float* grad_image, float& gx,
                                         float& gy) {
    const int64_t plane = int64_t(p.height) * p.width;
    const Taps<float> to = bilinear_taps(position, p.height, p.width, p.width, 1, p.padding);
    const Taps<float> from =
        bilinear_taps(position, p.height, p.width, p.image.stride[2], p.image.stride[3], p.padding);
    for (int c = 0; c < p.channels; ++c) {
        const float grad = load(grad_out + c * p.grad_out.stride[1]);
        for (int tap = 0; tap < 4; ++tap) {
            if (to.offset[tap] < 0) continue;
            atomicAdd(grad_image + c * plane + to.offset[tap], to.weight(tap) * grad);
        }
        if constexpr (Flow) add_flow_gradient(grad, image + c * p.image.stride[1], from, gx, gy);
    }
}

// A warp is 32 neighbours of a row and stays together; a lane beyond the row's end has nothing to add.
template <typename T, bool Flow>
__global__ void __launch_bounds__(256) image_gradient_kernel(WarpBackwardParams p) {
    const PackOfPixels<1, 1> at;
    if (at.y >= p.height) return;
    const bool exists = at.x < p.width;
    const int x = min(at.x, p.width - 1), lane = int(threadIdx.x);
    const int64_t plane = int64_t(p.height) * p.width;
    const T* grad_out = sample_of<T>(p.grad_out.data, at.b, p.grad_out.stride[0]) +
                        (at.y * int(p.grad_out.stride[2]) + x * int(p.grad_out.stride[3]));
    const T* image = sample_of<T>(p.image.data, at.b, p.image.stride[0]);
    float* grad_image = sample_of<float>(p.grad_image, at.b, p.channels * plane);

    Position<float> position[1][1];
    load_positions(p.flow, at.b, at.y, x, p.height, position);
    const bool inside = exists && is_inner(position[0][0], p.height, p.width);
    float gx = 0, gy = 0;
    if (exists && !inside) add_edge<T, Flow>(p, position[0][0], grad_out, image, grad_image, gx, gy);
    Inner to{-2, -2, 0.0f, 0.0f}, from{};
    if (inside) {
        to = inner_taps(position[0][0], p.width, 1);
        from = inner_taps(position[0][0], int(p.image.stride[2]), int(p.image.stride[3]));
    }
    const int before = __shfl_up_sync(kAllLanes, to.top, 1u), after = __shfl_down_sync(kAllLanes, to.top, 1u);
    const bool takes = inside && lane > 0 && before + 1 == to.top;
    const bool gives = inside && lane < 31 && after - 1 == to.top;
#pragma unroll(Flow ? 2 : 4)
    for (int c = 0; c < p.channels; ++c) {
        const float grad = inside ? gather(grad_out) : 0.0f;
        float tl = to.weight(0) * grad, bl = to.weight(2) * grad;
        const float tr = to.weight(1) * grad, br = to.weight(3) * grad;
        const float given_top = __shfl_up_sync(kAllLanes, tr, 1u);
        const float given_bottom = __shfl_up_sync(kAllLanes, br, 1u);
        if (takes) {
            tl += given_top;
            bl += given_bottom;
        }
        if (inside) {
            atomicAdd(grad_image + to.top, tl);
            atomicAdd(grad_image + to.bottom, bl);
            if (!gives) {
                atomicAdd(grad_image + to.top + 1, tr);
                atomicAdd(grad_image + to.bottom + 1, br);
            }
            if constexpr (Flow) add_inner_gradient(grad, image, from, int(p.image.stride[3]), gx, gy);
        }
        grad_out += p.grad_out.stride[1];
        image += p.image.stride[1];
        grad_image += plane;
    }
    if (Flow && exists) {
        float* grad_flow = sample_of<float>(p.grad_flow, at.b, 2 * plane) + at.y * p.width + x;
        grad_flow[0] = gx;
        grad_flow[plane] = gy;
    }
}

template <typename T>
int run(const WarpBackwardParams& p, void* stream) {
    if (p.grad_image != nullptr) {
        const auto kernel =
            p.grad_flow != nullptr ? image_gradient_kernel<T, true> : image_gradient_kernel<T, false>;
        return launch(kernel, pack_grid<1, 1>(p.batch, p.height, p.width), pixel_block(), 0, stream, p);
    }
    constexpr int N = kSpan<T>;
    const int64_t* out = p.grad_out.stride;
    if (p.image.stride[3] == 1 && out[3] == 1 && p.width % N == 0 && packs(p.flow, N) &&
        packs(p.grad_out.data, sizeof(T), N, 1, {out[0], out[1], out[2]}) &&
        packs(p.grad_flow, sizeof(float), N, 1, {p.width})) {
        return launch(flow_gradient_kernel<T, true>, pack_grid<kRows<N>, N>(p.batch, p.height, p.width),
                      pixel_block(), 0, stream, p);
    }
    return launch(flow_gradient_kernel<T, false>, pack_grid<kRows<1>, 1>(p.batch, p.height, p.width),
                  pixel_block(), 0, stream, p);
}

}  // namespace

int warp_backward_cuda(const WarpBackwardParams& p, void* stream) {
    if (p.batch == 0 || p.height == 0 || p.width == 0) return kOk;
    const bool fast =
        p.dtype != Dtype::f64 && p.flow.dtype != Dtype::f64 && p.mode == Mode::bilinear &&
        p.fixed_point == nullptr &&
        addressable(p.batch, p.height, p.width,
                    {plane_of(p.flow.stride), plane_of(p.grad_out.stride), plane_of(p.image.stride)});
    if (!fast) return warp_backward_naive_cuda(p, stream);
    if (p.grad_image == nullptr && p.grad_flow == nullptr) return kOk;
    return for_float(p.dtype, [&](auto type) { return run<decltype(type)>(p, stream); });
}

}  // namespace vda
