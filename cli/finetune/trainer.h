#pragma once
// One rank's training run: model, data, engine, the loop, evaluation, and the final weights.
//
// Driven by the rank's thread; every member is collective unless marked local. All ranks see the same losses and decide
// alike.

#include <torch/types.h>

#include <functional>
#include <memory>
#include <vector>

#include "cli/finetune/decoder.h"
#include "cli/finetune/options.h"
#include "cli/finetune/token_data.h"
#include "cli/finetune/totals.h"
#include "runtime/engine/engine.h"
#include "runtime/torch/adapter.h"
#include "runtime/transport/transport.h"

namespace regatta::finetune {

/// What the loop tells on rank 0; called on its thread.
struct Observer {
  std::function<void(const Summary&)> started;  ///< with params, tokens_per_step, world_size
  std::function<void(const StepRecord&)> stepped;
  std::function<void(const EvalRecord&)> evaluated;
  std::function<void(const std::string&)> warned;
};

class Trainer {
 public:
  Trainer(const Options& options, const sharding::Mesh& mesh, Transport& transport);
  /// The whole job.
  Summary run(const Observer& observer);

 private:
  std::unique_ptr<Decoder> make_model() const;
  Engine make_engine();
  StepRecord train_step(std::int64_t step);
  EvalRecord evaluate();
  torch::Tensor sequences(const TokenData& data, std::int64_t count,
                          const std::function<std::int64_t(std::int64_t)>& begin) const;
  /// The doubles of all ranks in one list, by rank.
  std::vector<std::vector<double>> gather(const std::vector<double>& mine, std::string_view label);
  void warn_about_text(const Observer& observer) const;

  Options options_;
  const sharding::Mesh& mesh_;
  Transport& transport_;
  std::unique_ptr<Decoder> model_;
  TokenData train_;
  WindowSampler sampler_;
  std::unique_ptr<TokenData> eval_;
  std::unique_ptr<WindowSampler> eval_sampler_;
  std::vector<ModuleParam> params_;
  Engine engine_;
  EngineAttachment attachment_;
};

}  // namespace regatta::finetune
