// Kernels that test the shim itself, called from tests/test_shim.py through plain C functions.
#include "common.cuh"
#include "mma.cuh"

namespace {

using vda::launch;

// Warp shuffles, shared memory, a barrier and an atomic: the sum of n doubles.
__global__ void block_sum(const double* in, int n, double* out) {
    __shared__ double partial[32];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    double sum = i < n ? in[i] : 0.0;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0;
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (threadIdx.x == 0) atomicAdd(out, sum);
    }
}

// Every thread reads what another wrote before the barrier, twice over the same memory.
__global__ void reverse(int* data) {
    int* shared = vda::dynamic_shared<int>();
    int* mine = data + blockIdx.x * blockDim.x;
    shared[threadIdx.x] = mine[threadIdx.x];
    __syncthreads();
    const int other = shared[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
    shared[threadIdx.x] = 2 * other;
    __syncthreads();
    mine[threadIdx.x] = shared[threadIdx.x] / 2;
}

// Per thread: inclusive prefix sum over its 8 lanes, ballot of odd values, lanes with the same value, block
// count.
__global__ void votes(const int* in, int* out) {
    const int n = blockDim.x, i = threadIdx.x;
    int prefix = in[i];
    for (int step = 1; step < 8; step *= 2) {
        const int before = __shfl_up_sync(0xffffffffu, prefix, step, 8);
        if (i % 8 >= step) prefix += before;
    }
    out[i] = prefix;
    out[n + i] = int(__ballot_sync(0xffffffffu, in[i] & 1));
    out[2 * n + i] = int(__match_any_sync(0xffffffffu, in[i]));
    out[3 * n + i] = __syncthreads_count(in[i] > 2);
    out[4 * n + i] = __shfl_sync(0xffffffffu, in[i], 5);
    out[5 * n + i] = __reduce_max_sync(0xffffffffu, in[i]);
    // Half warps on their own: the two masks meet independently.
    const unsigned half = i % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
    out[6 * n + i] = __any_sync(half, in[i] == 7) + 2 * __all_sync(half, in[i] < 7);
}

__global__ void tickets(unsigned* counter, unsigned* out) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(counter, 1u);
}

__global__ void atomics(const int* in, int n, int* out) {
    vda::for_each_index(n, [&](int64_t i) {
        atomicAdd(out, in[i]);
        atomicMax(out + 1, in[i]);
        atomicMin(out + 2, in[i]);
        atomicOr(reinterpret_cast<unsigned*>(out + 3), 1u << (in[i] & 31));
        int seen = out[4];  // a sum by compare and swap
        while (atomicCAS(out + 4, seen, seen + in[i]) != seen) seen = out[4];
    });
}

__global__ void fresh_shared(int* out) {
    out[threadIdx.x] = vda::dynamic_shared<unsigned char>()[threadIdx.x];
}

// out[lane][i] and out[32 + lane][i]: what the lane gets of matrix i, plain and transposed, when lane l names
// the 16 bytes at row[l].
__global__ void matrices(const unsigned char* bytes, int n, const int* row, uint32_t* out) {
    unsigned char* shared = vda::dynamic_shared<unsigned char>();
    for (int i = threadIdx.x; i < n; i += blockDim.x) shared[i] = bytes[i];
    __syncthreads();
    const vda::SharedAddress at = vda::shared_address(shared) + row[threadIdx.x];
    uint32_t r[4];
    vda::load_matrices(r, at);
    for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = r[i];
    vda::load_matrices_transposed(r, at);
    for (int i = 0; i < 4; ++i) out[4 * (32 + threadIdx.x) + i] = r[i];
}

// d += A B^T, A [16][8] and B [8][8] words of 4 bytes, every warp for itself.
template <typename T>
__global__ void product(const uint32_t* a, const uint32_t* b, float* d) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
    const uint32_t left[4] = {a[8 * g + t], a[8 * (g + 8) + t], a[8 * g + 4 + t], a[8 * (g + 8) + 4 + t]};
    float* to[4];
    float sums[4];
    for (int i = 0; i < 4; ++i) {
        to[i] = d + 128 * warp + 8 * (g + i / 2 * 8) + 2 * t + i % 2;
        sums[i] = *to[i];
    }
    vda::multiply_add(sums, left, b[8 * g + t], b[8 * g + 4 + t], T());
    for (int i = 0; i < 4; ++i) *to[i] = sums[i];
}

// Two groups of copies, of what `exists` says, read back (by the neighbour, after a barrier) with at most
// `newest` groups under way.
__global__ void copies(const float* from, const int* exists, int newest, float* out) {
    float* shared = vda::dynamic_shared<float>();
    const int i = threadIdx.x, n = blockDim.x;
    vda::copy_async_16(vda::shared_address(shared + 4 * i), from + 4 * i, exists[i] != 0);
    vda::commit_copies();
    vda::copy_async_4(vda::shared_address(shared + 4 * n + i), from + i, exists[i] != 0);
    vda::commit_copies();
    vda::wait_copies(newest);
    __syncthreads();
    const int other = (i + 1) % n;
    for (int k = 0; k < 4; ++k) out[4 * i + k] = shared[4 * other + k];
    out[4 * n + i] = shared[4 * n + other];
    __syncthreads();
    vda::wait_copies(0);
}

