#include "runtime/engine/memory.h"

#include <algorithm>
#include <bit>

#include "runtime/engine/gradients.h"
#include "runtime/engine/matrix_exchange.h"
#include "runtime/engine/state.h"

namespace regatta {

RankMemory memory_of(const sharding::Plan& plan, int rank, const std::vector<Param>& params,
                     const std::vector<Group>& groups, const EngineOptions& options) {
  RankMemory memory;
  std::vector<const Rule*> rules;
  for (const Param& param : params) rules.push_back(groups[param.group].rule.get());
  const sharding::RankLayout& layout = plan.layout(rank);
  const bool zero2 = options.mode == Mode::zero2;
  const int me = options.mode == Mode::sharded ? 0 : plan.mesh().coordinate(rank, "dp");
  const bool alone = options.mode == Mode::sharded || plan.mesh().size("dp") == 1;
  const std::int64_t levels =
      options.accumulation == Accumulation::tree ? std::bit_width(static_cast<unsigned>(options.micro_batches)) - 1 : 0;
  std::int64_t largest = 0;
  for (const sharding::BucketLayout& bucket : layout.buckets) {
    const sharding::ParamSpec& first = plan.params()[bucket.entries.front().param];
    const std::int64_t chunk_bytes = bucket.chunk(me).size() * size_of(DType::f32);
    const DType wire = plan.options().accumulates_in_f32 ? DType::f32 : first.grad_dtype;
    memory.parameters += bucket.numel * size_of(first.dtype);
    largest = std::max(largest, bucket.numel * size_of(wire));
    if (zero2) {
      memory.gradients += chunk_bytes * (options.micro_batches > 1 ? 2 + levels : 1);
    } else {
      memory.gradients += bucket.numel * (size_of(wire) + levels * size_of(DType::f32));
      if (!alone && wire != DType::f32) memory.gradients += chunk_bytes;
    }
  }
  if (zero2) memory.gradients += Gradients::staging_slots * largest;
  for (const sharding::Piece& piece : layout.pieces) {
    const std::int64_t numel = piece.part.run.size();
    for (const StateSpec& spec : element_states(*rules[piece.param], options.momentum_dtype))
      memory.state += numel * size_of(spec.dtype);
    if (plan.params()[piece.param].dtype != DType::f32) memory.master += numel * size_of(DType::f32);
  }
  for (const sharding::MatrixShare& share : plan.matrices()) {
    if (share.owner != rank) continue;
    const MatrixShape block = plan.params()[share.param].blocks[share.block];
    for (const StateSpec& spec : matrix_states(*rules[share.param], options.momentum_dtype))
      memory.state += state_shape(spec.extent, block).numel() * size_of(spec.dtype);
  }
  memory.matrices = matrix_exchange_bytes(plan, rank, rules);
  return memory;
}

}  // namespace regatta
