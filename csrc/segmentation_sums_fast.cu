// CUDA kernels of segmentation_sums.h for float32, up to 32 classes, and logits of no more rows and columns
// than the labels have.
//
// A block owns a tile of 128 x 16 full-resolution pixels, a thread one column of it, which it walks down. The
// logits of a column at the two low-resolution rows around the pixel are interpolated along x once and stay
// in registers until the walk passes the lower one; each pixel interpolates along y, and has its K
// exponentials in registers too. Forward, P^2 adds up in registers and what belongs to the label of a pixel
// in shared memory, where a thread has a column of its own. Backward, what a pixel hands back adds up in
// registers, weighted along y, until a low-resolution row is complete; the columns of the tile are then added
// through shared memory and go to the workspace, from where a second kernel collects the at most four tiles
// that a low-resolution pixel lies under. No atomics; every sum is made in a fixed order.
//
// Per pixel with K = 15 and logits at 1/8, counted in the PTX code for 9.0: forward 15 ex2, 14 instructions a
// class and some 70 besides, 280 in all; backward 26 a class, 490 in all, 35 of them to add up the columns; 1
// byte of device memory for the label and about 1 for the logits. For two frames of 512 x 1024 on 132
// multiprocessors at 1.83 GHz that is 10 us of issue slots (4 warps a clock) forward and 17 us backward,
// against 0.5 us of device memory at 4.3 TB/s: arithmetic is the bound. Registers (128 and 168) leave room
// for four and three blocks a multiprocessor. No GPU has timed them yet.
#include "fast_math.cuh"
#include "segmentation_sums.cuh"

namespace vda {
namespace {

using Params = SegmentationSumsParams;

constexpr int kColumns = 128, kRows = 16;  // of a tile
constexpr int kPitch = kColumns + 1;       // threads that read different classes then meet different banks
constexpr int kMostClasses = 32;
constexpr float kLog2e = 1.44269504f, kLog2 = 0.693147181f;
constexpr unsigned kAll = 0xffffffffu;

// What a launch hands to its blocks beside the parameters.
struct Work {
    Params p;
    Axis axis_y, axis_x;
    int across, down;   // tiles of a frame
    int rows, columns;  // low-resolution pixels under a tile, at most
};

struct Tile {
    int64_t n;
    int y0, y1, x0, x1;
};

__device__ Tile tile_of(const Work& work) {
    const int in_frame = int(blockIdx.x % unsigned(work.across * work.down));
    const int y = in_frame / work.across * kRows, x = in_frame % work.across * kColumns;
    return {int64_t(blockIdx.x) / (work.across * work.down), y, min(y + kRows, work.p.height), x,
            min(x + kColumns, work.p.width)};
}

// Calls body(k) for every class; there are kLeast to kMost, so that nearly all calls need no test.
template <int kLeast, int kMost, typename Body>
__device__ __forceinline__ void for_classes(int classes, const Body& body) {
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
        if (k < kLeast || k < classes) body(k);
    }
}

// A column of full-resolution pixels that is walked down.
template <int kLeast, int kMost>
struct Column {
    const float* logits;  // of the frame
    Between x;
    int row;                          // low-resolution row that `top` holds
    float top[kMost], bottom[kMost];  // logits times log2(e), at this row and the next
    float exponent[kMost];            // of the pixel, less their maximum
    float power[kMost];

    __device__ Column(const Work& work, const Tile& tile, int column)
        : logits(static_cast<const float*>(work.p.logits) +
                 tile.n * work.p.classes * work.p.logit_height * work.p.logit_width),
          x(between(work.axis_x, min(column, work.p.width - 1))),
          row(-2) {}

    __device__ __forceinline__ void load(const Params& p, int from, float* to) {
        const int64_t plane = int64_t(p.logit_height) * p.logit_width;
        const float* line = logits + int64_t(from) * p.logit_width;
        for_classes<kLeast, kMost>(p.classes, [&](int k) {
            to[k] = kLog2e * mixed(line[k * plane + x.low], line[k * plane + x.high], x.share);
        });
    }

    __device__ __forceinline__ void move_to(const Params& p, const Between& y) {
        if (y.low == row) return;
        if (y.low == row + 1) {
#pragma unroll
            for (int k = 0; k < kMost; ++k) top[k] = bottom[k];
        } else {
            load(p, y.low, top);
        }
        load(p, y.high, bottom);
        row = y.low;
    }

