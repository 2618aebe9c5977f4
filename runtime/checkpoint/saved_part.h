#pragma once
// A part of one state tensor of one logical block as it lies in a checkpoint, and as a rank wants or gives it.

#include <string>

#include "sharding/dtype.h"
#include "sharding/placement.h"

namespace regatta::checkpoint {

/// Which tensor: a state of a logical block of a parameter.
struct StateKey {
  std::string param;
  std::string state;  ///< "momentum", "moment2", "master", ...
  int block = 0;
  auto operator<=>(const StateKey&) const = default;
  std::string text() const { return param + " " + state + (block > 0 ? " block " + std::to_string(block) : ""); }
};

struct SavedPart {
  StateKey key;
  MatrixShape block;         ///< of the whole logical block
  sharding::BlockPart part;  ///< which of its elements
  DType dtype = DType::f32;
};

/// Beside the part, its values: part.run.size() elements.
struct GivenPart : SavedPart {
  const void* data = nullptr;
};

}  // namespace regatta::checkpoint
