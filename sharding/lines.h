#pragma once
// Which lines of a block are open, that is split over ranks, and who finishes each of them.
//
// A line that lies wholly on one rank is closed and needs no message. Ranks that hold parts of an open line send its
// partial statistics to one of them, its owner, which sends the finished number back. This one description serves every
// placement: row shards, column shards, flat runs, and their products differ only in which ranks touch which lines.

#include <cstdint>
#include <span>
#include <vector>

#include "sharding/geometry.h"
#include "sharding/placement.h"

namespace regatta::sharding {

/// The lines of a block that a part touches: ascending, disjoint, in the block's coordinates. A flat run that starts in
/// one row and ends in the next may touch two separate ranges of columns.
std::vector<Range> touched_lines(const BlockPart& part, Line line);

struct LineHolder {
  int rank = 0;
  std::vector<Range> lines;
};

/// Consecutive open lines that the same ranks hold.
struct OpenLines {
  Range lines;
  std::vector<int> ranks;  ///< ascending, two or more
  bool operator==(const OpenLines&) const = default;
};

/// All open lines, ascending. Requires that holders' ranks ascend.
std::vector<OpenLines> open_lines(std::span<const LineHolder> holders);

/// The lines one rank owns among consecutive open lines.
struct OwnedLines {
  Range lines;
  int owner = 0;
};
/// Deals the lines out evenly over the ranks that hold them; `turn` rotates who gets the first share.
std::vector<OwnedLines> share_lines(const OpenLines& open, int turn);

}  // namespace regatta::sharding