__global__ void rounded(const float* in, uint32_t* out) {
    const int i = threadIdx.x;
    out[4 * i] = vda::round_to_tf32(__float_as_uint(in[i]));
    out[4 * i + 1] = vda::pack_pair(in[i], -in[i], vda::half());
    out[4 * i + 2] = vda::pack_pair(in[i], -in[i], vda::bfloat16());
    out[4 * i + 3] = 0;
}

__global__ void copies_without_a_wait(const float* from) {
    vda::copy_async_4(vda::shared_address(vda::dynamic_shared<float>() + threadIdx.x), from, true);
    vda::commit_copies();
}
__global__ void copies_without_a_group(const float* from) {
    vda::copy_async_4(vda::shared_address(vda::dynamic_shared<float>() + threadIdx.x), from, true);
    vda::wait_copies(0);
}
__global__ void copy_to_an_odd_place(const float* from) {
    vda::copy_async_16(vda::shared_address(vda::dynamic_shared<float>() + 1), from, true);
}
__global__ void half_the_block_waits() {
    if (threadIdx.x < blockDim.x / 2) __syncthreads();
}
__global__ void half_the_warp_returns() {
    if (threadIdx.x % 32 < 16) return;
    __syncwarp();
}
__global__ void lane_outside_its_mask() { __ballot_sync(1u, 1); }
__global__ void reads_outside_shared(int* out) {
    __shared__ int shared[32];
    shared[threadIdx.x] = int(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x + 1];
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* error_text() { return cudaGetErrorString(cudaErrorLaunchFailure); }
EXPORT int run_block_sum(const double* in, int n, int threads, double* out) {
    return launch(block_sum, dim3(unsigned((n + threads - 1) / threads)), dim3(unsigned(threads)), 0, nullptr,
                  in, n, out);
}
EXPORT int run_reverse(int* data, int blocks, int threads) {
    return launch(reverse, dim3(unsigned(blocks)), dim3(unsigned(threads)), size_t(threads) * sizeof(int),
                  nullptr, data);
}
EXPORT int run_votes(const int* in, int* out, int threads) {
    return launch(votes, dim3(1), dim3(unsigned(threads)), 0, nullptr, in, out);
}
EXPORT int run_tickets(unsigned* counter, unsigned* out, int blocks, int threads) {
    return launch(tickets, dim3(unsigned(blocks)), dim3(unsigned(threads)), 0, nullptr, counter, out);
}
EXPORT int run_atomics(const int* in, int n, int* out) {
    return launch(atomics, dim3(2), dim3(64), 0, nullptr, in, n, out);
}
EXPORT int run_fresh_shared(int* out) { return launch(fresh_shared, dim3(1), dim3(16), 16, nullptr, out); }
EXPORT int run_matrices(const unsigned char* bytes, int n, const int* row, uint32_t* out) {
    return launch(matrices, dim3(1), dim3(32), size_t(n), nullptr, bytes, n, row, out);
}
EXPORT int run_product(int type, const uint32_t* a, const uint32_t* b, float* d) {
    const auto kernel =
        type == 0 ? product<float> : (type == 1 ? product<vda::half> : product<vda::bfloat16>);
    return launch(kernel, dim3(1), dim3(64), 0, nullptr, a, b, d);
}
EXPORT int run_copies(const float* from, const int* exists, int newest, float* out, int threads) {
    return launch(copies, dim3(1), dim3(unsigned(threads)), size_t(threads) * 20, nullptr, from, exists,
                  newest, out);
}
EXPORT int run_rounded(const float* in, uint32_t* out, int n) {
    return launch(rounded, dim3(1), dim3(unsigned(n)), 0, nullptr, in, out);
}
EXPORT int run_misuse(int which, int* out) {
    alignas(16) static const float zeros[4] = {};
    switch (which) {
        case 4:
            return launch(copies_without_a_wait, dim3(1), dim3(8), 32, nullptr, zeros);
        case 5:
            return launch(copies_without_a_group, dim3(1), dim3(8), 32, nullptr, zeros);
        case 6:
            return launch(copy_to_an_odd_place, dim3(1), dim3(1), 32, nullptr, zeros);
        case 0:
            return launch(half_the_block_waits, dim3(1), dim3(64), 0, nullptr);
        case 1:
            return launch(half_the_warp_returns, dim3(1), dim3(32), 0, nullptr);
        case 2:
            return launch(lane_outside_its_mask, dim3(1), dim3(32), 0, nullptr);
        case 3:
            return launch(lane_outside_its_mask, dim3(1), dim3(2048), 0, nullptr);
        default:
            return launch(reads_outside_shared, dim3(1), dim3(32), 0, nullptr, out);
    }
}
