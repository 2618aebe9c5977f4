#include "kernels/cuda/update_columns.cuh"

#include "kernels/cuda/launch.h"

namespace regatta::kernels::cuda {

int update_columns(const UpdateColumns& args, StreamHandle stream) {
  const UpdateColumnsArgs kernel_args{args.common, args.strip};
  return with_types(args.common.dtypes, [&]<class Types>() {
    return launch(update_columns_kernel<Types>, kernel_args, args.common.tile_count * args.cluster, strip_threads,
                  stream, args.cluster, args.shared_bytes);
  });
}

}  // namespace regatta::kernels::cuda
