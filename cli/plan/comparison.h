#pragma once
// The same model on the same mesh under other optimizers: what each rank sends and keeps. Exact counts of plans,
// nothing measured.

#include <string>
#include <vector>

#include "runtime/engine/memory.h"
#include "sharding/plan.h"

namespace regatta::cli {

struct RankCost {
  sharding::WireBytes wire;  ///< `exchange`: whatever the optimizer's view needs
  RankMemory memory;
  std::int64_t memory_total() const {
    return memory.parameters + memory.gradients + memory.state + memory.master + memory.matrices;
  }
};

struct Alternative {
  std::string name;
  std::vector<RankCost> ranks;
};

/// The plan as chosen, AdamW for every parameter, and REG and Muon in place of the rules that see lines or matrices.
/// Left out are those that are what was chosen; only the plan itself is left when no rule sees more than elements.
std::vector<Alternative> compare(const sharding::Plan& plan, const std::vector<Param>& params,
                                 const std::vector<Group>& groups, const EngineOptions& options);

}  // namespace regatta::cli
