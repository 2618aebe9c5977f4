#pragma once
// A parameter as the trainer describes it to the engine.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sharding/dtype.h"
#include "sharding/placement.h"

namespace regatta {

struct Param {
  std::string name;
  /// Global logical shape; more than two dims are seen as first dim x the rest, one dim as 1 x n.
  std::vector<std::int64_t> shape;
  DType dtype = DType::f32;
  /// Of the gradients handed in; the parameter's own dtype when empty.
  std::optional<DType> grad_dtype;
  /// How the trainer shards it over the axes of the mesh. In modes zero1 and zero2 dp belongs to the engine and must
  /// not appear. Dim 0 of a vector are its elements. Along an axis that does not cut it the parameter is replicated:
  /// its gradients must be handed in with equal bits there, and then it stays equal.
  sharding::Placement placement;
  /// Rows of the logical blocks stacked in it (fused QKV, experts); each is a matrix of its own. Empty: one block.
  std::vector<std::int64_t> block_rows;
  int group = 0;  ///< index into the engine's groups
};

}  // namespace regatta
