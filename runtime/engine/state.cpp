#include "runtime/engine/state.h"

namespace regatta {

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
    for (const StateSpec& spec : rule_of_param[piece.param]->state(momentum_dtype)) {
      offsets.back().push_back(reserve(numel * size_of(spec.dtype)));
      state.states.push_back({spec.name, spec.dtype, nullptr});
    }
    const bool has_master = plan.params()[piece.param].dtype != DType::f32;
    master_offsets.push_back(has_master ? reserve(numel * size_of(DType::f32)) : -1);
    pieces_.push_back(std::move(state));
  }
  memory_ = Buffer(reserved, device);
  for (std::size_t p = 0; p < pieces_.size(); ++p) {
    for (std::size_t s = 0; s < pieces_[p].states.size(); ++s)
      pieces_[p].states[s].data = memory_.data() + offsets[p][s];
    if (master_offsets[p] >= 0) pieces_[p].master = reinterpret_cast<float*>(memory_.data() + master_offsets[p]);
  }
}

}  // namespace regatta