    // Evaluates a pixel; sum, total and mean as in Softmax, but to the base 2 and the mean not divided.
    __device__ __forceinline__ void evaluate(const Params& p, float share, float& sum, float& total,
                                             float& mean) {
        float most = -INFINITY;
        for_classes<kLeast, kMost>(p.classes, [&](int k) {
            exponent[k] = mixed(top[k], bottom[k], share);
            most = fmaxf(most, exponent[k]);
        });
        sum = total = mean = 0.0f;
        for_classes<kLeast, kMost>(p.classes, [&](int k) {
            exponent[k] -= most;
            power[k] = power_of_two(exponent[k]);
            sum += power[k];
            total += exponent[k];
            mean += power[k] * bounded(exponent[k]);
        });
    }

    // Minus infinity times no probability is 0; what is no number is none in the power either.
    static __device__ __forceinline__ float bounded(float exponent) { return fmaxf(exponent, -126.0f); }
};

// ---- forward ----

// Adds a pixel: own [3], square [K] in registers; overlap in shared memory, whose planes [kColumns] are
// classes, those of the counts K planes of squares later.
template <int kLeast, int kMost>
__device__ __forceinline__ void add_pixel(const Params& p, Column<kLeast, kMost>& column, float share,
                                          int label, float own[3], float square[kMost], float* overlap) {
    const int K = p.classes;
    float sum, total, mean;
    column.evaluate(p, share, sum, total, mean);
    const float inverse = reciprocal(sum), log_sum = log2f(sum);
    if (label == kUnlabelled) own[kEntropy] += log_sum - mean * inverse;
    if (label < 0 || label >= K) return;
    float exponent = 0.0f;
    for_classes<kLeast, kMost>(K, [&](int k) {
        const float probability = column.power[k] * inverse;
        square[k] += probability * probability;
        exponent = k == label ? column.exponent[k] : exponent;
    });
    own[kCrossEntropy] += log_sum - exponent;
    own[kUniform] += log_sum - total / float(K);
    overlap[label * kColumns] += power_of_two(exponent) * inverse;
    overlap[(2 * K + label) * kColumns] += 1.0f;
}

template <int kLeast, int kMost>
__global__ void __launch_bounds__(kColumns) sums_tile_kernel(Work work) {
    const Params& p = work.p;
    const int K = p.classes, terms = terms_of(K), lane = int(threadIdx.x) % 32;
    const Tile tile = tile_of(work);
    const int x = tile.x0 + int(threadIdx.x);
    float* shared = dynamic_shared<float>();  // [terms, kColumns]
    float* mine = shared + threadIdx.x;
    for (int i = 0; i < terms; ++i) mine[i * kColumns] = 0.0f;

    float own[3] = {}, square[kMost] = {};
    Column<kLeast, kMost> column(work, tile, x);
    for (int y = tile.y0; y < tile.y1; ++y) {
        const Between at = between(work.axis_y, y);
        column.move_to(p, at);
        const int label = x < tile.x1 ? p.label.at(tile.n, y, x) : -1;
        add_pixel(p, column, at.share, label, own, square, mine + kOverlap * kColumns);
    }
    for (int i = 0; i < kOverlap; ++i) mine[i * kColumns] = kLog2 * own[i];
    for_classes<kLeast, kMost>(K, [&](int k) { mine[(kOverlap + K + k) * kColumns] = square[k]; });
    __syncthreads();

    float* to = static_cast<float*>(p.workspace) + blockIdx.x * int64_t(terms);
    for (int i = int(threadIdx.x) / 32; i < terms; i += kColumns / 32) {  // a warp, one term
        float sum = 0.0f;
        for (int c = lane; c < kColumns; c += 32) sum += shared[i * kColumns + c];
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
        if (lane == 0) to[i] = sum;
    }
}

// ---- backward ----

// Shared memory of a block.
struct Shared {
    float* plane;  // [K, kPitch], gradients of the columns for one low-resolution row
    float* share;  // [kColumns], of the high source column
    float* grad;   // [sums_of(K)], of the frame
    int* first;    // [columns + 2], columns of the tile from source column `low` - 1, `low`, .. on
    int low;       // the first source column under the tile

