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

/// Collective. Throws Error(invalid_argument) on every rank, naming the first bucket whose initial values differ within
/// the group.
void check_same_values(std::span<const std::uint64_t> bucket_hashes, std::span<const std::string> bucket_names,
                       Transport& group);

}  // namespace regatta
