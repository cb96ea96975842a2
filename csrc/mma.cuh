// Tensor cores and asynchronous copies (compute capability 8.0 and later) as functions. tests/shim/mma_shim.h
// has the same ones on the CPU. Device code for older GPUs compiles but must not run.
//
// A warp multiplies A [16 x k] by B [k x 8], k = 32 bytes of one row: 16 values of 16 bits, 8 of TF32. With
// g = lane / 4 and t = lane % 4 a lane holds
//   a[0..3]  4 bytes each, at byte 4 t (a[0], a[1]) and 16 + 4 t (a[2], a[3]) of rows g and g + 8
//   b[0..1]  4 bytes each, at byte 4 t and 16 + 4 t of column g
//   d[0..3]  rows g, g, g + 8, g + 8; columns 2 t, 2 t + 1, 2 t, 2 t + 1
#pragma once

#include "common.cuh"

#if defined(VDA_CUDA_SHIM)
#include "mma_shim.h"
#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define VDA_AMPERE(...) __trap()
#else
#define VDA_AMPERE(...) __VA_ARGS__
#endif

namespace vda {

using SharedAddress = uint32_t;  // of a byte in shared memory

__device__ __forceinline__ SharedAddress shared_address(const void* p) {
    return SharedAddress(__cvta_generic_to_shared(p));
}

// Starts to copy 16 bytes to shared memory, past L1; with a third argument zeros where they do not `exist`,
// and then they are not read.
__device__ __forceinline__ void copy_async_16(SharedAddress to, const void* from) {
    VDA_AMPERE(asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                            "l"(__cvta_generic_to_global(from)) : "memory"));
}
__device__ __forceinline__ void copy_async_16(SharedAddress to, const void* from, bool exists) {
    VDA_AMPERE(asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
                            "l"(__cvta_generic_to_global(from)), "r"(exists ? 16 : 0) : "memory"));
}
// The same with 4 bytes.
__device__ __forceinline__ void copy_async_4(SharedAddress to, const void* from, bool exists) {
    VDA_AMPERE(asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to),
                            "l"(__cvta_generic_to_global(from)), "r"(exists ? 4 : 0) : "memory"));
}
// Closes the group of the copies that this thread has started since the last one.
__device__ __forceinline__ void commit_copies() {
    VDA_AMPERE(asm volatile("cp.async.commit_group;" :: : "memory"));
}
// Waits until at most `newest` (0 to 2) of this thread's groups are under way. What other threads copied is
// there after their wait and a barrier.
__device__ __forceinline__ void wait_copies(int newest) {
    if (newest == 0) {
        VDA_AMPERE(asm volatile("cp.async.wait_group 0;" :: : "memory"));
    } else if (newest == 1) {
        VDA_AMPERE(asm volatile("cp.async.wait_group 1;" :: : "memory"));
    } else {
        VDA_AMPERE(asm volatile("cp.async.wait_group 2;" :: : "memory"));
    }
}

// Loads 16 bytes.
__device__ __forceinline__ void load_unit(uint32_t (&r)[4], SharedAddress at) {
    VDA_AMPERE(asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
                            "=r"(r[3]) : "r"(at) : "memory"));
}
// Loads four matrices of 8 rows x 16 bytes. Lane l names row l % 8 of matrix l / 8; r[i] is what lane l gets
// of matrix i: bytes 4 (l % 4) .. + 3 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], SharedAddress row) {
    VDA_AMPERE(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]),
                            "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory"));
}
// The same with each matrix transposed as 8 x 8 values of 16 bits: column l / 4, rows 2 (l % 4) and the next.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], SharedAddress row) {
    VDA_AMPERE(
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]),
                     "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory"));
}

// d += A B, the last argument only names the element type: half, bfloat16 or, for TF32, float.
#define VDA_MMA(shape)                                                                                       \
    VDA_AMPERE(asm("mma.sync.aligned." shape                                                                 \
                   " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),          \
                   "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), \
                   "r"(b1)))
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             half) {
    VDA_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             bfloat16) {
    VDA_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             float) {
    VDA_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef VDA_MMA

// fp32 rounded to TF32 (10 bits of mantissa), ties away from zero.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t bits) {
    uint32_t rounded = bits;
    VDA_AMPERE(asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "r"(bits)));
    return rounded;
}

// Two floats rounded to 16 bits, the first in the lower half.
__device__ __forceinline__ uint32_t pack_pair(float lower, float upper, half) {
    uint32_t pair = 0;
    VDA_AMPERE(asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(upper), "f"(lower)));
    return pair;
}
__device__ __forceinline__ uint32_t pack_pair(float lower, float upper, bfloat16) {
    uint32_t pair = 0;
    VDA_AMPERE(asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(upper), "f"(lower)));
    return pair;
}

// One store of 8 or 16 bytes; an assignment through uint2* may be taken apart.
__device__ __forceinline__ void store_vector(void* to, uint2 v) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(v.x), "r"(v.y)
                 : "memory");
}
__device__ __forceinline__ void store_vector(void* to, uint4 v) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

// threadIdx.x and blockIdx.x, and whatever is computed from them, without the compiler keeping it since
// before.
__device__ __forceinline__ int reread_thread_index() {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}
__device__ __forceinline__ unsigned reread_block_index() {
    unsigned index;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
    return index;
}

}  // namespace vda

#undef VDA_AMPERE
#endif
