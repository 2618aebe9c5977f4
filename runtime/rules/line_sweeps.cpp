#include "runtime/rules/line_sweeps.h"

#include "runtime/rules/reg.h"

namespace regatta {
namespace {

using kernels::LineFactors;
using kernels::LineSum;
using kernels::RegTensors;
using kernels::SweepHealth;

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

RegTensors line_tensors(const RunTensors& run, const StepInfo& info, DType momentum_dtype, double momentum,
                        double weight_decay) {
  RegTensors t;
  t.run = run.run;
  t.grad = run.grad;
  t.grad_dtype = run.grad_dtype;
  t.momentum = run.state[0];
  t.momentum_dtype = momentum_dtype;
  t.weight = run.weight;
  t.param = run.param;
  t.param_dtype = run.param_dtype;
  t.grad_scale = info.grad_scale;
  t.mu = static_cast<float>(momentum);
  t.one_minus_mu = static_cast<float>(1 - momentum);
  t.decay = static_cast<float>(1 - info.lr * weight_decay);
  return t;
}

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

void observe_lines(const RegTensors& all, std::span<const LineFactors> earlier, Line line, int kinds,
                   std::span<LineSum> stats, ThreadPool& pool) {
  const Passes passes(earlier);
  const auto lines = static_cast<std::int64_t>(stats.size()) / kinds;
  const auto magnitudes_of = [&](LineSum* squares, std::int64_t count) {
    return kinds == 2 ? squares + count : nullptr;
  };

  if (line == Line::row) {
    const SweepTasks tasks(all.run, line_task_numel);
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
  const SweepTasks tasks(all.run, column_task_numel);
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

void apply_lines(const RegTensors& all, std::span<const LineFactors> passes, ThreadPool& pool, SweepHealth& health) {
  const Passes unmoved(passes);
  const SweepTasks tasks(all.run, line_task_numel);
  run_with_health(pool, tasks.count(), health, [&](std::int64_t task, SweepHealth& part) {
    Passes moved = unmoved;
    move_rows({moved.entry, static_cast<std::size_t>(moved.count)}, tasks.row_offset(task));
    kernels::cpu_kernels().reg_apply({part_of(all, tasks.task(task)), moved.entry, moved.count, &part});
  });
}

}  // namespace regatta
