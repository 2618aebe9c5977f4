#include "runtime/engine/state.h"

namespace regatta {
namespace {

std::vector<StateSpec> states(const Rule& rule, DType momentum_dtype, bool elements) {
  std::vector<StateSpec> all = rule.state(momentum_dtype);
  std::erase_if(all, [&](const StateSpec& spec) { return (spec.extent == StateExtent::elements) != elements; });
  return all;
}

}  // namespace

std::vector<StateSpec> element_states(const Rule& rule, DType momentum_dtype) {
  return states(rule, momentum_dtype, true);
}
std::vector<StateSpec> matrix_states(const Rule& rule, DType momentum_dtype) {
  return states(rule, momentum_dtype, false);
}

OptimizerState::OptimizerState(const sharding::Plan& plan, int rank, std::span<const Rule* const> rule_of_param,
                               DType momentum_dtype, Device* device) {
  const std::vector<sharding::Piece>& pieces = plan.layout(rank).pieces;
  constexpr std::int64_t alignment = 64;
  std::int64_t reserved = 0;
  const auto reserve = [&](std::int64_t bytes) {
    const std::int64_t at = reserved;
    used_ += bytes;
    reserved += (bytes + alignment - 1) / alignment * alignment;
    return at;
  };
  std::vector<std::vector<std::int64_t>> offsets;
  std::vector<std::int64_t> master_offsets;
  for (const sharding::Piece& piece : pieces) {
    const std::int64_t numel = piece.part.run.size();
    PieceState state;
    offsets.emplace_back();
    for (const StateSpec& spec : element_states(*rule_of_param[piece.param], momentum_dtype)) {
      offsets.back().push_back(reserve(numel * size_of(spec.dtype)));
      state.states.push_back({spec.name, spec.dtype, nullptr});
    }
    const bool has_master = plan.params()[piece.param].dtype != DType::f32;
    master_offsets.push_back(has_master ? reserve(numel * size_of(DType::f32)) : -1);
    pieces_.push_back(std::move(state));
  }
  std::vector<std::vector<std::int64_t>> matrix_offsets;
  for (const sharding::MatrixShare& share : plan.matrices()) {
    matrix_offsets.emplace_back();
    if (share.owner != rank) continue;
    for (const StateSpec& spec : matrix_states(*rule_of_param[share.param], momentum_dtype))
      matrix_offsets.back().push_back(reserve(
          state_shape(spec.extent, plan.params()[share.param].blocks[share.block]).numel() * size_of(DType::f32)));
  }
  memory_ = Buffer(reserved, device);
  for (const std::vector<std::int64_t>& of_matrix : matrix_offsets) {
    matrices_.emplace_back();
    for (std::int64_t offset : of_matrix) matrices_.back().push_back(reinterpret_cast<float*>(memory_.data() + offset));
  }
  for (std::size_t p = 0; p < pieces_.size(); ++p) {
    for (std::size_t s = 0; s < pieces_[p].states.size(); ++s)
      pieces_[p].states[s].data = memory_.data() + offsets[p][s];
    if (master_offsets[p] >= 0) pieces_[p].master = reinterpret_cast<float*>(memory_.data() + master_offsets[p]);
  }
}

}  // namespace regatta
