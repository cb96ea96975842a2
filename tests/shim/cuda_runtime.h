// CUDA on the CPU, as far as csrc/*.cu use it. Found instead of the toolkit's header of the same name, so the
// same .cu files compile with a host compiler: blocks run one after another, the threads of a block are
// fibers that switch at barriers and warp collectives. VDA_SHIM_SEED=<n> in the environment shuffles the
// order of blocks and threads (unset or 0: ascending). Misuse that hangs or corrupts on a GPU (a barrier that
// some threads never reach, a lane outside its own mask) ends the launch with an error that says so.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// One block at a time and no preemption: a static variable is what the threads of a block share.
#define __shared__ static

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

using cudaStream_t = void*;
enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
const char* cudaGetErrorString(cudaError_t code);
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor,
    cudaDevAttrMaxSharedMemoryPerBlockOptin,
};
namespace shim {
// Of a GPU with the compute capability VDA_SHIM_CAPABILITY=<10 major + minor> (unset: 90). Two
// multiprocessors: enough for a persistent grid to have a second block, few enough for a second step of each.
int attribute(cudaDeviceAttr which);
}  // namespace shim
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    return *value = shim::attribute(which), cudaSuccess;
}
enum cudaFuncAttribute { cudaFuncAttributePreferredSharedMemoryCarveout };
constexpr int cudaSharedmemCarveoutMaxShared = 100;
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

namespace shim {

int launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);
void* dynamic_shared();

// Waits for all threads of the block; returns how many gave a non-zero value.
int block_barrier(bool value);
// Waits for all lanes of the mask; returns what each of the 32 lanes gave (valid until the lane's next
// exchange).
const uint64_t* exchange(unsigned mask, uint64_t value);
unsigned lane();
unsigned lanes();  // of this warp: all 32, or fewer in the last warp of an odd block
[[noreturn]] void fail(const char* what);

