// Compiles the file VDA_KERNELS once per instruction set, so that one binary runs everywhere and is fast
// where it can be: each time in a namespace of its own, with the compiler set to the set, on the vectors of
// simd.h and strip.h. A .cpp file defines VDA_KERNELS, includes this file, and calls what it has compiled
// through VDA_WIDEST, which takes the best set of the machine:
//
//     #define VDA_KERNELS "warp.simd.h"
//     #include "multiversion.h"
//     VDA_WIDEST(forward_rows<float>)(p, begin, end);
//
// The functions of VDA_KERNELS must not instantiate templates of the standard library: the linker might keep
// a copy for the wrong machine.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "confidence.h"
#include "sighting.h"

#if !defined(__GNUC__)
#error "the CPU kernels use GCC vectors: build with g++ or clang++"
#endif

#define VDA_INLINE inline __attribute__((always_inline))
#define VDA_OUTLINE __attribute__((noinline))       // the seldom case, kept out of the way of the common one
#define VDA_INLINED __attribute__((always_inline))  // of a lambda, after its parameters

#if defined(__x86_64__) && !defined(__clang__)
#define VDA_MULTIVERSION
#endif

namespace vda {

namespace baseline {
namespace {
constexpr int kBytes = 16;
#include "simd.h"
#include "strip.h"
#include VDA_KERNELS
}  // namespace
}  // namespace baseline

#if defined(VDA_MULTIVERSION)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
namespace {
constexpr int kBytes = 32;
#include "simd.h"
#include "strip.h"
#include VDA_KERNELS
}  // namespace
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
namespace avx512 {
namespace {
constexpr int kBytes = 64;
#include "simd.h"
#include "strip.h"
#include VDA_KERNELS
}  // namespace
}  // namespace avx512
#pragma GCC pop_options
#endif

// Bytes of the widest vector that this machine has. VDA_SIMD=baseline or avx2 keeps to narrower ones, which
// is how the tests reach every set.
inline int vector_bytes() {
#if defined(VDA_MULTIVERSION)
    const char* limit = std::getenv("VDA_SIMD");
    const auto limited_to = [&](const char* set) { return limit != nullptr && std::strcmp(limit, set) == 0; };
    if (limited_to("baseline")) return 16;
    if (!limited_to("avx2") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        return 64;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        return 32;
#endif
    return 16;
}

template <typename Function>
Function* widest(Function* baseline, Function* avx2, Function* avx512) {
    const int bytes = vector_bytes();
    return bytes == 64 ? avx512 : (bytes == 32 ? avx2 : baseline);
}
#if defined(VDA_MULTIVERSION)
#define VDA_WIDEST(...) \
    ::vda::widest(::vda::baseline::__VA_ARGS__, ::vda::avx2::__VA_ARGS__, ::vda::avx512::__VA_ARGS__)
#else
#define VDA_WIDEST(...) (&::vda::baseline::__VA_ARGS__)
#endif

}  // namespace vda
