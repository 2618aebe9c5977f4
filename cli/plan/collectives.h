#pragma once
// The messages of a step in the order they are sent, and the lines that cause them, read off a plan.

#include <string>
#include <vector>

#include "sharding/plan.h"

namespace regatta::cli {

struct Collective {
  std::string name, among, when;    ///< what, between whom, behind what
  std::int64_t calls = 0;           ///< per rank and step
  std::int64_t lines = 0;           ///< open lines that travel, on the whole mesh; 0 for other messages
  std::vector<std::int64_t> bytes;  ///< sent, by rank
};

/// Only those in which some rank sends something. Their bytes add up to Plan::wire_bytes.
std::vector<Collective> collectives_of(const sharding::Plan& plan);

/// Lines of one parameter, every pass counted: all, and those split over ranks. Replicas count once.
struct LineCount {
  std::int64_t all = 0, open = 0;
  std::int64_t closed() const { return all - open; }
};

/// By parameter.
std::vector<LineCount> count_lines(const sharding::Plan& plan);

}  // namespace regatta::cli
