#include "kernels/cuda/reduce.cuh"

#include "kernels/cuda/launch.h"

namespace regatta::kernels::cuda {

int reduce_tree(const ReduceTree& args, StreamHandle stream) {
  return launch(reduce_tree_kernel, args, args.tile_count, block_threads, stream);
}

int cast(const Cast& args, StreamHandle stream) {
  return launch(cast_kernel, args, args.tile_count, block_threads, stream);
}

}  // namespace regatta::kernels::cuda
