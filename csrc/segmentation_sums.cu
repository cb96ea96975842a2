// The readable CUDA kernels of segmentation_sums.h: the specification, and what serves float64, more than 32
// classes and downsampling. Forward, a thread evaluates the softmax of one full-resolution pixel, and a block
// adds up one term after another. Backward, a thread owns a low-resolution pixel and evaluates the softmax of
// every full-resolution pixel that reads it, so each softmax four times. Both upsample every logit wherever
// it is needed: some 6 K interpolations a softmax. No atomics; every sum is made in a fixed order.
#include "segmentation_sums.cuh"

namespace vda {
namespace {

using Params = SegmentationSumsParams;

// The sum over a block, in the first warp: its lanes add a value of every warp each, then a tree.
template <typename A>
__device__ A block_sum(A value, A* shared) {
    __syncthreads();
    shared[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x >= 32) return value;
    for (int i = int(threadIdx.x) + 32; i < kBlockPixels; i += 32) value += shared[i];
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

template <typename T>
__global__ void sums_kernel(Params p, int64_t blocks) {
    const int64_t n = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const int64_t pixel = block * kBlockPixels + threadIdx.x;
    const bool inside = pixel < int64_t(p.height) * p.width;
    Softmax<T> s{};
    if (inside) s = softmax_at<T>(p, n, int(pixel / p.width), int(pixel % p.width));
    const int terms = terms_of(p.classes);
    for (int i = 0; i < terms; ++i) {
        const T sum = block_sum(inside ? term(s, i) : T(0), dynamic_shared<T>());
        if (threadIdx.x == 0) static_cast<T*>(p.workspace)[blockIdx.x * int64_t(terms) + i] = sum;
    }
}

// A block adds one term of one frame.
template <typename T>
__global__ void add_blocks_kernel(Params p, int64_t blocks) {
    const int terms = terms_of(p.classes), i = int(blockIdx.x % terms);
    const int64_t n = blockIdx.x / terms;
    double sum = 0;
    for (int64_t block = threadIdx.x; block < blocks; block += kBlockPixels)
        sum += double(static_cast<const T*>(p.workspace)[(n * blocks + block) * terms + i]);
    sum = block_sum(sum, dynamic_shared<double>());
    if (threadIdx.x != 0) return;
    const int sums = sums_of(p.classes);
    if (i < sums) {
        static_cast<T*>(p.sums)[n * sums + i] = T(sum);
    } else {
        p.count[n * p.classes + i - sums] = int64_t(sum);
    }
}

template <typename T>
__global__ void sums_backward_kernel(Params p) {
    const int64_t plane = int64_t(p.logit_height) * p.logit_width;
    const auto axis_y = upsampling_axis<T>(p.logit_height, p.height, p.align_corners);
    const auto axis_x = upsampling_axis<T>(p.logit_width, p.width, p.align_corners);
    for_each_index(p.batch * plane, [&](int64_t i) {
        const int64_t n = i / plane, pixel = i % plane;
        const int row = int(pixel / p.logit_width), column = int(pixel % p.logit_width);
        T* to = static_cast<T*>(p.grad_logits) + n * p.classes * plane + pixel;
        for (int k = 0; k < p.classes; ++k) to[k * plane] = T(0);
        const int y1 = first_from(axis_y, p.height, row + 1), x0 = first_from(axis_x, p.width, column - 1),
                  x1 = first_from(axis_x, p.width, column + 1);
        for (int y = first_from(axis_y, p.height, row - 1); y < y1; ++y) {
            const auto at_y = between(axis_y, y);
            const T share_y = at_y.low == row ? T(1) - at_y.share : at_y.share;
            for (int x = x0; x < x1; ++x) {
                const auto at_x = between(axis_x, x);
                const T share = share_y * (at_x.low == column ? T(1) - at_x.share : at_x.share);
                if (!(share > T(0))) continue;
                const PixelGradient<T> gradient = gradient_at<T>(p, n, y, x);
                for (int k = 0; k < p.classes; ++k) to[k * plane] += share * gradient.at(k);
            }
        }
    });
}

template <typename Body>
int for_float_or_double_only(Dtype dtype, const Body& body) {
    if (dtype == Dtype::f32) return body(float());
    return dtype == Dtype::f64 ? body(double()) : kBadDtype;
}

}  // namespace

int add_blocks(const Params& p, int64_t blocks, void* stream) {
    const int64_t grid = p.batch * terms_of(p.classes);
    if (grid == 0) return kOk;
    if (grid > INT32_MAX) return kBadSize;
    return for_float_or_double_only(p.dtype, [&](auto type) {
        return launch(add_blocks_kernel<decltype(type)>, dim3(unsigned(grid)), dim3(kBlockPixels),
                      kBlockPixels * sizeof(double), stream, p, blocks);
    });
}

int segmentation_sums_naive_cuda(const Params& p, void* stream) {
    const int64_t blocks = readable_blocks(p), grid = p.batch * blocks;
    if (grid > INT32_MAX) return kBadSize;
    const int code = grid == 0 ? kOk : for_float_or_double_only(p.dtype, [&](auto type) {
        return launch(sums_kernel<decltype(type)>, dim3(unsigned(grid)), dim3(kBlockPixels),
                      kBlockPixels * sizeof(type), stream, p, blocks);
    });
    return code != kOk ? code : add_blocks(p, blocks, stream);
}

int segmentation_sums_backward_naive_cuda(const Params& p, void* stream) {
    const int64_t pixels = p.batch * p.logit_height * p.logit_width;
    if (pixels == 0) return kOk;
    return for_float_or_double_only(p.dtype, [&](auto type) {
        return launch(sums_backward_kernel<decltype(type)>, linear_grid(pixels), linear_block(), 0, stream,
                      p);
    });
}

}  // namespace vda