    __device__ Shared(const Work& work, const Tile& tile) {
        const int K = work.p.classes;
        plane = dynamic_shared<float>();
        share = plane + K * kPitch;
        grad = share + kColumns;
        first = reinterpret_cast<int*>(grad + sums_of(K));
        low = between(work.axis_x, tile.x0).low;
        share[threadIdx.x] = between(work.axis_x, min(tile.x0 + int(threadIdx.x), work.p.width - 1)).share;
        const float* from = static_cast<const float*>(work.p.grad) + tile.n * sums_of(K);
        for (int i = threadIdx.x; i < sums_of(K); i += kColumns) grad[i] = from[i];
        for (int c = threadIdx.x; c < work.columns + 2; c += kColumns) {
            const int x = first_from(work.axis_x, work.p.width, low - 1 + c);
            first[c] = min(max(x, tile.x0), tile.x1) - tile.x0;
        }
        __syncthreads();
    }
    static size_t bytes(const Work& work) {
        const int K = work.p.classes;
        return (K * kPitch + kColumns + sums_of(K) + work.columns + 2) * sizeof(float);
    }
};

// The gradient with respect to the upsampled logits of a pixel, in place of the powers of its column.
template <int kLeast, int kMost>
__device__ __forceinline__ void differentiate(const Params& p, Column<kLeast, kMost>& column, float share,
                                              int label, const float* grad) {
    const int K = p.classes;
    const float *by_overlap = grad + kOverlap, *by_square = by_overlap + K;
    float sum, total, mean;
    column.evaluate(p, share, sum, total, mean);
    const float inverse = reciprocal(sum);
    if (label < 0 || label >= K) {
        const float sharp = label == kUnlabelled ? kLog2 * grad[kEntropy] : 0.0f, middle = mean * inverse;
        for_classes<kLeast, kMost>(K, [&](int k) {
            column.power[k] *= inverse * sharp * (middle - column.bounded(column.exponent[k]));
        });
        return;
    }
    float slopes = 0.0f;  // what dL/dP is on average under P
    for_classes<kLeast, kMost>(K, [&](int k) {
        const float probability = column.power[k] * inverse;
        const float slope = 2.0f * by_square[k] * probability + (k == label ? by_overlap[label] : 0.0f);
        column.exponent[k] = slope;
        column.power[k] = probability;
        slopes += probability * slope;
    });
    const float constant = grad[kCrossEntropy] + grad[kUniform] - slopes, even = grad[kUniform] / float(K);
    for_classes<kLeast, kMost>(K, [&](int k) {
        column.power[k] = column.power[k] * (constant + column.exponent[k]) - even -
                          (k == label ? grad[kCrossEntropy] : 0.0f);
    });
}

// Adds the columns up, to [columns, K], and forgets them.
template <int kLeast, int kMost>
__device__ __forceinline__ void finish_row(const Work& work, const Shared& shared, float sums[kMost],
                                           float* to) {
    const int K = work.p.classes;
    __syncthreads();  // the row before has been read
    for_classes<kLeast, kMost>(K, [&](int k) { shared.plane[k * kPitch + threadIdx.x] = sums[k]; });
    __syncthreads();
    for (int i = threadIdx.x; i < K * work.columns; i += kColumns) {
        const int c = i / K;
        const float* line = shared.plane + i % K * kPitch;
        float sum = 0.0f;
        for (int x = shared.first[c]; x < shared.first[c + 1]; ++x)
            sum += shared.share[x] > 0.0f ? shared.share[x] * line[x] : 0.0f;
        for (int x = shared.first[c + 1]; x < shared.first[c + 2]; ++x)
            sum += (1.0f - shared.share[x]) * line[x];
        to[i] = sum;
    }
}

// workspace [tiles, rows, columns, K]
template <int kLeast, int kMost>
__global__ void __launch_bounds__(kColumns) sums_backward_tile_kernel(Work work) {
    const Params& p = work.p;
    const int K = p.classes;
    const Tile tile = tile_of(work);
    const Shared shared(work, tile);
    const int x = tile.x0 + int(threadIdx.x);
    const int64_t step = int64_t(work.columns) * K;
    float* to = static_cast<float*>(p.workspace) + blockIdx.x * work.rows * step;

    float here[kMost] = {}, next[kMost] = {};  // of the low-resolution row `row`, and the one after it
    int row = between(work.axis_y, tile.y0).low;
    Column<kLeast, kMost> column(work, tile, x);
    for (int y = tile.y0; y < tile.y1; ++y) {
        const Between at = between(work.axis_y, y);
        for (; row < at.low; ++row, to += step) {
            finish_row<kLeast, kMost>(work, shared, here, to);
#pragma unroll
            for (int k = 0; k < kMost; ++k) {
                here[k] = next[k];
                next[k] = 0.0f;
            }
        }
        column.move_to(p, at);
        const int label = x < tile.x1 ? p.label.at(tile.n, y, x) : -1;
        differentiate(p, column, at.share, label, shared.grad);
        for_classes<kLeast, kMost>(K, [&](int k) {
            here[k] += (1.0f - at.share) * column.power[k];
            next[k] += at.share > 0.0f ? at.share * column.power[k] : 0.0f;
        });
    }
    finish_row<kLeast, kMost>(work, shared, here, to);
    if (row < work.axis_y.last) finish_row<kLeast, kMost>(work, shared, next, to + step);
}

// A thread, one value of the gradient.
__global__ void collect_tiles_kernel(Work work) {
    const Params& p = work.p;
    const int64_t plane = int64_t(p.logit_height) * p.logit_width;
    for_each_index(p.batch * p.classes * plane, [&](int64_t i) {
        const int row = int(i / p.logit_width % p.logit_height), column = int(i % p.logit_width);
        const int k = int(i / plane % p.classes);
        const int64_t frame = i / plane / p.classes * work.down;
        const int y0 = first_from(work.axis_y, p.height, row - 1),
                  y1 = first_from(work.axis_y, p.height, row + 1),
                  x0 = first_from(work.axis_x, p.width, column - 1),
                  x1 = first_from(work.axis_x, p.width, column + 1);
        float sum = 0.0f;
        for (int ty = y0 / kRows; ty * kRows < y1; ++ty) {
            const int r = row - between(work.axis_y, ty * kRows).low;
            for (int tx = x0 / kColumns; tx * kColumns < x1; ++tx) {
                const int c = column - between(work.axis_x, tx * kColumns).low;
                const int64_t tile = (frame + ty) * work.across + tx;
                sum += static_cast<const float*>(
                    p.workspace)[((tile * work.rows + r) * work.columns + c) * p.classes + k];
            }
        }
        static_cast<float*>(p.grad_logits)[i] = sum;
    });
}

// ---- launching ----

Work work_of(const Params& p) {
    const Axis axis_y = upsampling_axis(p.logit_height, p.height, p.align_corners);
    const Axis axis_x = upsampling_axis(p.logit_width, p.width, p.align_corners);
    return {p,
            axis_y,
            axis_x,
            ceil_div(p.width, kColumns),
            ceil_div(p.height, kRows),
            pixels_under(axis_y, kRows),
            pixels_under(axis_x, kColumns)};
}

int64_t tiles(const Work& work) { return work.p.batch * work.across * work.down; }

bool serves(const Work& work) {
    const Params& p = work.p;
    return p.dtype == Dtype::f32 && p.classes <= kMostClasses && !no_pixels(p) &&
           p.logit_height <= p.height && p.logit_width <= p.width &&
           std::max(p.logit_height, p.logit_width) <= kMostUpsampled && tiles(work) > 0 &&
           tiles(work) <= INT32_MAX;
}

// Calls body(kernel number) with the least and most classes of the kernel that serves K of them.
template <typename Body>
int for_kernel(int classes, const Body& body) {
    if (classes <= 8) return body(std::integer_sequence<int, 1, 8>());
    if (classes <= 16) return body(std::integer_sequence<int, 9, 16>());
    if (classes <= 20) return body(std::integer_sequence<int, 17, 20>());
    return body(std::integer_sequence<int, 21, kMostClasses>());
}

template <int kLeast, int kMost>
int launch_forward(const Work& work, std::integer_sequence<int, kLeast, kMost>, void* stream) {
    return launch(sums_tile_kernel<kLeast, kMost>, dim3(unsigned(tiles(work))), dim3(kColumns),
                  size_t(terms_of(work.p.classes)) * kColumns * sizeof(float), stream, work);
}
template <int kLeast, int kMost>
int launch_backward(const Work& work, std::integer_sequence<int, kLeast, kMost>, void* stream) {
    return launch(sums_backward_tile_kernel<kLeast, kMost>, dim3(unsigned(tiles(work))), dim3(kColumns),
                  Shared::bytes(work), stream, work);
}

}  // namespace

