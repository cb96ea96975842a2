// Transposes features of any layout to the channels-last one that the fast kernels read 16 bytes at a time.
//
// A block moves 32 words along x (64 pixels of 16 bits, 32 of 32 bits) by 8 units of 16 bytes along the
// channels: 8 KB (4 KB) in, in runs of 128 bytes, through shared memory, and out in runs of 128 bytes.
#include "correlation_plan.cuh"

namespace vda {
namespace {

constexpr int kThreads = 256, kWords = 32, kUnits = 8;

struct PackJob {
    View from;
    uint4* to;  // [B][H][W][units]
    int64_t batch;
    int channels, height, width, units;
    int columns, layers;  // tiles along x and along the channels
    bool whole_words;     // rows are dense, even and aligned: 32 bits per load
};

// T: as many bits as an element has.
template <typename T>
__global__ void __launch_bounds__(kThreads) correlation_pack_kernel(PackJob job) {
    constexpr int per_word = 4 / sizeof(T), per_unit = 16 / sizeof(T), channels = kUnits * per_unit;
    __shared__ uint32_t staged[channels][kWords + 1];
    int64_t block = blockIdx.x;
    const int x0 = int(block % job.columns) * kWords * per_word;
    block /= job.columns;
    const int y = int(block % job.height);
    block /= job.height;
    const int layer = int(block % job.layers), c0 = layer * channels;
    const int64_t b = block / job.layers;
    const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int64_t* stride = job.from.stride;
    const T* row = static_cast<const T*>(job.from.data) + b * stride[0] + y * stride[2];

    if (job.whole_words) {
        const int x = x0 + lane * per_word;
        uint32_t word[channels / 8];
#pragma unroll
        for (int i = 0; i < channels / 8; ++i) {
            const int c = c0 + 8 * i + warp;
            const bool exists = c < job.channels && x < job.width;
            word[i] = exists ? *reinterpret_cast<const uint32_t*>(row + c * stride[1] + x) : 0;
        }
#pragma unroll
        for (int i = 0; i < channels / 8; ++i) staged[8 * i + warp][lane] = word[i];
    } else {
        // Neighbouring lanes along whichever of c and x is dense.
        constexpr int pixels = kWords * per_word;
        const bool along_channels = stride[1] == 1;
        for (int i = thread; i < channels * pixels; i += kThreads) {
            const int at_c = along_channels ? i % channels : i / pixels;
            const int at_x = along_channels ? i / channels : i % pixels;
            const int c = c0 + at_c, x = x0 + at_x;
            const bool exists = c < job.channels && x < job.width;
            reinterpret_cast<T*>(staged[at_c])[at_x] = exists ? row[c * stride[1] + x * stride[3]] : T(0);
        }
    }
    __syncthreads();

    const int u = thread % kUnits, column = thread / kUnits, unit = layer * kUnits + u;
    if (unit >= job.units) return;
    uint4* to = job.to + ((b * job.height + y) * job.width + x0 + column * per_word) * job.units + unit;
    uint32_t v[per_unit];
#pragma unroll
    for (int i = 0; i < per_unit; ++i) v[i] = staged[u * per_unit + i][column];
    const int x = x0 + column * per_word;
    if constexpr (per_word == 1) {
        if (x < job.width) *to = make_uint4(v[0], v[1], v[2], v[3]);
    } else {
        uint32_t first[4], second[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            first[i] = (v[2 * i] & 0xffffu) | v[2 * i + 1] << 16;
            second[i] = v[2 * i] >> 16 | (v[2 * i + 1] & 0xffff0000u);
        }
        if (x < job.width) *to = make_uint4(first[0], first[1], first[2], first[3]);
        if (x + 1 < job.width) to[job.units] = make_uint4(second[0], second[1], second[2], second[3]);
    }
}

template <typename T>
int pack(PackJob job, void* stream) {
    constexpr int per_word = 4 / sizeof(T);
    job.columns = ceil_div(job.width, kWords * per_word);
    job.layers = ceil_div(job.units, kUnits);
    job.whole_words = job.from.stride[3] == 1 || job.width == 1;
    if (per_word == 2) {
        const auto even = [&](int64_t n) { return n % 2 == 0; };
        const int64_t* stride = job.from.stride;
        job.whole_words = job.whole_words && even(job.width) && even(stride[0]) && even(stride[1]) &&
                          even(stride[2]) && reinterpret_cast<uintptr_t>(job.from.data) % 4 == 0;
    }
    const int64_t blocks = job.batch * job.layers * job.height * job.columns;
    if (blocks > INT32_MAX) return kBadSize;
    return launch(correlation_pack_kernel<T>, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, job);
}

}  // namespace

int correlation_pack(const CorrelationParams& p, const View& from, void* to, void* stream) {
    PackJob job{};
    job.from = from, job.to = static_cast<uint4*>(to), job.batch = p.batch, job.channels = p.channels;
    job.height = p.height, job.width = p.width, job.units = units_per_pixel(p);
    return size_of(p.dtype) == 2 ? pack<uint16_t>(job, stream) : pack<uint32_t>(job, stream);
}

}  // namespace vda
