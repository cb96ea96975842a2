// SIMD by multiversioning for kernels whose inner loop is a register tile. The tile is a template on GCC
// vectors of `Bytes` bytes, always inlined, hence compiled for the instruction set of the function it ends up
// in: one function per set, marked VDA_AVX2 or VDA_AVX512. (VDA_CLONES of common.h is for loops that the
// compiler vectorises by itself.)
#pragma once

#include <cstdlib>
#include <string>

#if !defined(__GNUC__)
#error "the CPU kernels use GCC vectors: build with g++ or clang++"
#endif

#define VDA_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__)
#define VDA_AVX2 __attribute__((target("avx2,fma")))
#define VDA_AVX512 __attribute__((target("avx512f,fma")))
#else
#define VDA_AVX2
#define VDA_AVX512
#endif

namespace vda {

// A vector of `Bytes` bytes, and the same vector at any element's address.
template <typename A, int Bytes>
struct Lanes {
    typedef A vector __attribute__((vector_size(Bytes)));
    typedef A unaligned __attribute__((vector_size(Bytes), aligned(sizeof(A)), may_alias));
    static constexpr int count = Bytes / sizeof(A);
};

constexpr int kMaxLanes = 16;  // floats in the widest vector

// Bytes of the widest vector that this machine has: 64 (AVX-512), 32 (AVX2), else 16. VDA_SIMD=baseline or
// avx2 keeps to narrower ones, which is how the tests reach every set.
inline int vector_bytes() {
#if defined(__x86_64__)
    const char* wanted = std::getenv("VDA_SIMD");
    const std::string limit = wanted != nullptr ? wanted : "";
    if (limit.empty() && __builtin_cpu_supports("avx512f")) return 64;
    if (limit != "baseline" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 32;
#endif
    return 16;
}

}  // namespace vda
