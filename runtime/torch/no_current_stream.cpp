// Stands in where LibTorch has no CUDA: no module can be on a CUDA device then.

#include "runtime/error.h"
#include "runtime/torch/current_stream.h"

namespace regatta {

void* current_stream() {
  throw Error(Code::invalid_argument, "the engine is on a CUDA device, but this program's LibTorch has no CUDA");
}
void synchronize_current_stream() {}

}  // namespace regatta
