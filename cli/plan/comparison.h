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
  std::int64_t gathered = 0;  ///< bytes to put whole matrices together
  std::int64_t memory_total() const {
    return memory.parameters + memory.gradients + memory.state + memory.master + gathered;
  }
};

struct Alternative {
  std::string name;
  bool model = false;  ///< computed from a formula; no such rule is built
  std::vector<RankCost> ranks;
};

/// The plan as chosen, AdamW for every parameter, and gather-based Muon in place of the rules that see lines. The last
/// two are left out where they are what was chosen: when no rule sees lines.
std::vector<Alternative> compare(const sharding::Plan& plan, const std::vector<Param>& params,
                                 const std::vector<Group>& groups, const EngineOptions& options);

}  // namespace regatta::cli