template <typename T>
uint64_t pack(T value) {
    static_assert(sizeof(T) <= 8, "warp collectives move at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <typename T>
T unpack(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}
// What `from` gave, or the own value where `from` lies outside the segment of `width` lanes or the mask.
template <typename T>
T shuffle(unsigned mask, T value, int from, int width) {
    const int self = int(lane()), first = self & ~(width - 1);
    const uint64_t* all = exchange(mask, pack(value));
    const bool valid = from >= first && from < first + width;
    if (valid && !(mask >> from & 1)) fail("a shuffle reads a lane outside its mask");
    return valid ? unpack<T>(all[from]) : value;
}

}  // namespace shim

inline void __syncthreads() { shim::block_barrier(false); }
inline int __syncthreads_count(int predicate) { return shim::block_barrier(predicate != 0); }
inline int __syncthreads_or(int predicate) { return shim::block_barrier(predicate != 0) != 0; }
inline int __syncthreads_and(int predicate) { return shim::block_barrier(predicate == 0) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::exchange(mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
    return shim::shuffle(mask, value, int(shim::lane() & ~unsigned(width - 1)) + (from & (width - 1)), width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return shim::shuffle(mask, value, int(shim::lane()) - int(delta), width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return shim::shuffle(mask, value, int(shim::lane()) + int(delta), width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    return shim::shuffle(mask, value, int(shim::lane()) ^ bits, width);
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
    const uint64_t own = shim::pack(value), *all = shim::exchange(mask, own);
    unsigned same = 0;
    mask &= shim::lanes();
    for (int i = 0; i < 32; ++i) same |= unsigned((mask >> i & 1) && all[i] == own) << i;
    return same;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const uint64_t* all = shim::exchange(mask, predicate != 0);
    unsigned votes = 0;
    mask &= shim::lanes();
    for (int i = 0; i < 32; ++i) votes |= unsigned((mask >> i & 1) && all[i]) << i;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0; }

namespace shim {
template <typename T, typename Combine>
T reduce(unsigned mask, T value, T start, Combine combine) {
    const uint64_t* all = exchange(mask, pack(value));
    mask &= lanes();
    for (int i = 0; i < 32; ++i) {
        if (mask >> i & 1) start = combine(start, unpack<T>(all[i]));
    }
    return start;
}
}  // namespace shim

inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
    return shim::reduce(mask, value, 0u, [](unsigned a, unsigned b) { return a + b; });
}
inline int __reduce_add_sync(unsigned mask, int value) {
    return int(__reduce_add_sync(mask, unsigned(value)));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
    return shim::reduce(mask, value, 0u, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline int __reduce_max_sync(unsigned mask, int value) {
    return shim::reduce(mask, value, std::numeric_limits<int>::min(),
                        [](int a, int b) { return a > b ? a : b; });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
    return shim::reduce(mask, value, ~0u, [](unsigned a, unsigned b) { return a < b ? a : b; });
}
inline int __reduce_min_sync(unsigned mask, int value) {
    return shim::reduce(mask, value, std::numeric_limits<int>::max(),
                        [](int a, int b) { return a < b ? a : b; });
}

// Atomics: fibers never switch inside one. Signed sums wrap on a GPU, hence the unsigned arithmetic.
namespace shim {
template <typename T, typename U>
T atomic(T* at, U update) {
    const T old = *at;
    *at = T(update(old));
    return old;
}
}  // namespace shim

#define VDA_SHIM_ATOMIC(name, type, result)                            \
    inline type name(type* at, type value) {                           \
        return shim::atomic(at, [value](type old) { return result; }); \
    }
VDA_SHIM_ATOMIC(atomicAdd, int, unsigned(old) + unsigned(value))
VDA_SHIM_ATOMIC(atomicAdd, unsigned, old + value)
VDA_SHIM_ATOMIC(atomicAdd, unsigned long long, old + value)
VDA_SHIM_ATOMIC(atomicAdd, float, old + value)
VDA_SHIM_ATOMIC(atomicAdd, double, old + value)
VDA_SHIM_ATOMIC(atomicSub, int, unsigned(old) - unsigned(value))
VDA_SHIM_ATOMIC(atomicSub, unsigned, old - value)
VDA_SHIM_ATOMIC(atomicMax, int, old > value ? old : value)
VDA_SHIM_ATOMIC(atomicMax, unsigned, old > value ? old : value)
VDA_SHIM_ATOMIC(atomicMax, long long, old > value ? old : value)
VDA_SHIM_ATOMIC(atomicMax, unsigned long long, old > value ? old : value)
VDA_SHIM_ATOMIC(atomicMin, int, old < value ? old : value)
VDA_SHIM_ATOMIC(atomicMin, unsigned, old < value ? old : value)
VDA_SHIM_ATOMIC(atomicMin, long long, old < value ? old : value)
VDA_SHIM_ATOMIC(atomicMin, unsigned long long, old < value ? old : value)
VDA_SHIM_ATOMIC(atomicAnd, unsigned, old& value)
VDA_SHIM_ATOMIC(atomicOr, unsigned, old | value)
VDA_SHIM_ATOMIC(atomicXor, unsigned, old ^ value)
VDA_SHIM_ATOMIC(atomicExch, int, value)
VDA_SHIM_ATOMIC(atomicExch, unsigned, value)
VDA_SHIM_ATOMIC(atomicExch, unsigned long long, value)
VDA_SHIM_ATOMIC(atomicExch, float, value)
#undef VDA_SHIM_ATOMIC
template <typename T>
T atomicCAS(T* at, T expected, T value) {
    return shim::atomic(at, [=](T old) { return old == expected ? value : old; });
}

#define VDA_SHIM_VECTOR(type, name)                                                         \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                \
    struct alignas(sizeof(type) == 8 ? 16 : 4 * sizeof(type)) name##4 { type x, y, z, w; }; \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                        \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
VDA_SHIM_VECTOR(float, float)
VDA_SHIM_VECTOR(double, double)
VDA_SHIM_VECTOR(int, int)
VDA_SHIM_VECTOR(unsigned, uint)
VDA_SHIM_VECTOR(unsigned char, uchar)
VDA_SHIM_VECTOR(unsigned short, ushort)
#undef VDA_SHIM_VECTOR

template <typename T>
T __ldg(const T* p) {
    return *p;
}
template <typename T>
void __stcs(T* p, T value) {
    *p = value;
}
template <typename T>
constexpr T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
    return a < b ? b : a;
}
inline float __uint_as_float(unsigned bits) { return shim::unpack<float>(bits); }
inline unsigned __float_as_uint(float value) { return unsigned(shim::pack(value)); }
inline float __int_as_float(int bits) { return shim::unpack<float>(unsigned(bits)); }
inline int __float_as_int(float value) { return int(shim::pack(value)); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// Byte i of the result is byte number (selector >> 4 i & 7) of y:x.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t both = uint64_t(y) << 32 | x;
    unsigned bytes = 0;
    for (int i = 0; i < 4; ++i) bytes |= unsigned(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return bytes;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
