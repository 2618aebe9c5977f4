#include "runtime/rules/line_norm.h"

#include <cmath>
#include <limits>

#include "runtime/rules/line_sweeps.h"

namespace regatta {
namespace {

using kernels::LineFactors;
using kernels::LineSum;
using kernels::SweepHealth;

constexpr std::string_view guard_names[] = {"add", "clamp"};
constexpr Setting<LineNormSettings> known[] = {
    fraction_setting<&LineNormSettings::momentum>("momentum"),
    amount_setting<&LineNormSettings::weight_decay>("weight_decay"),
    amount_setting<&LineNormSettings::eps>("eps"),
    choice_setting<&LineNormSettings::guard, guard_names>("guard", "add or clamp"),
};

}  // namespace

std::span<const Setting<LineNormSettings>> line_norm_settings() { return known; }

float guarded_inverse(double norm, const LineNormSettings& settings) {
  if (settings.guard == LineNormSettings::Guard::clamp) return kernels::inverse_norm(norm, settings.eps);
  return kernels::inverse_norm(norm <= std::numeric_limits<float>::min() ? 0 : norm + settings.eps, 0);
}

std::string LineNormRule::settings_text() const { return text_of_settings<LineNormSettings>(name_, known, settings_); }

sharding::View LineNormRule::view(MatrixShape) const {
  return sharding::View::lines({line_}, static_cast<std::int64_t>(sizeof(LineSum)));
}

// Row by row, so that the second sweep finds its row in a cache.
void LineNormRule::update(const RunTensors& run, MatrixShape block, const StepInfo& info, DType momentum_dtype,
                          ThreadPool& pool, SweepHealth& health) const {
  if (run.run.empty()) return;
  const kernels::RegTensors all = line_tensors(run, info, momentum_dtype, settings_.momentum, settings_.weight_decay);
  const auto row_of = [&](std::int64_t begin) {
    return part_of(all, {run.run.rows, run.run.cols, begin, begin + run.run.cols});
  };
  const SweepTasks tasks(run.run, line_task_numel);
  if (tasks.splits_rows()) {  // too long for a cache; so all threads share a row
    for (std::int64_t begin = run.run.begin; begin < run.run.end; begin += run.run.cols) {
      const kernels::RegTensors row = row_of(begin);
      LineSum sum;
      observe_lines(row, {}, Line::row, 1, {&sum, 1}, pool);
      const float step = kernels::step_factor(inverse(0, block, {&sum, 1}, health), info.lr);
      const LineFactors factor{Line::row, &step};
      apply_lines(row, {&factor, 1}, pool, health);
    }
    return;
  }
  run_with_health(pool, tasks.count(), health, [&](std::int64_t task, SweepHealth& part) {
    const MatrixRun rows = tasks.task(task);
    for (std::int64_t begin = rows.begin; begin < rows.end; begin += rows.cols) {
      const kernels::RegTensors row = row_of(begin);
      LineSum sum;
      kernels::cpu_kernels().reg_observe({row, nullptr, 0, Line::row, &sum, nullptr});
      const float step = kernels::step_factor(inverse(0, block, {&sum, 1}, part), info.lr);
      const LineFactors factor{Line::row, &step};
      kernels::cpu_kernels().reg_apply({row, &factor, 1, &part});
    }
  });
}

void LineNormRule::observe(int, const RunTensors& run, MatrixShape, const StepInfo& info, DType momentum_dtype,
                           std::span<const LineFactors> earlier, std::span<LineSum> stats, ThreadPool& pool) const {
  if (run.run.empty()) return;
  observe_lines(line_tensors(run, info, momentum_dtype, settings_.momentum, settings_.weight_decay), earlier, line_, 1,
                stats, pool);
}

float LineNormRule::inverse(int, MatrixShape, std::span<const LineSum> stats, SweepHealth& health) const {
  const double norm = std::sqrt(kernels::value(stats[0]));
  kernels::count_line(health, norm, settings_.eps);
  return guarded_inverse(norm, settings_);
}

void LineNormRule::apply(const RunTensors& run, MatrixShape, const StepInfo& info, DType momentum_dtype,
                         std::span<const LineFactors> passes, ThreadPool& pool, SweepHealth& health) const {
  if (run.run.empty()) return;
  apply_lines(line_tensors(run, info, momentum_dtype, settings_.momentum, settings_.weight_decay), passes, pool,
              health);
}

}  // namespace regatta
