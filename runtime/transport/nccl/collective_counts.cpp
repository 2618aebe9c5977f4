#include "runtime/transport/nccl/collective_counts.h"

#include <sstream>

namespace regatta {

void CollectiveCounts::join(int group) {
  const std::lock_guard lock(mutex_);
  own_[group] = 0;
}

void CollectiveCounts::begin(int group) {
  const std::lock_guard lock(mutex_);
  ++own_[group];
}

std::string CollectiveCounts::text() const {
  const std::lock_guard lock(mutex_);
  std::string text;
  for (const auto& [group, count] : own_) text += std::to_string(group) + " " + std::to_string(count) + " ";
  return text;
}

void CollectiveCounts::file(int rank, const std::string& text) {
  std::istringstream in(text);
  const std::lock_guard lock(mutex_);
  int group = 0;
  for (std::int64_t count = 0; in >> group >> count;) of_[static_cast<std::size_t>(rank)][group] = count;
}

bool CollectiveCounts::left_after(int rank, int group, std::int64_t number) const {
  const std::lock_guard lock(mutex_);
  const auto& counts = of_[static_cast<std::size_t>(rank)];
  const auto found = counts.find(group);
  return found != counts.end() && found->second >= number;
}

}  // namespace regatta
