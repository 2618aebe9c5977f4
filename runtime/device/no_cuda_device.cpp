// Stands in for CUDA devices in a build without CUDA.

#include "runtime/device/device.h"
#include "runtime/error.h"

namespace regatta {

bool cuda_is_built_in() { return false; }
int cuda_device_count() { return 0; }

std::shared_ptr<Device> open_cuda_device(int) {
  throw Error(Code::invalid_argument, "a CUDA device was asked for, but this build has no CUDA; expected device cpu");
}

}  // namespace regatta
