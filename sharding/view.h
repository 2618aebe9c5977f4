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
    matrix,    ///< all of it at once
  };
  /// Payload bytes between the ranks that hold parts of a matrix and its owner.
  struct Traffic {
    std::int64_t element_bytes = 0;     ///< of an element, to the owner and back
    std::int64_t row_bytes = 0;         ///< for each row a part touches, to the owner
    std::int64_t column_bytes = 0;      ///< for each column of a part's rectangle, to the owner
    std::int64_t block_bytes = 0;       ///< once for each holder, to the owner
    std::int64_t row_answer_bytes = 0;  ///< likewise, from the owner
    std::int64_t column_answer_bytes = 0;
    std::int64_t block_answer_bytes = 0;  ///< once for each holder, from the owner
    bool operator==(const Traffic&) const = default;
  };
  Kind kind = Kind::elements;
  std::vector<Line> passes;          ///< each on the result of the one before; the last one is the primary direction
  std::int64_t bytes_per_line = 0;   ///< payload of one open line on the way to its owner
  bool block_scale = false;          ///< one more number, over the whole block, is needed before the update
  std::int64_t bytes_per_block = 0;  ///< payload of that number's partial sum on the way to its owner
  Traffic traffic;                   ///< matrix view only

  static View elements() { return {}; }
  static View lines(std::vector<Line> passes, std::int64_t bytes_per_line, std::int64_t bytes_per_block = 0) {
    return {Kind::lines, std::move(passes), bytes_per_line, bytes_per_block > 0, bytes_per_block, {}};
  }
  /// `passes` see lines of what the owner returned.
  static View matrix(const Traffic& traffic, std::vector<Line> passes = {}, std::int64_t bytes_per_line = 0,
                     std::int64_t bytes_per_block = 0) {
    return {Kind::matrix, std::move(passes), bytes_per_line, bytes_per_block > 0, bytes_per_block, traffic};
  }
  /// Rows closed on a rank can be updated in one sweep.
  bool one_sweep_rows() const {
    return kind == Kind::lines && passes.size() == 1 && passes[0] == Line::row && !block_scale;
  }
  bool operator==(const View&) const = default;
};

}  // namespace regatta::sharding
