#pragma once
// Whole matrices: which rank puts each of them together, and what travels between it and the ranks that hold parts.
//
// A matrix goes to one of its holders. Matrices are dealt out wave by wave in the order they are computed; within a
// wave the most work comes first, each matrix to the holder with the least work so far, over all waves.

#include <cstdint>
#include <span>
#include <vector>

#include "sharding/placement.h"
#include "sharding/view.h"

namespace regatta::sharding {

/// Multiply-adds of one Newton-Schulz step on a block: two products with the long side and one of the short side,
/// 2 k^2 l + k^3 with k = min(m, n), l = max(m, n). Only proportions matter.
double newton_schulz_work(MatrixShape block);

struct MatrixTask {
  double work = 0;
  std::vector<int> holders;  ///< ascending, one or more
  int wave = 0;
};

/// The owner of each task. Requires ascending waves and holders in [0, ranks).
std::vector<int> assign_owners(std::span<const MatrixTask> tasks, int ranks);

/// Lines of the block that a part's message speaks of: the rows its run touches, all columns of its rectangle.
Range message_rows(const BlockPart& part);
Range message_columns(const BlockPart& part);

/// Bytes of a part's elements in a message, rounded up to a multiple of 4 so that what follows is aligned.
std::int64_t element_section(const View& view, const BlockPart& part);
/// Payload bytes for one part: its holder's to the owner, and the owner's answer.
std::int64_t bytes_to_owner(const View& view, const BlockPart& part);
std::int64_t bytes_from_owner(const View& view, const BlockPart& part);

}  // namespace regatta::sharding
