#include "kernels/cuda/update_rows.cuh"

#include "kernels/cuda/launch.h"

namespace regatta::kernels::cuda {

int update_rows(const UpdateRows& args, StreamHandle stream) {
  return with_types(args.common.dtypes, [&]<class Types>() {
    return launch(update_rows_kernel<Types>, args.common, args.common.tile_count * args.cluster, block_threads, stream,
                  args.cluster);
  });
}

int update_long_rows(const RegLaunch& args, StreamHandle stream) {
  return with_types(args.dtypes, [&]<class Types>() {
    return launch(update_long_rows_kernel<Types>, args, args.tile_count, block_threads, stream);
  });
}

}  // namespace regatta::kernels::cuda
