#pragma once
// Where the chunks of a bucket may end.

#include <cstdint>

namespace regatta::sharding {

enum class Cut : std::uint8_t {
  element,  ///< anywhere
  row,      ///< between rows of matrices whose rule sees rows; anywhere else
  matrix,   ///< between logical blocks
};

}  // namespace regatta::sharding