int64_t segmentation_sums_workspace_cuda(const Params& p) {  // of the readable kernel too
    const int64_t blocks = std::max(p.batch * readable_blocks(p), tiles(work_of(p)));
    return blocks * terms_of(p.classes) * size_of(p.dtype);
}

int64_t segmentation_sums_backward_workspace_cuda(const Params& p) {
    const Work work = work_of(p);
    return serves(work) ? tiles(work) * work.rows * work.columns * p.classes * int64_t(sizeof(float)) : 0;
}

int segmentation_sums_cuda(const Params& p, void* stream) {
    const Work work = work_of(p);
    if (!serves(work)) return segmentation_sums_naive_cuda(p, stream);
    const int code =
        for_kernel(p.classes, [&](auto classes) { return launch_forward(work, classes, stream); });
    return code != kOk ? code : add_blocks(p, int64_t(work.across) * work.down, stream);
}

int segmentation_sums_backward_cuda(const Params& p, void* stream) {
    const Work work = work_of(p);
    if (!serves(work)) return segmentation_sums_backward_naive_cuda(p, stream);
    const int code =
        for_kernel(p.classes, [&](auto classes) { return launch_backward(work, classes, stream); });
    if (code != kOk) return code;
    const int64_t values = p.batch * p.classes * p.logit_height * p.logit_width;
    return launch(collect_tiles_kernel, linear_grid(values), linear_block(), 0, stream, work);
}

}  // namespace vda
