#pragma once
// One rank's training run: the loop, evaluation, and the final weights.
//
// Driven by the rank's thread; construction and run() are collective. All ranks see the same losses and decide alike.

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "cli/finetune/job.h"
#include "cli/finetune/saver.h"
#include "cli/finetune/totals.h"
#include "runtime/control/steering.h"
#include "runtime/engine/engine.h"
#include "runtime/telemetry/telemetry.h"
#include "runtime/torch/adapter.h"
#include "runtime/transport/transport.h"

namespace regatta::finetune {

/// What the loop tells on rank 0; called on its thread.
struct Observer {
  std::function<void(const Summary&)> started;  ///< with params, tokens_per_step, world_size
  std::function<void(const StepRecord&)> stepped;
  std::function<void(const EvalRecord&)> evaluated;
  std::function<void(const checkpoint::SaveOutcome&)> saved;  ///< a checkpoint is on disk
  std::function<void(const std::string&)> warned;
  std::function<void(const std::string&)> told;
};

class Trainer {
 public:
  /// The job must outlive the trainer, and so must the mailbox and the audit log, which only rank 0 may have.
  Trainer(Job& job, const sharding::Mesh& mesh, Transport& transport, control::Mailbox* mailbox = nullptr,
          control::AuditLog* audit = nullptr, std::function<bool()> drain_wanted = {});
  /// Not collective, and before run(): makes the next step the one after the checkpoint's. Throws
  /// Error(invalid_argument).
  void go_on_from(checkpoint::Checkpoint& checkpoint);
  /// Trains, evaluates and writes the weights.
  Summary run(const Observer& observer);

 private:
  StepRecord train_step(std::int64_t step, bool& drain);
  void save_now_and_then(std::int64_t step, const Observer& observer);
  void tell_saved(const Observer& observer);
  EvalRecord evaluate();
  void check_progress(const StepRecord& record);
  /// The doubles of all ranks, by rank.
  std::vector<std::vector<double>> gather(const std::vector<double>& mine, std::string_view label);

  Job& job_;
  const Options& options_;
  Transport& transport_;
  sharding::Mesh mesh_;
  Engine engine_;
  EngineAttachment attachment_;
  std::unique_ptr<Saver> saver_;  ///< null without checkpoints
  std::function<bool()> drain_wanted_;
  control::Steering steering_;
  std::int64_t made_ = 0;  ///< steps, those before a resume included
  std::unique_ptr<Telemetry> telemetry_;
  std::string resumed_;  ///< what goes on, in words
  int skipped_in_a_row_ = 0;
};

}  // namespace regatta::finetune
