#include "runtime/rules/adamw.h"

#include <cmath>

#include "runtime/rules/settings.h"
#include "runtime/rules/sweep_tasks.h"

namespace regatta {
namespace {

constexpr std::int64_t task_numel = 1 << 18;

constexpr Setting<AdamwSettings> known[] = {
    fraction_setting<&AdamwSettings::beta1>("beta1"),
    fraction_setting<&AdamwSettings::beta2>("beta2"),
    amount_setting<&AdamwSettings::eps>("eps"),
    amount_setting<&AdamwSettings::weight_decay>("weight_decay"),
};

}  // namespace

const RuleEntry adamw_entry{
    [] {
      return info_of<AdamwSettings>({"adamw",
                                     "moving averages of gradient and its square, element by element",
                                     "torch.optim.AdamW",
                                     "high: compared with torch",
                                     {}},
                                    known);
    },
    [](std::span<const std::pair<std::string, std::string>> given) -> std::shared_ptr<const Rule> {
      return std::make_shared<AdamwRule>(read_settings<AdamwSettings>("adamw", known, given));
    }};

std::string AdamwRule::settings_text() const { return text_of_settings<AdamwSettings>("adamw", known, settings_); }

kernels::cuda::AdamwScalars AdamwRule::adamw_scalars(const StepInfo& info) const {
  const auto step = static_cast<double>(info.step);
  kernels::cuda::AdamwScalars numbers;
  numbers.grad_scale = info.grad_scale;
  numbers.beta1 = static_cast<float>(settings_.beta1);
  numbers.one_minus_beta1 = static_cast<float>(1 - settings_.beta1);
  numbers.beta2 = static_cast<float>(settings_.beta2);
  numbers.one_minus_beta2 = static_cast<float>(1 - settings_.beta2);
  numbers.inverse_sqrt_correction2 = static_cast<float>(1 / std::sqrt(1 - std::pow(settings_.beta2, step)));
  numbers.eps = static_cast<float>(settings_.eps);
  numbers.step = static_cast<float>(info.lr / (1 - std::pow(settings_.beta1, step)));
  numbers.decay = static_cast<float>(1 - info.lr * settings_.weight_decay);
  return numbers;
}

void AdamwRule::update(const RunTensors& run, MatrixShape, const StepInfo& info, DType momentum_dtype, ThreadPool& pool,
                       kernels::SweepHealth& health) const {
  const kernels::cuda::AdamwScalars numbers = adamw_scalars(info);
  kernels::AdamwArgs all;
  all.grad_dtype = run.grad_dtype;
  all.moment1_dtype = momentum_dtype;
  all.param_dtype = run.param_dtype;
  all.grad_scale = numbers.grad_scale;
  all.beta1 = numbers.beta1;
  all.one_minus_beta1 = numbers.one_minus_beta1;
  all.beta2 = numbers.beta2;
  all.one_minus_beta2 = numbers.one_minus_beta2;
  all.inverse_sqrt_correction2 = numbers.inverse_sqrt_correction2;
  all.eps = numbers.eps;
  all.step = numbers.step;
  all.decay = numbers.decay;

  // Elements have no rows: the run as one.
  const SweepTasks tasks({1, run.run.numel(), 0, run.run.numel()}, task_numel);
  run_with_health(pool, tasks.count(), health, [&](std::int64_t task, kernels::SweepHealth& part) {
    const MatrixRun range = tasks.task(task);
    kernels::AdamwArgs args = all;
    args.count = range.numel();
    args.grad = advance(run.grad, run.grad_dtype, range.begin);
    args.moment1 = advance(run.state[0], momentum_dtype, range.begin);
    args.moment2 = static_cast<float*>(run.state[1]) + range.begin;
    args.weight = run.weight + range.begin;
    if (run.param) args.param = advance(run.param, run.param_dtype, range.begin);
    args.health = &part;
    kernels::cpu_kernels().adamw(args);
  });
}

}  // namespace regatta
