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

/// Calls body(in_block, in_part, count) for the elements of `part`, row by row, ascending in both.
template <class Body>
void for_each_stretch(const BlockPart& part, std::int64_t block_cols, const Body& body) {
  const std::int64_t cols = part.cols.size();
  if (part.run.empty()) return;
  if (cols == block_cols) {  // whole rows lie one after another in the block, too
    body(part.rows.begin * cols + part.run.begin, std::int64_t{0}, part.run.size());
    return;
  }
  for (std::int64_t at = part.run.begin; at < part.run.end;) {
    const std::int64_t row = at / cols, col = at % cols, count = std::min(cols - col, part.run.end - at);
    body((part.rows.begin + row) * block_cols + part.cols.begin + col, at - part.run.begin, count);
    at += count;
  }
}

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
