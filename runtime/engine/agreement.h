#pragma once
// Checks at start-up that all ranks are about to do the same thing.

#include <cstdint>
#include <span>
#include <string>

#include "runtime/transport/transport.h"
#include "sharding/plan.h"

namespace regatta {

/// Collective. Throws Error(invalid_argument) on every rank with the first line in which a plan differs from rank 0's.
void check_same_plan(const sharding::Plan& plan, Transport& world);

/// Collective. Throws Error(invalid_argument) on every rank, naming the first parameter whose initial values differ
/// between ranks that hold replicas of it: dp peers, unless the trainer shards over dp, and ranks along axes that do
/// not cut it. `param_hashes`: of this rank's local values, by parameter.
void check_same_values(const sharding::Plan& plan, std::span<const std::uint64_t> param_hashes, Transport& world);

}  // namespace regatta
