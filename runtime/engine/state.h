#pragma once
// The optimizer state of one rank: what the rules keep for its pieces, and fp32 master weights of 16-bit parameters.

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

  /// States of a piece, in the order of Rule::state.
  std::span<const Tensor> tensors(int piece) const { return pieces_[piece].states; }
  /// Master weights of a piece; null when its parameter is fp32.
  float* master(int piece) const { return pieces_[piece].master; }
  std::int64_t bytes() const { return used_; }
  /// All of it, on the device or the host; the tensors lie in it.
  const Buffer& memory() const { return memory_; }

 private:
  struct PieceState {
    std::vector<Tensor> states;
    float* master = nullptr;
  };
  std::vector<PieceState> pieces_;
  Buffer memory_;
  std::int64_t used_ = 0;
};

}  // namespace regatta
