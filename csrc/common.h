// What every kernel shares: element types, error codes, and the few macros that let one function be
// compiled for the host, for the device, and for the CUDA-on-CPU shim of the tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// VDA_HD: per-pixel arithmetic that the CPU kernel and the CUDA kernel share. Always inlined on the host, so
// that it is compiled for the instruction set of the function that calls it (multiversion.h).
#if defined(__CUDACC__)
#define VDA_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define VDA_HD inline __attribute__((always_inline))
#else
#define VDA_HD inline
#endif

namespace vda {

constexpr int kMaxLanes = 16;  // floats in the widest vector of the CPU kernels

// What a launcher returns: 0, one of these, or (positive) a cudaError_t.
constexpr int kOk = 0;
constexpr int kBadDtype = -1;  // no kernel is compiled for this element type
constexpr int kBadSize = -2;   // a size that the kernel or the grid cannot hold

enum class Dtype : int32_t { f32, f16, bf16, f64, i16 };  // i16: flow only, in tenths of a pixel

// Storage only: every kernel converts to float, accumulates in float and rounds once on the way out. Own
// types instead of cuda_fp16.h, so that host compilers without a CUDA toolkit build the same source.
struct half {
    uint16_t bits;
};
struct bfloat16 {
    uint16_t bits;
};

// Calls body(T()) with the type of the elements and returns what it returns; kBadDtype for any other.
template <typename Body>
int for_float(Dtype dtype, const Body& body) {
    switch (dtype) {
        case Dtype::f32:
            return body(float());
        case Dtype::f16:
            return body(half());
        case Dtype::bf16:
            return body(bfloat16());
        default:
            return kBadDtype;
    }
}
template <typename Body>
int for_float_or_double(Dtype dtype, const Body& body) {
    return dtype == Dtype::f64 ? body(double()) : for_float(dtype, body);
}

template <typename T>
VDA_HD constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

template <typename To, typename From>
VDA_HD To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

VDA_HD float to_float(half h) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(h.bits));
    return value;
#else
    const uint32_t magnitude = uint32_t(h.bits & 0x7fffu) << 13;
    // The exponent bias differs by 112; one multiplication is exact for normal and subnormal numbers alike.
    uint32_t bits = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 5.192296858534828e33f);
    if (magnitude >= 0x0f800000u) bits = magnitude | 0x7f800000u;  // infinity, NaN
    return bit_cast<float>(bits | (uint32_t(h.bits & 0x8000u) << 16));
#endif
}

VDA_HD float to_float(bfloat16 b) { return bit_cast<float>(uint32_t(b.bits) << 16); }

VDA_HD half to_half(float value) {  // round to nearest, ties to even
#if defined(__CUDA_ARCH__)
    half h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(value));
    return h;
#else
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t h;
    if (magnitude >= 0x47800000u) {  // 65536 and above, infinity, NaN
        h = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: the spacing of floats around 0.5 is half's 2^-24
        h = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        h = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    return {uint16_t(sign | h)};
#endif
}

VDA_HD bfloat16 to_bfloat16(float value) {  // round to nearest, ties to even
    const uint32_t bits = bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t((bits >> 16) | 0x40u)};
    return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Acc<T>: what T is accumulated in.
template <typename T>
struct AccOf {
    using type = float;
};
template <>
struct AccOf<double> {
    using type = double;
};
template <typename T>
using Acc = typename AccOf<T>::type;

VDA_HD float load(const float* p) { return *p; }
VDA_HD double load(const double* p) { return *p; }
VDA_HD float load(const half* p) { return to_float(*p); }
VDA_HD float load(const bfloat16* p) { return to_float(*p); }
VDA_HD float load(const int16_t* p) { return float(*p); }
VDA_HD float load(const uint8_t* p) { return float(*p); }

VDA_HD void store(float* p, float value) { *p = value; }
VDA_HD void store(double* p, double value) { *p = value; }
VDA_HD void store(half* p, float value) { *p = to_half(value); }
VDA_HD void store(bfloat16* p, float value) { *p = to_bfloat16(value); }

VDA_HD constexpr int size_of(Dtype dtype) { return dtype == Dtype::f64 ? 8 : (dtype == Dtype::f32 ? 4 : 2); }

// Strided arrays; strides count elements.
struct View {  // [B, C, H, W]
    const void* data;
    int64_t stride[4];
};
struct LabelView {  // [B, H, W]; data may be null where the array is optional
    const uint8_t* data;
    int64_t stride[3];

    VDA_HD const uint8_t* row(int64_t b, int y) const { return data + b * stride[0] + y * stride[1]; }
    VDA_HD uint8_t at(int64_t b, int y, int x) const { return row(b, y)[x * stride[2]]; }
};

// J views that lie `step` elements apart: an array [B, J, ...] as the [B, ...] of each j.
template <typename V>
struct Stack {
    V first;
    int64_t step;
};

// Sample b of view j as a pointer.
template <typename T>
VDA_HD const T* nth(const Stack<View>& stack, int j, int64_t b) {
    return static_cast<const T*>(stack.first.data) + j * stack.step + b * stack.first.stride[0];
}

}  // namespace vda
