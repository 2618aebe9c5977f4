#pragma once
// The sweeps of rules that see lines of their momentum, cut into tasks for a thread pool.

#include <span>

#include "kernels/kernels.h"
#include "runtime/rules/rule.h"
#include "runtime/rules/sweep_tasks.h"

namespace regatta {

/// A task of this size is swept in some tenths of a millisecond; a row of it stays in the second-level cache.
inline constexpr std::int64_t line_task_numel = 1 << 18;
/// Column sums cost some work per task and column.
inline constexpr std::int64_t column_task_numel = 1 << 20;

/// m <- momentum m + (1 - momentum) g, w decays by 1 - lr weight_decay.
kernels::RegTensors line_tensors(const RunTensors&, const StepInfo&, DType momentum_dtype, double momentum,
                                 double weight_decay);
/// The sub-run `run` of `whole`.
kernels::RegTensors part_of(const kernels::RegTensors& whole, const MatrixRun& run);
/// kernels::ObserveArgs over a whole run: adds squares, and with two kinds magnitudes, to `stats` ([kind][line]).
void observe_lines(const kernels::RegTensors&, std::span<const kernels::LineFactors> earlier, Line, int kinds,
                   std::span<kernels::LineSum> stats, ThreadPool&);
/// kernels::ApplyArgs over a whole run.
void apply_lines(const kernels::RegTensors&, std::span<const kernels::LineFactors> passes, ThreadPool&,
                 kernels::SweepHealth&);

}  // namespace regatta
