#pragma once
// The job that tests begin with: three groups, every kind of parameter, clipping that binds in some steps.

#include "tests/support/whole_job.h"

namespace regatta::testing {

inline WholeJob usual_job(std::uint64_t seed) {
  using Settings = std::vector<std::pair<std::string, std::string>>;
  WholeJob job;
  job.seed = seed;
  job.global_batch = 8;
  job.options.clip = 250;
  // In the last group some lines are shorter than eps.
  job.groups = {{"matrices", make_rule("reg", {}), 1},
                {"rest", make_rule("adamw", Settings{{"weight_decay", "0.1"}}), 0.5},
                {"fused", make_rule("reg", Settings{{"eps", "2"}, {"rho", "0.3"}, {"momentum", "0.8"}}), 2}};
  const auto add = [&](const char* name, std::vector<std::int64_t> shape, int group, DType dtype, DType grad_dtype) {
    Param& param = job.params.emplace_back();
    param.name = name;
    param.shape = std::move(shape);
    param.group = group;
    param.dtype = dtype;
    param.grad_dtype = grad_dtype;
  };
  add("embed", {9, 6}, 1, DType::f32, DType::f32);
  add("wide", {5, 33}, 0, DType::f32, DType::f32);
  add("tall", {14, 4}, 0, DType::bf16, DType::f32);
  add("fused", {12, 8}, 2, DType::f32, DType::bf16);
  job.params.back().block_rows = {6, 3, 3};
  add("gain", {7}, 1, DType::f32, DType::f32);
  add("half", {6, 10}, 0, DType::f16, DType::bf16);
  add("square", {6, 6}, 2, DType::bf16, DType::bf16);
  return job;
}

/// Two micro-batches a step; steps that are skipped, a loss scale that changes, settings that change, also in a step
/// that is skipped.
inline WholeJob eventful_job(std::uint64_t seed) {
  WholeJob job = usual_job(seed);
  job.global_batch = 2;
  job.steps = 8;
  job.options.clip = 100;
  job.options.loss_scaling = {16, 2, 4};
  for (const auto& [step, param] : {std::pair{2, 5}, {2, 3}, {2, 4}, {5, 1}, {5, 6}, {5, 0}})
    job.spoil(step, param, std::numeric_limits<float>::quiet_NaN(), param);
  for (const int step : {1, 2, 4}) {
    Command& command = job.commands[step];
    command.kind = step == 4 ? Command::Kind::save : Command::Kind::set;
    command.number = static_cast<std::uint64_t>(step);
    command.fields = step == 1 ? Command::lr_given | Command::momentum_given | Command::rho_given
                               : Command::weight_decay_given | Command::clip_given | Command::lr_given;
    command.group = step == 1 ? 2 : Command::all_groups;
    command.lr = 0.03 * step;
    command.momentum = 0.75;
    command.rho = 0.5;
    command.weight_decay = 0.25;
    command.clip = 60;
  }
  return job;
}

}  // namespace regatta::testing
