// Kernels that are wrong on purpose. A sanitizer that does not catch them, run the way it is run over the
// real kernels, proves nothing by finding no fault in those. Called through ctypes by tests/gpu/selfcheck.py;
// nothing but CUDA is needed:
//     nvcc -shared -Xcompiler -fPIC -lineinfo -arch=sm_90 -o canary.so canary.cu
#include <cuda_runtime.h>

namespace vda_canary {  // "vda" is what the sanitizers are told to look at

constexpr int kThreads = 64;

// Out of bounds: the last thread writes one element past the end.
__global__ void writes_past_the_end(int* out) { out[threadIdx.x + 1] = int(threadIdx.x); }

// Reverses a block through shared memory, with the barrier that this takes or without.
template <bool kBarrier>
__global__ void reverse(int* out) {
    __shared__ int shared[kThreads];
    shared[threadIdx.x] = int(threadIdx.x);
    if (kBarrier) __syncthreads();
    out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

// Runs a kernel over kThreads ints and returns the first CUDA error; -1 if check is set and the result is not
// reversed.
int run(void (*kernel)(int*), bool check) {
    int* out = nullptr;
    int host[kThreads];
    int code = cudaMalloc(&out, sizeof(host));
    if (code != cudaSuccess) return code;
    kernel<<<1, kThreads>>>(out);
    code = cudaGetLastError();
    if (code == cudaSuccess) code = cudaMemcpy(host, out, sizeof(host), cudaMemcpyDeviceToHost);
    cudaFree(out);
    for (int i = 0; code == cudaSuccess && check && i < kThreads; ++i) {
        if (host[i] != kThreads - 1 - i) return -1;
    }
    return code;
}

}  // namespace vda_canary

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int canary_sound() { return vda_canary::run(vda_canary::reverse<true>, true); }
EXPORT int canary_racecheck() { return vda_canary::run(vda_canary::reverse<false>, false); }
EXPORT int canary_memcheck() { return vda_canary::run(vda_canary::writes_past_the_end, false); }
