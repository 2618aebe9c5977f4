#pragma once
// How one tensor lies on the mesh before bucketing: per axis Replicate (not named), Shard(dim) or, for dp, a flat run.

#include <string>
#include <string_view>
#include <vector>

#include "sharding/geometry.h"
#include "sharding/mesh.h"

namespace regatta::sharding {

/// Cut of one axis. dim 0 are rows, dim 1 columns of each logical block by itself, as a tensor-parallel trainer cuts
/// fused projections; `stacked` are rows of the whole tensor, whatever blocks it holds, as FSDP2's Shard(0) cuts (the
/// same as dim 0 for a tensor of one block); `flat` is a contiguous run of what the axes before it left, as ZeRO-3
/// flattens.
struct AxisPlacement {
  static constexpr int flat = -1;
  static constexpr int stacked = -2;
  std::string axis;
  int dim = 0;
  bool operator==(const AxisPlacement&) const = default;
};

/// Axes not named are Replicate. Applied in the order given: tensor parallelism first, then dp inside it.
/// Extents are cut as torch.chunk cuts them: ceil(extent / size) each, the last ones short or empty.
struct Placement {
  std::vector<AxisPlacement> cuts;

  static Placement replicate() { return {}; }
  /// "tp:1", "tp:0,dp:0", "dp:rows" (stacked), "dp:flat", "" -> Placement. Throws std::invalid_argument.
  static Placement parse(std::string_view text);
  const AxisPlacement* find(std::string_view axis) const;
  std::string text() const;
  bool operator==(const Placement&) const = default;
};

/// Part `index` of `extent` cut `count` ways, as torch.chunk does.
Range chunk(std::int64_t extent, int count, int index);

/// A rank's part of one logical block: a rectangle of the block, and the run of it (row-major in the rectangle) that
/// the rank holds.
struct BlockPart {
  Range rows;  ///< of the block
  Range cols;  ///< of the block
  Range run;   ///< elements of the rows x cols rectangle; all of it unless a flat cut applies
  std::int64_t rect_numel() const { return rows.size() * cols.size(); }
  MatrixRun matrix_run() const { return {rows.size(), cols.size(), run.begin, run.end}; }
  bool operator==(const BlockPart&) const = default;
};

/// The parts that `rank` holds of a tensor of `blocks` stacked by rows (all of the same width). In local memory they
/// lie one after another. A flat cut runs over the concatenation of all blocks. `row_unit`: stacked rows are cut
/// between multiples of it (rows per index of the tensor's first dim, where blocks count rows of further dims, as
/// experts do).
std::vector<BlockPart> local_parts(const Mesh&, const Placement&, int rank, const std::vector<MatrixShape>& blocks,
                                   std::int64_t row_unit = 1);

}  // namespace regatta::sharding
