#pragma once
// What a rule must see of a matrix to compute its update.

#include <cstdint>
#include <vector>

#include "sharding/geometry.h"

namespace regatta::sharding {

struct View {
  enum class Kind : std::uint8_t {
    elements,  ///< nothing but its own elements
    lines,     ///< one number per row and/or column, in ordered passes
  };
  Kind kind = Kind::elements;
  std::vector<Line> passes;          ///< each on the result of the one before; the last one is the primary direction
  std::int64_t bytes_per_line = 0;   ///< payload of one open line on the way to its owner
  bool block_scale = false;          ///< one more number, over the whole block, is needed before the update
  std::int64_t bytes_per_block = 0;  ///< payload of that number's partial sum on the way to its owner

  static View elements() { return {}; }
  static View lines(std::vector<Line> passes, std::int64_t bytes_per_line, std::int64_t bytes_per_block = 0) {
    return {Kind::lines, std::move(passes), bytes_per_line, bytes_per_block > 0, bytes_per_block};
  }
  /// Rows closed on a rank can be updated in one sweep.
  bool one_sweep_rows() const { return passes.size() == 1 && passes[0] == Line::row && !block_scale; }
  bool operator==(const View&) const = default;
};

}  // namespace regatta::sharding
