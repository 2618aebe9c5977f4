#include "kernels/cuda/flat.cuh"

#include "kernels/cuda/launch.h"

namespace regatta::kernels::cuda {

int apply(const RegLaunch& args, StreamHandle stream) {
  Dtypes dtypes = args.dtypes;
  dtypes.grad = DType::f32;  // not read here
  return with_types(
      dtypes, [&]<class Types>() { return launch(apply_kernel<Types>, args, args.tile_count, block_threads, stream); });
}

int adamw(const Adamw& args, StreamHandle stream) {
  return with_types(args.dtypes, [&]<class Types>() {
    return launch(adamw_kernel<Types>, args, args.tile_count, block_threads, stream);
  });
}

}  // namespace regatta::kernels::cuda
