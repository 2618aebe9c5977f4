#pragma once
// What a training run shows: a progress bar or plain lines on stderr, JSON lines in OUT/log.jsonl, the final table, and
// the JSON summary. Rank 0 has one; its thread drives it.

#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>

#include "cli/finetune/options.h"
#include "cli/finetune/totals.h"
#include "runtime/checkpoint/checkpoint_writer.h"

namespace regatta::finetune {

class Reporter {
 public:
  /// Makes OUT and its log.jsonl, in which the lines of the first `kept_steps` steps stay; throws
  /// Error(invalid_argument) when that cannot be.
  explicit Reporter(const Options& options, std::int64_t kept_steps = 0);
  ~Reporter();

  void started(const Summary& summary);
  void stepped(const StepRecord& record);
  void evaluated(const EvalRecord& record);
  void saved(const checkpoint::SaveOutcome& save);
  void warned(const std::string& sentence);
  /// The table on stderr with --json, on stdout otherwise; the summary as JSON on stdout with --json and to
  /// OUT/summary.json.
  void finished(const Summary& summary);

 private:
  void clear_bar();
  void draw_bar(const StepRecord& record);
  void print_line(const StepRecord& record);
  std::string table(const Summary& summary) const;
  std::string json(const Summary& summary) const;

  const Options options_;
  const bool terminal_;
  std::ofstream log_;
  std::int64_t tokens_per_step_ = 0;
  std::int64_t first_step_ = 0;  ///< made by earlier runs
  double busy_seconds_ = 0;      ///< of this run's training steps
  double recent_seconds_ = 0;    ///< per step, smoothed
  bool bar_shown_ = false;
  std::chrono::steady_clock::time_point drawn_{};
};

}  // namespace regatta::finetune
