// What the binding asks about the GPU.
#pragma once

namespace vda {

const char* cuda_error_text(int code);  // of a cudaError_t
int cuda_device_count(int* count);      // cudaError_t; an absent or old driver is an error, not a crash

}  // namespace vda
