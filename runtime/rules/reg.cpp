#include "runtime/rules/reg.h"

#include <cmath>
#include <limits>

#include "runtime/error.h"
#include "runtime/rules/line_sweeps.h"
#include "runtime/rules/settings.h"

namespace regatta {
namespace {

using kernels::LineFactors;
using kernels::LineSum;
using kernels::RegTensors;
using kernels::SweepHealth;

constexpr std::string_view norm_names[] = {"1", "2", "inf"};
constexpr std::string_view zero_line_names[] = {"keep", "count"};
constexpr Setting<RegSettings> known[] = {
    fraction_setting<&RegSettings::momentum>("momentum"),
    amount_setting<&RegSettings::rho>("rho"),
    amount_setting<&RegSettings::weight_decay>("weight_decay"),
    choice_setting<&RegSettings::p, norm_names>("p", "1, 2 or inf"),
    {"passes", "a whole number from 1 to 16",
     [](RegSettings& s, std::string_view text) {
       return parse_number(text, s.passes) && s.passes >= 1 && s.passes <= RegSettings::most_passes;
     },
     [](const RegSettings& s) { return std::to_string(s.passes); }},
    amount_setting<&RegSettings::eps>("eps"),
    choice_setting<&RegSettings::zero_line, zero_line_names>("zero_line", "keep or count"),
};
static_assert(RegSettings::most_passes == 16, "the text above says 16");

}  // namespace

const RuleEntry reg_entry{
    [] {
      return info_of<RegSettings>({"reg",
                                   "momentum with every row or column at the same norm, at a fixed update RMS",
                                   "arXiv 2510.03691, read as a digest",
                                   "medium: one pass with p = 2; low: more passes and the defaults",
                                   {}},
                                  known);
    },
    [](std::span<const std::pair<std::string, std::string>> given) -> std::shared_ptr<const Rule> {
      return std::make_shared<RegRule>(read_settings<RegSettings>("reg", known, given));
    }};

std::string RegRule::settings_text() const { return text_of_settings<RegSettings>("reg", known, settings_); }

Line RegRule::line_of_pass(int pass, MatrixShape block) const {
  const bool primary = (settings_.passes - 1 - pass) % 2 == 0;
  return (block.rows <= block.cols) == primary ? Line::row : Line::column;
}

bool RegRule::block_scale() const {
  return settings_.p != RegSettings::Norm::two || settings_.zero_line == RegSettings::ZeroLine::count;
}

sharding::View RegRule::view(MatrixShape block) const {
  if (std::max(block.rows, block.cols) > LineSum::max_count)
    throw Error(Code::invalid_argument, "reg: a matrix of " + std::to_string(block.rows) + " x " +
                                            std::to_string(block.cols) + " has lines of more than " +
                                            std::to_string(LineSum::max_count) +
                                            " elements; expected shorter ones, or another rule for it");
  std::vector<Line> passes(settings_.passes);
  for (int pass = 0; pass < settings_.passes; ++pass) passes[pass] = line_of_pass(pass, block);
  const auto line_bytes = static_cast<std::int64_t>(sizeof(LineSum));
  return sharding::View::lines(std::move(passes), stats_per_line(0, block) * line_bytes,
                               block_scale() ? line_bytes : 0);
}

int RegRule::stats_per_line(int, MatrixShape) const { return settings_.p == RegSettings::Norm::one ? 2 : 1; }

RegTensors RegRule::tensors(const RunTensors& run, const StepInfo& info, DType momentum_dtype) const {
  return line_tensors(run, info, momentum_dtype, settings_.momentum, settings_.weight_decay);
}

kernels::cuda::Norm RegRule::device_norm() const {
  switch (settings_.p) {
    case RegSettings::Norm::one: return kernels::cuda::Norm::one;
    case RegSettings::Norm::inf: return kernels::cuda::Norm::inf;
    case RegSettings::Norm::two: break;
  }
  return kernels::cuda::Norm::two;
}

kernels::cuda::RegScalars RegRule::reg_scalars(const StepInfo& info) const {
  kernels::cuda::RegScalars numbers;
  numbers.lr_rho = info.lr * settings_.rho;
  numbers.eps = settings_.eps;
  numbers.grad_scale = info.grad_scale;
  numbers.mu = static_cast<float>(settings_.momentum);
  numbers.one_minus_mu = static_cast<float>(1 - settings_.momentum);
  numbers.decay = static_cast<float>(1 - info.lr * settings_.weight_decay);
  return numbers;
}

void RegRule::update(const RunTensors& run, MatrixShape block, const StepInfo& info, DType momentum_dtype,
                     ThreadPool& pool, SweepHealth& health) const {
  if (run.run.empty()) return;
  const RegTensors all = tensors(run, info, momentum_dtype);
  const double scale = step_scale(block, info, 0);
  const SweepTasks tasks(run.run, line_task_numel);
  if (!tasks.splits_rows()) {
    run_with_health(pool, tasks.count(), health, [&](std::int64_t task, SweepHealth& part) {
      kernels::cpu_kernels().reg_update_rows({part_of(all, tasks.task(task)), scale, settings_.eps, &part});
    });
    return;
  }
  // Rows too long for a cache: two sweeps, which also lets all threads share a row. The bits are the same.
  for (std::int64_t begin = run.run.begin; begin < run.run.end; begin += run.run.cols) {
    RunTensors row = run;
    const std::int64_t offset = begin - run.run.begin;
    row.run = {run.run.rows, run.run.cols, begin, begin + run.run.cols};
    row.grad = advance(run.grad, run.grad_dtype, offset);
    void* const momentum = advance(run.state[0], momentum_dtype, offset);
    row.state = {&momentum, 1};
    row.weight = run.weight + offset;
    if (run.param) row.param = advance(run.param, run.param_dtype, offset);
    LineSum sum;
    observe(0, row, block, info, momentum_dtype, {}, {&sum, 1}, pool);
    const float step = kernels::step_factor(inverse(0, block, {&sum, 1}, health), scale);
    const LineFactors last{Line::row, &step};
    apply(row, block, info, momentum_dtype, {&last, 1}, pool, health);
  }
}

void RegRule::observe(int pass, const RunTensors& run, MatrixShape block, const StepInfo& info, DType momentum_dtype,
                      std::span<const LineFactors> earlier, std::span<LineSum> stats, ThreadPool& pool) const {
  if (run.run.empty()) return;
  observe_lines(tensors(run, info, momentum_dtype), earlier, line_of_pass(pass, block), stats_per_line(pass, block),
                stats, pool);
}

float RegRule::inverse(int pass, MatrixShape, std::span<const LineSum> stats, SweepHealth& health) const {
  double norm = 0;
  switch (settings_.p) {
    case RegSettings::Norm::one: norm = kernels::value(stats[1]); break;
    case RegSettings::Norm::two: norm = std::sqrt(kernels::value(stats[0])); break;
    case RegSettings::Norm::inf: norm = stats[0].largest; break;
  }
  if (pass == settings_.passes - 1) kernels::count_line(health, norm, settings_.eps);
  return kernels::inverse_norm(norm, settings_.eps);
}

float RegRule::block_term(std::span<const LineSum> stats, float inverse) const {
  const double factor = inverse;
  return static_cast<float>(kernels::value(stats[0]) * factor * factor);
}

double RegRule::step_scale(MatrixShape block, const StepInfo& info, double block_sum) const {
  if (!block_scale()) return info.lr * settings_.rho * std::sqrt(static_cast<double>(std::max(block.rows, block.cols)));
  const double rms = std::sqrt(block_sum / (static_cast<double>(block.rows) * static_cast<double>(block.cols)));
  if (rms == 0) return 0;
  if (!(rms < std::numeric_limits<double>::infinity())) return std::numeric_limits<double>::quiet_NaN();
  return info.lr * settings_.rho / rms;
}

void RegRule::apply(const RunTensors& run, MatrixShape, const StepInfo& info, DType momentum_dtype,
                    std::span<const LineFactors> passes, ThreadPool& pool, SweepHealth& health) const {
  if (run.run.empty()) return;
  apply_lines(tensors(run, info, momentum_dtype), passes, pool, health);
}

}  // namespace regatta
