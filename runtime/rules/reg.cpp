#include "runtime/rules/reg.h"

#include <cmath>
#include <limits>

#include "runtime/error.h"
#include "runtime/rules/settings.h"
#include "runtime/rules/sweep_tasks.h"

namespace regatta {
namespace {

using kernels::LineFactors;
using kernels::LineSum;
using kernels::RegTensors;
using kernels::SweepHealth;

// A task of this size is swept in some tenths of a millisecond; a row of it stays in the second-level cache.
constexpr std::int64_t task_numel = 1 << 18;
// Column sums cost some work per task and column.
constexpr std::int64_t column_task_numel = 1 << 20;

RegTensors part_of(const RegTensors& whole, const MatrixRun& run) {
  const std::int64_t offset = run.begin - whole.run.begin;
  RegTensors part = whole;
  part.run = run;
  if (part.grad) part.grad = advance(part.grad, part.grad_dtype, offset);
  part.momentum = advance(part.momentum, part.momentum_dtype, offset);
  if (part.weight) part.weight += offset;
  if (part.param) part.param = advance(part.param, part.param_dtype, offset);
  return part;
}

// Factors of rows count from the first row a run touches.
void move_rows(std::span<LineFactors> factors, std::int64_t rows) {
  for (LineFactors& pass : factors)
    if (pass.line == Line::row) pass.factor += rows;
}

struct Passes {
  LineFactors entry[RegSettings::most_passes];
  int count = 0;
  explicit Passes(std::span<const LineFactors> passes) : count(static_cast<int>(passes.size())) {
    std::copy(passes.begin(), passes.end(), entry);
  }
};

void observe_task(const RegTensors& tensors, const Passes& earlier, std::int64_t row_offset, Line line,
                  LineSum* squares, LineSum* magnitudes) {
  Passes moved = earlier;
  move_rows({moved.entry, static_cast<std::size_t>(moved.count)}, row_offset);
  kernels::cpu_kernels().reg_observe({tensors, moved.entry, moved.count, line, squares, magnitudes});
}

void merge_lines(std::span<LineSum> to, std::span<const LineSum> from) {
  for (std::size_t i = 0; i < to.size(); ++i) kernels::merge(to[i], from[i]);
}

}  // namespace

std::string RegRule::settings_text() const {
  const char* p = settings_.p == RegSettings::Norm::one ? "1" : settings_.p == RegSettings::Norm::two ? "2" : "inf";
  return "reg momentum=" + shortest(settings_.momentum) + " rho=" + shortest(settings_.rho) +
         " weight_decay=" + shortest(settings_.weight_decay) + " p=" + p +
         " passes=" + std::to_string(settings_.passes) + " eps=" + shortest(settings_.eps) +
         " zero_line=" + (settings_.zero_line == RegSettings::ZeroLine::keep ? "keep" : "count");
}

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
  RegTensors t;
  t.run = run.run;
  t.grad = run.grad;
  t.grad_dtype = run.grad_dtype;
  t.momentum = run.state[0];
  t.momentum_dtype = momentum_dtype;
  t.weight = run.weight;
  t.param = run.param;
  t.param_dtype = run.param_dtype;
  const kernels::cuda::RegScalars numbers = reg_scalars(info);
  t.grad_scale = numbers.grad_scale;
  t.mu = numbers.mu;
  t.one_minus_mu = numbers.one_minus_mu;
  t.decay = numbers.decay;
  return t;
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
  const SweepTasks tasks(run.run, task_numel);
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
  const RegTensors all = tensors(run, info, momentum_dtype);
  const Passes passes(earlier);
  const Line line = line_of_pass(pass, block);
  const int kinds = stats_per_line(pass, block);
  const auto lines = static_cast<std::int64_t>(stats.size()) / kinds;
  const auto magnitudes_of = [&](LineSum* squares, std::int64_t count) {
    return kinds == 2 ? squares + count : nullptr;
  };

  if (line == Line::row) {
    const SweepTasks tasks(run.run, task_numel);
    if (!tasks.splits_rows()) {
      pool.run(tasks.count(), [&](std::int64_t task, int) {
        LineSum* squares = stats.data() + tasks.row_offset(task);
        observe_task(part_of(all, tasks.task(task)), passes, tasks.row_offset(task), line, squares,
                     magnitudes_of(squares, lines));
      });
      return;
    }
    const std::span<LineSum> parts = scratch_values<LineSum>(pool, 0, tasks.count() * kinds);
    pool.run(tasks.count(), [&](std::int64_t task, int) {
      LineSum* squares = &parts[task * kinds];
      observe_task(part_of(all, tasks.task(task)), passes, tasks.row_offset(task), line, squares,
                   magnitudes_of(squares, 1));
    });
    for (std::int64_t task = 0; task < tasks.count(); ++task)
      for (int kind = 0; kind < kinds; ++kind)
        kernels::merge(stats[kind * lines + tasks.row_offset(task)], parts[task * kinds + kind]);
    return;
  }

  // Every thread has sums of its own; the caller's are the result.
  const SweepTasks tasks(run.run, column_task_numel);
  const int threads = tasks.count() > 1 ? pool.threads() : 1;
  const auto sums_of = [&](int thread) {
    return thread == 0 ? stats.data() : reinterpret_cast<LineSum*>(pool.scratch(thread, stats.size_bytes()).data());
  };
  for (int thread = 1; thread < threads; ++thread) scratch_values<LineSum>(pool, thread, std::ssize(stats));
  pool.run(tasks.count(), [&](std::int64_t task, int thread) {
    LineSum* squares = sums_of(thread);
    observe_task(part_of(all, tasks.task(task)), passes, tasks.row_offset(task), line, squares,
                 magnitudes_of(squares, lines));
  });
  for (int thread = 1; thread < threads; ++thread) merge_lines(stats, {sums_of(thread), stats.size()});
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
  const RegTensors all = tensors(run, info, momentum_dtype);
  const Passes unmoved(passes);
  const SweepTasks tasks(run.run, task_numel);
  run_with_health(pool, tasks.count(), health, [&](std::int64_t task, SweepHealth& part) {
    Passes moved = unmoved;
    move_rows({moved.entry, static_cast<std::size_t>(moved.count)}, tasks.row_offset(task));
    kernels::cpu_kernels().reg_apply({part_of(all, tasks.task(task)), moved.entry, moved.count, &part});
  });
}

}  // namespace regatta
