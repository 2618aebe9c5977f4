#pragma once
// What a rank must remember under a plan, predicted without allocating it.

#include <cstdint>
#include <vector>

#include "runtime/engine/engine.h"

namespace regatta {

/// Bytes on one rank.
struct RankMemory {
  std::int64_t parameters = 0;
  std::int64_t gradients = 0;  ///< buckets or staging, accumulation levels, the reduced chunk
  std::int64_t state = 0;      ///< what the rules keep
  std::int64_t master = 0;     ///< fp32 copies of 16-bit parameters
  std::int64_t matrices = 0;   ///< messages of whole matrices, and what their owner works in
};

RankMemory memory_of(const sharding::Plan& plan, int rank, const std::vector<Param>& params,
                     const std::vector<Group>& groups, const EngineOptions& options);

}  // namespace regatta
