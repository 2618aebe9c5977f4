#pragma once
// A rank's share of one block, as the engine sweeps it: a run, its tensors, and for each line pass the statistics and
// factors of the lines it touches.

#include <memory>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/rules/rule.h"
#include "sharding/plan.h"

namespace regatta {

/// The lines of one pass that a run touches; line `first` of the block has index 0 in the arrays.
struct PassLines {
  Line line = Line::row;
  std::int64_t first = 0;
  std::int64_t count = 0;
  int stats_per_line = 0;
  std::vector<kernels::LineSum> stats;  ///< [statistic][line]
  std::vector<float> inverse;           ///< [line]
  std::vector<Range> closed;            ///< lines only this rank holds, in the block's coordinates

  bool contains(Range lines) const { return first <= lines.begin && lines.end <= first + count; }
};

struct Work {
  int piece = 0;  ///< index into the rank's layout
  int param = 0;
  int block = 0;
  int group = 0;
  int bucket = 0;
  bool primary = true;
  bool one_sweep = true;  ///< elements, or closed rows: Rule::update does it all
  MatrixShape shape;      ///< of the whole logical block
  sharding::View view;
  std::vector<void*> state;
  RunTensors tensors;
  std::int64_t bucket_offset = 0;  ///< of the run's first element

  std::vector<PassLines> passes;              ///< empty when one_sweep
  std::vector<kernels::LineFactors> factors;  ///< of all passes, for observe and apply
  kernels::LineSum block_terms;
  double block_sum = 0;
  bool block_closed = true;  ///< nobody else holds a part of this block
  kernels::SweepHealth health;

  int rounds() const { return one_sweep ? 0 : static_cast<int>(passes.size()) + (view.block_scale ? 1 : 0); }
};

/// The works of `rank`: every piece, split into its closed rows (one sweep) and the partial rows before and after them
/// where the view allows. Tensors are not bound yet.
std::vector<Work> make_works(const sharding::Plan& plan, int rank, std::span<const Rule* const> rule_of_param,
                             std::span<const int> group_of_param);

/// Round `round` of a work that is not one_sweep: adds this rank's share of the pass's statistics and finishes the
/// lines nobody else holds. Rounds past the work's own do nothing.
void observe_work(Work& work, const Rule& rule, int round, const StepInfo& info, DType momentum_dtype,
                  ThreadPool& pool);
/// The last sweep of a work that is not one_sweep, once all its lines are finished.
void apply_work(Work& work, const Rule& rule, const StepInfo& info, DType momentum_dtype, ThreadPool& pool);

/// Finishes line `index` of pass `pass` from its whole statistics: inverse norm, and the block's term after the last
/// pass.
float finish_line(Work& work, const Rule& rule, int pass, std::span<const kernels::LineSum> stats);
/// Finishes the lines that only this rank holds.
void finish_closed_lines(Work& work, const Rule& rule, int pass);

}  // namespace regatta
