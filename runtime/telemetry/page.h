#pragma once
// A snapshot as the text that Prometheus reads.

#include <string>
#include <utility>
#include <vector>

#include "runtime/telemetry/snapshot.h"

namespace regatta {

using Labels = std::vector<std::pair<std::string, std::string>>;

struct PageFacts {
  Labels labels;  ///< of every metric
  Labels info;    ///< of the info metric, besides
  int world_size = 1;
  std::int64_t state_bytes = 0;
};

std::string metrics_page(const Snapshot& snapshot, const PageFacts& facts);

}  // namespace regatta
