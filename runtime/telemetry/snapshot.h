#pragma once
// The figures of one rank as a page shows them, and a hand-over of them that neither side waits for.

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/step_report.h"
#include "runtime/telemetry/metrics.h"

namespace regatta {

struct TimeHistogram {
  std::array<std::uint64_t, metrics::time_bounds.size() + 1> counts{};  ///< by bucket, the last one unbounded
  double sum = 0;
  void add(double seconds);
};

struct TopParam {
  std::string name;
  double value = 0;
};

struct Snapshot {
  double last_step_timestamp = 0, last_save_timestamp = 0;  ///< Unix time, seconds
  std::int64_t steps = 0;                                   ///< recorded, skipped ones included
  std::int64_t clipped_steps = 0, setting_changes = 0, tokens = 0, proofs = 0, proof_differences = 0;
  std::optional<double> loss;
  StepReport report;  ///< of the last step
  TimeHistogram step;
  std::array<TimeHistogram, metrics::phases.size()> phases;
  StepBytes sent;   ///< so far
  StepTimes times;  ///< summed up so far
  std::vector<TopParam> by_update, by_spread;
};

/// One writer, one reader at a time. The writer fills back() and publishes it; the reader's front() is the last one
/// published. Three copies, so neither ever waits.
class SnapshotExchange {
 public:
  Snapshot& back() { return copies_[back_]; }
  /// Makes back() the newest; the new back() holds older figures, to be overwritten as a whole.
  void publish() { back_ = middle_.exchange(back_ | fresh, std::memory_order_acq_rel) & ~fresh; }
  const Snapshot& front() {
    if (middle_.load(std::memory_order_acquire) & fresh)
      front_ = middle_.exchange(front_, std::memory_order_acq_rel) & ~fresh;
    return copies_[front_];
  }

 private:
  static constexpr int fresh = 4;
  std::array<Snapshot, 3> copies_;
  int back_ = 0, front_ = 1;
  std::atomic<int> middle_{2};
};

}  // namespace regatta
