#include "device.h"

#include "common.cuh"

namespace vda {

const char* cuda_error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int cuda_device_count(int* count) {
    *count = 0;
    const int code = cudaGetDeviceCount(count);
    if (code != cudaSuccess) (void)cudaGetLastError();
    return code;
}

}  // namespace vda
