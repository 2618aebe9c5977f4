#pragma once
// What a training run adds up over its steps, and what it found. Plain values of one rank; plain sums, so no thread
// rules.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/step_report.h"
#include "sharding/plan.h"

namespace regatta::finetune {

/// Wall seconds of this rank by phase.
struct PhaseSeconds {
  double data = 0;
  double forward = 0;
  double backward = 0;
  double step = 0;  ///< engine.step as a whole; its parts are in Totals::times
  double all() const { return data + forward + backward + step; }
  void add(const PhaseSeconds& other);
};

/// One step as it goes to the log.
struct StepRecord {
  std::int64_t step = 0;  ///< from 1
  double loss = 0;        ///< mean over the global batch
  PhaseSeconds phases;
  StepReport report;
};

struct EvalRecord {
  std::int64_t step = 0;  ///< updates before it
  double loss = 0;
  double seconds = 0;
};

struct Totals {
  PhaseSeconds phases;
  StepTimes times;
  StepBytes counted;
  sharding::WireBytes planned;
  void add(const StepRecord& record, const sharding::WireBytes& plan);
  bool bytes_as_planned() const;
};

struct Summary {
  std::int64_t steps = 0;       ///< made so far, by earlier runs as well
  std::int64_t first_step = 0;  ///< those made by earlier runs
  std::int64_t skipped_steps = 0;
  std::int64_t params = 0;
  std::int64_t tokens_per_step = 0;
  int world_size = 1;
  double train_loss_first = 0;
  double train_loss_last = 0;
  std::optional<double> eval_before, eval_after;
  std::vector<EvalRecord> evals;
  Totals totals;                          ///< of rank 0
  bool bytes_as_planned = true;           ///< on every rank
  std::vector<std::int64_t> state_bytes;  ///< by rank
  std::vector<std::string> files;
  /// Of this run, as all figures of time.
  std::int64_t own_steps() const { return steps - first_step; }
  /// Ranks in their order: bytes of optimizer state, and whether the rank sent what the plan predicts.
  void add_rank(std::int64_t rank_state_bytes, bool as_planned);
  double tokens_per_second() const;
  double step_ms() const;
};

}  // namespace regatta::finetune
