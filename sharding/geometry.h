#pragma once
// Shapes and index ranges of matrices. Trivially copyable values; no memory is touched here.

#include <algorithm>
#include <cstdint>

namespace regatta {

/// Half-open interval of indices.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
  bool empty() const { return end <= begin; }
  bool operator==(const Range&) const = default;
};

inline Range intersect(Range a, Range b) {
  Range r{std::max(a.begin, b.begin), std::min(a.end, b.end)};
  return r.empty() ? Range{r.begin, r.begin} : r;
}

/// m x n, row-major. A vector is 1 x n.
struct MatrixShape {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t numel() const { return rows * cols; }
  bool operator==(const MatrixShape&) const = default;
};

/// What a rank holds of a matrix: elements [begin, end) of a row-major local rows x cols matrix.
/// First and last rows may be partial. Row shard, column shard, flat shard and their products differ
/// only in these four numbers.
struct MatrixRun {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;

  std::int64_t numel() const { return end - begin; }
  bool empty() const { return end <= begin; }
  /// Rows touched, partial ones included. Requires a non-empty run.
  Range touched_rows() const { return {begin / cols, (end + cols - 1) / cols}; }
  /// Rows that lie in the run from their first to their last element; may be empty.
  Range whole_rows() const {
    Range r{(begin + cols - 1) / cols, end / cols};
    return r.empty() ? Range{r.begin, r.begin} : r;
  }
  bool operator==(const MatrixRun&) const = default;
};

/// A direction in which a matrix is read: a line is one row or one column.
enum class Line : std::uint8_t { row, column };

}  // namespace regatta
