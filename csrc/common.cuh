// What every CUDA kernel shares. Kernels are never launched with <<< >>> but through launch(), so that the
// same .cu files also compile with a host compiler against tests/shim/cuda_runtime.h.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "common.h"

namespace vda {

#if defined(VDA_CUDA_SHIM)

template <typename... P, typename... A>
int launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void*, A&&... args) {
    return shim::launch(grid, block, shared_bytes, [&] { kernel(args...); });
}

template <typename T>
T* dynamic_shared() {
    return reinterpret_cast<T*>(shim::dynamic_shared());
}

#else

namespace detail {
template <typename Tuple, size_t... I>
int launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Tuple& args,
           std::index_sequence<I...>) {
    void* pointers[] = {&std::get<I>(args)...};
    return cudaLaunchKernel(kernel, grid, block, pointers, shared_bytes, stream);
}
}  // namespace detail

// Launches kernel(args...) on the stream (a cudaStream_t) and returns the error of the launch itself; no
// wait.
template <typename... P, typename... A>
int launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void* stream, A&&... args) {
    const void* entry = reinterpret_cast<const void*>(kernel);
    if (shared_bytes > 48 * 1024) {  // above this a kernel has to ask
        const int code =
            cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
        if (code != cudaSuccess) return (void)cudaGetLastError(), code;
    }
    std::tuple<P...> values(std::forward<A>(args)...);
    const int code = detail::launch(entry, grid, block, shared_bytes, static_cast<cudaStream_t>(stream),
                                    values, std::index_sequence_for<P...>());
    if (code != cudaSuccess)
        (void)cudaGetLastError();  // reported here, so the next call must not see it again
    return code;
}

// The block's dynamic shared memory (the shared_bytes of launch), 16-byte aligned, not initialised.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char vda_dynamic_shared[];
    return reinterpret_cast<T*>(vda_dynamic_shared);
}

#endif

constexpr int kMaxGridYZ = 65535;

// One thread per pixel of n images: a warp covers 32 neighbours along x (coalesced), blocks of 32 x 8.
inline dim3 pixel_block() { return dim3(32, 8, 1); }
inline dim3 pixel_grid(int64_t n, int height, int width) {
    return dim3(unsigned(ceil_div(width, 32)), unsigned(std::min(ceil_div(height, 8), kMaxGridYZ)),
                unsigned(std::min<int64_t>(n, kMaxGridYZ)));
}

// Calls body(b, y, x) for every pixel that is this thread's share of a pixel_grid(n, height, width).
template <typename Body>
__device__ __forceinline__ void for_each_pixel(int64_t n, int height, int width, const Body& body) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= width) return;
    for (int64_t b = blockIdx.z; b < n; b += gridDim.z) {
        for (int y = blockIdx.y * blockDim.y + threadIdx.y; y < height; y += gridDim.y * blockDim.y) {
            body(b, y, x);
        }
    }
}

// One-dimensional: grid for n items, and the loop over this thread's share of them.
inline dim3 linear_block() { return dim3(256, 1, 1); }
inline dim3 linear_grid(int64_t n, int64_t max_blocks = 1 << 16) {
    return dim3(unsigned(std::min<int64_t>(ceil_div<int64_t>(n, 256), max_blocks)), 1, 1);
}
template <typename Body>
__device__ __forceinline__ void for_each_index(int64_t n, const Body& body) {
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) body(i);
}

}  // namespace vda
