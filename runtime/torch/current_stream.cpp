#include "runtime/torch/current_stream.h"

#include <ATen/Context.h>
#include <c10/cuda/CUDAStream.h>

namespace regatta {

void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
void synchronize_current_stream() {
  if (at::hasCUDA()) c10::cuda::getCurrentCUDAStream().synchronize();
}

}  // namespace regatta
