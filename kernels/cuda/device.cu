// What this build and this device can do.

#include <cuda_runtime.h>

#include "kernels/cuda/cuda_kernels.h"

namespace regatta::kernels::cuda {

bool built() { return true; }

std::string error_text(int code) {
  const auto error = static_cast<cudaError_t>(code);
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

int device_limits(DeviceLimits& limits) {
  int device = 0, major = 0, minor = 0, shared = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  ask(major, cudaDevAttrComputeCapabilityMajor);
  ask(minor, cudaDevAttrComputeCapabilityMinor);
  ask(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(processors, cudaDevAttrMultiProcessorCount);
  // 8 blocks is what every whole device with clusters takes; a slice of one may take fewer, and its launches then say
  // so.
  if (error == cudaSuccess) limits = {10 * major + minor, major >= 9 ? 8 : 1, shared, processors};
  return error;
}

}  // namespace regatta::kernels::cuda
