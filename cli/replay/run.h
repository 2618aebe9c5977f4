#pragma once
// One rank of a replay: gives its engine the recorded parameters, state and gradients as this rank would have them,
// steps, and gathers the whole tensors back on rank 0.

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/replay/case.h"
#include "runtime/engine/engine.h"

namespace regatta {
class Transport;
}

namespace regatta::cli {

struct ReplayOptions {
  sharding::Mesh mesh;
  EngineOptions engine;
  double lr = 1e-3;
  int steps = 0;
  std::vector<Group> groups;
  /// By parameter, in the order of ReplayCase::names.
  std::vector<int> group_of;
  std::vector<sharding::Placement> placement_of;
  std::vector<std::vector<std::int64_t>> blocks_of;
};

struct ReplayResult {
  std::map<std::string, WholeTensor> tensors;  ///< param.NAME and state.STATE.NAME; on rank 0 only
  StepReport last;
  std::int64_t step = 0;
  sharding::WireBytes planned;   ///< per step, of this rank
  sharding::WireBytes counted;   ///< of the last step
  bool bytes_as_planned = true;  ///< on all ranks
  std::int64_t state_bytes = 0;  ///< of this rank
};

/// Throws Error(invalid_argument) on what replay() would refuse before its first step. Not collective.
void check_replay(const ReplayCase& recorded, const ReplayOptions& options);

/// Collective.
ReplayResult replay(const ReplayCase& recorded, const ReplayOptions& options, Transport& transport);

}  // namespace regatta::cli
