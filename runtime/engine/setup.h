#pragma once
// From the trainer's description to a plan: checks the call and asks the rules for their views.

#include <vector>

#include "runtime/engine/engine.h"

namespace regatta {

/// Throws Error(invalid_argument) naming the parameter or option, its value and what was expected.
sharding::Plan make_plan(const std::vector<Param>& params, const std::vector<Group>& groups, const sharding::Mesh& mesh,
                         const EngineOptions& options);

/// The ranks whose gradients are added to `rank`'s: its dp peers, or itself alone when the trainer shards.
std::vector<int> reduction_group(const sharding::Mesh& mesh, int rank, Mode mode);

}  // namespace regatta
