#pragma once
// How many collectives each rank had begun in each group when it left. NCCL does not tell whom a collective still waits
// for: a rank that left may have done its part of it, while others are late. Thread-safe.

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace regatta {

class CollectiveCounts {
 public:
  explicit CollectiveCounts(int world_size) : of_(static_cast<std::size_t>(world_size)) {}

  /// This rank has joined a group, and begins its next collective there.
  void join(int group);
  void begin(int group);

  /// This rank's counts, for its farewell; and those of another rank's.
  std::string text() const;
  void file(int rank, const std::string& text);

  /// Whether `rank` has left after beginning collective `number` of the group; joining it is number 0.
  bool left_after(int rank, int group, std::int64_t number) const;

 private:
  mutable std::mutex mutex_;
  std::map<int, std::int64_t> own_;              // by group
  std::vector<std::map<int, std::int64_t>> of_;  // by rank of the root and group; empty until it left
};

}  // namespace regatta
