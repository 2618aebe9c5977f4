#pragma once
// One rank's optimizer state as a safetensors file: a tensor for each part, flat; which part it is of which logical
// block is in the metadata entry `parts`.

#include <span>
#include <string>
#include <vector>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/saved_part.h"

namespace regatta::checkpoint {

/// A part and where its values begin in a file.
struct StoredPart : SavedPart {
  std::int64_t offset = 0;  ///< bytes from the start of the file
};

/// As tensors to write; they point at the parts' data.
std::vector<safetensors::Source> state_tensors(std::span<const GivenPart> parts);
safetensors::Metadata state_metadata(std::span<const GivenPart> parts, std::int64_t step);

/// Throws Error(invalid_argument) when the file's parts are not what its tensors can hold.
std::vector<StoredPart> stored_parts(const safetensors::File& file);

}  // namespace regatta::checkpoint
