// Functions that the device has an instruction for.
#pragma once

#include "common.cuh"

namespace vda {

// exp(x log 2) for x <= 0 within 2 ulp, 0 below 2^-126.
__device__ __forceinline__ float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return exp2f(x);
#endif
}

// Within 1 ulp, of numbers between 2^-126 and 2^126.
__device__ __forceinline__ float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return 1.0f / x;
#endif
}

}  // namespace vda
