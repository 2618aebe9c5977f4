#pragma once
// The optimizer state of one rank: what the rules keep for its pieces, fp32 master weights of 16-bit parameters, and
// the small states of the matrices that it owns.

#include <span>
#include <string>
#include <vector>

#include "runtime/device/buffer.h"
#include "runtime/rules/rule.h"
#include "sharding/plan.h"

namespace regatta {

class OptimizerState {
 public:
  struct Tensor {
    std::string name;
    DType dtype = DType::f32;
    std::byte* data = nullptr;
  };

  OptimizerState(const sharding::Plan& plan, int rank, std::span<const Rule* const> rule_of_param, DType momentum_dtype,
                 Device* device = nullptr);

  /// States of StateExtent::elements of a piece, in the order of Rule::state.
  std::span<const Tensor> tensors(int piece) const { return pieces_[piece].states; }
  /// Master weights of a piece; null when its parameter is fp32.
  float* master(int piece) const { return pieces_[piece].master; }
  /// The other states of a matrix of Plan::matrices(), fp32, likewise; empty unless this rank owns it.
  std::span<float* const> of_matrix(int matrix) const { return matrices_[matrix]; }
  std::int64_t bytes() const { return used_; }
  /// All of it, on the device or the host; the tensors lie in it.
  const Buffer& memory() const { return memory_; }

 private:
  struct PieceState {
    std::vector<Tensor> states;
    float* master = nullptr;
  };
  std::vector<PieceState> pieces_;
  std::vector<std::vector<float*>> matrices_;
  Buffer memory_;
  std::int64_t used_ = 0;
};

/// The states of a rule with the given kind of extent, in their order.
std::vector<StateSpec> element_states(const Rule& rule, DType momentum_dtype);
std::vector<StateSpec> matrix_states(const Rule& rule, DType momentum_dtype);

}  // namespace regatta
