#pragma once
// The tensor-parallel peers of a rank, and the two autograd functions that a decoder split over them needs.
//
// All ranks of the group must call everything here at the same point with tensors of the same shape: forward passes
// over the same batch do, and so do their backward passes, as autograd visits equal graphs in the same order. Sums are
// balanced trees in rank order, in fp32, so every rank gets the same bits. Collectives block; they share the
// communication thread of the transport they were split from. One per rank, used by its thread.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>

#include "runtime/transport/transport.h"
#include "sharding/mesh.h"

namespace regatta::finetune {

class TensorGroup {
 public:
  /// Collective over `root`, the transport of all ranks of the mesh.
  static std::shared_ptr<TensorGroup> make(Transport& root, const sharding::Mesh& mesh);
  /// A group of one: nothing travels.
  static std::shared_ptr<TensorGroup> alone();

  ~TensorGroup();
  TensorGroup(const TensorGroup&) = delete;
  TensorGroup& operator=(const TensorGroup&) = delete;

  int rank() const { return transport_ ? transport_->rank() : 0; }
  int size() const { return transport_ ? transport_->world_size() : 1; }

  /// Before linears cut by rows: x, and in backward the sum of the peers' gradients of it.
  at::Tensor spread(const at::Tensor& x);
  /// After linears cut by columns: the sum of the peers' x, and in backward the gradient as it is.
  at::Tensor sum(const at::Tensor& x);
  /// The elementwise largest of the peers' x (fp32); takes no part in backward.
  at::Tensor largest(const at::Tensor& x);
  /// Everybody's tensor on rank 0, by rank; empty on the others. Of one element type, of any sizes known to all.
  std::vector<at::Tensor> gather(const at::Tensor& mine, const std::vector<std::vector<std::int64_t>>& sizes,
                                 std::string_view label);

  /// The sum of the peers' x as a new tensor, outside autograd.
  at::Tensor reduce(const at::Tensor& x, std::string_view label);

 private:
  explicit TensorGroup(std::unique_ptr<Transport> transport) : transport_(std::move(transport)) {}
  using Combine = void (*)(std::span<const float* const> pieces, std::int64_t count, float* out);
  at::Tensor combine(const at::Tensor& x, Combine combine, std::string_view label);

  std::unique_ptr<Transport> transport_;  // null in a group of one
  SymmetricBuffer buffer_;                // grown to the largest tensor seen
  std::vector<std::int64_t> bounds_;
};

}  // namespace regatta::finetune
