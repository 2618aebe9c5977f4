#include "kernels/cuda/observe.cuh"

#include "kernels/cuda/launch.h"

namespace regatta::kernels::cuda {
namespace {

template <class Types, bool update, bool magnitudes>
int start(const Observe& args, StreamHandle stream) {
  const ObserveKernelArgs kernel_args{args.common, args.earlier_count};
  return launch(args.line == Line::row ? observe_rows_kernel<Types, update, magnitudes>
                                       : observe_columns_kernel<Types, update, magnitudes>,
                kernel_args, args.common.tile_count, block_threads, stream);
}

}  // namespace

int observe(const Observe& args, StreamHandle stream) {
  if (args.earlier_count > 0)
    return args.magnitudes ? start<AnyTypes, false, true>(args, stream) : start<AnyTypes, false, false>(args, stream);
  if (args.magnitudes) return start<AnyTypes, true, true>(args, stream);
  Dtypes dtypes = args.common.dtypes;
  dtypes.param = DType::f32;  // not read here
  if (dtypes.grad == DType::f32 && dtypes.momentum == DType::f32)
    return start<FixedTypes<DType::f32, DType::f32, DType::f32>, true, false>(args, stream);
  return start<AnyTypes, true, false>(args, stream);
}

}  // namespace regatta::kernels::cuda
