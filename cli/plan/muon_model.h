#pragma once
// What a gather-based Muon would send and keep under a plan, for comparison. Muon sees a matrix as a whole: every rank
// that holds a piece of it sends its piece of the momentum to one owner, and the owner returns each piece of the
// update. docs/views.md has the formula. A model: no such rule is built here.

#include <cstdint>
#include <vector>

#include "sharding/plan.h"

namespace regatta::cli {

struct MatrixGather {
  std::vector<std::int64_t> sent;      ///< bytes, by rank: momentum to owners, updates back to holders
  std::vector<std::int64_t> gathered;  ///< bytes, by rank: the largest matrix it must put together
  std::int64_t matrices = 0;           ///< that are seen whole, replicas counted once each
  std::int64_t open = 0;               ///< of them, those that lie on several ranks
};

/// Of the blocks that the plan's rules see by lines. An owner is one of a matrix's holders: the largest matrices are
/// dealt out first, each to the holder with the fewest elements so far. `payload`: bytes of an element of momentum and
/// of update.
MatrixGather gather_matrices(const sharding::Plan& plan, std::int64_t payload);

}  // namespace regatta::cli
