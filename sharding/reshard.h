#pragma once
// Where the elements of a part lie in its block, and which of them make up another part: the maths of loading anything
// onto any mesh.

#include <cstdint>
#include <span>
#include <vector>

#include "sharding/placement.h"

namespace regatta::sharding {

/// Consecutive elements of a part that are also consecutive in the row-major block.
struct Stretch {
  std::int64_t in_block = 0;
  std::int64_t in_part = 0;
  std::int64_t count = 0;
  bool operator==(const Stretch&) const = default;
};

/// All elements of `part`, ascending in both. `block_cols`: width of the whole block.
std::vector<Stretch> stretches(const BlockPart& part, std::int64_t block_cols);

struct Copy {
  int source = 0;  ///< index into the sources
  std::int64_t from = 0;
  std::int64_t to = 0;
  std::int64_t count = 0;
  bool operator==(const Copy&) const = default;
};

/// The copies that fill `target` from parts of the same block; elements that no source holds are not copied, those of
/// several sources come from the first.
std::vector<Copy> reshard(std::span<const BlockPart> sources, const BlockPart& target, std::int64_t block_cols);

}  // namespace regatta::sharding
