#pragma once
// Launching a kernel from a list of tiles; included by .cu files only.

#include <cuda_runtime.h>

#include "kernels/cuda/quads.cuh"

namespace regatta::kernels::cuda {

template <class Args>
int launch(void (*kernel)(Args), const Args& args, std::int64_t blocks, int threads, StreamHandle stream,
           int cluster = 1, std::int64_t shared_bytes = 0) {
  if (blocks == 0) return 0;
  const auto answer = [](cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();  // the next to ask is not to hear of this one
    return error;
  };
  if (shared_bytes > 0) {
    const cudaError_t set =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (set != cudaSuccess) return answer(set);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return answer(cudaLaunchKernelEx(&config, kernel, args));
}

/// body.operator()<Types>() with the dtypes known at compile time for the usual three, at run time for all others.
template <class Body>
int with_types(Dtypes d, const Body& body) {
  const auto is = [&](DType grad, DType momentum, DType param) {
    return d.grad == grad && d.momentum == momentum && d.param == param;
  };
  if (is(DType::f32, DType::f32, DType::f32))
    return body.template operator()<FixedTypes<DType::f32, DType::f32, DType::f32>>();
  if (is(DType::f32, DType::f32, DType::bf16))
    return body.template operator()<FixedTypes<DType::f32, DType::f32, DType::bf16>>();
  if (is(DType::bf16, DType::f32, DType::bf16))
    return body.template operator()<FixedTypes<DType::bf16, DType::f32, DType::bf16>>();
  return body.template operator()<AnyTypes>();
}

}  // namespace regatta::kernels::cuda
