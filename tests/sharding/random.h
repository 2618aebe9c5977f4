#pragma once
// Numbers of random cases, the same on every machine.

#include <cstdint>
#include <random>

namespace regatta::sharding {

using Random = std::mt19937;

inline std::int64_t any(Random& random, std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(random() % static_cast<std::uint32_t>(high - low + 1));
}

}  // namespace regatta::sharding
