// REG over rows: the one-sweep update of whole rows, and the statistics of rows that other runs share.

#include "kernels/cpu/apply.h"
#include "kernels/cpu/line_sums.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/values.h"

namespace regatta::kernels::REGATTA_ISA {
namespace {

// The bin of a neighbouring line is the best guess for the next one.
template <Term term>
REGATTA_INLINE LineSum finish(LineAccumulator<term>& row, std::int32_t& hint) {
  const LineSum line = row.finish();
  if (line.bin != empty_bin && line.bin != non_finite_bin) hint = line.bin;
  return line;
}

template <Term term, class Values, class Stored>
REGATTA_INLINE LineSum sum_row(std::int32_t& hint, std::int64_t count, const Values& values, const Stored& stored) {
  LineAccumulator<term> row(hint);
  for_each_block(count, [&](std::int64_t begin, std::int64_t end) { row.add_block(begin, end, values, stored); });
  return finish(row, hint);
}

// Updates one row's momentum and, in the same loop, the weights of the row above, whose norm is known by now: the sweep
// then has all its streams in flight at all times, and the row above is still in the cache.
template <DType G, DType M, DType P>
struct UpdateAndApplyAbove {
  UpdatedMomentum<G, M> row;
  StoredMomentum<M> above;
  Weights<P> weights;
  F32 step;
  BlockHealth& health;

  template <bool tail>
  REGATTA_INLINE F32 at(int part, std::int64_t i, std::int64_t count) const {
    // Loads before stores: rows often lie a power of two apart, and a load waits for a store with the same low address
    // bits.
    prefetch_ahead<4096>(row.grad + i);
    prefetch_ahead<4096>(row.momentum + i);
    prefetch_ahead<4096>(weights.weight + i);
    const F32 momentum = row.template next<tail>(i, count);
    weights.template apply<tail>(part, i, count, step, above.template at<tail>(part, i, count), health);
    return row.template put<tail>(i, momentum, count);
  }
};

template <DType G, DType M, DType P>
void update_rows(const UpdateRowsArgs& args) {
  const RegTensors& t = args.tensors;
  const std::int64_t cols = t.run.cols, numel = t.run.end - t.run.begin;
  std::int32_t hint = 0;
  float step = 0;  // of the row above
  HealthTotals totals;
  for (std::int64_t offset = 0; offset < numel; offset += cols) {
    const UpdatedMomentum<G, M> updated(t, offset);
    const StoredMomentum<M> stored(t, offset);
    LineAccumulator<Term::square> row(hint);
    for_each_block(cols, [&](std::int64_t begin, std::int64_t end) {
      if (offset == 0) return row.add_block(begin, end, updated, stored);
      BlockHealth health;
      const UpdateAndApplyAbove<G, M, P> both{updated, StoredMomentum<M>(t, offset - cols),
                                              Weights<P>(t, offset - cols), splat(step), health};
      row.add_block(begin, end, both, stored);
      totals.add(health);
    });
    const double norm = __builtin_sqrt(value(finish(row, hint)));
    count_line(*args.health, norm, args.eps);
    step = step_factor(inverse_norm(norm, args.eps), args.scale);
  }
  apply_segment<P>(t, numel - cols, cols, StoredMomentum<M>(t, numel - cols), OneStep{splat(step)}, totals);
  totals.add_to(*args.health);
}

template <Term term, DType M>
void observe_stored(const ObserveArgs& args, LineSum* sums) {
  const RegTensors& t = args.tensors;
  std::int32_t hint = 0;
  for_each_row(t.run, [&](std::int64_t offset, std::int64_t row, std::int64_t col, std::int64_t count) {
    const ScaledMomentum<M> values(t, offset, args.earlier, args.earlier_count, row, col);
    merge(sums[row], sum_row<term>(hint, count, values, values));
  });
}

template <Term term, DType G, DType M>
void observe_updated(const ObserveArgs& args, LineSum* sums) {
  const RegTensors& t = args.tensors;
  std::int32_t hint = 0;
  for_each_row(t.run, [&](std::int64_t offset, std::int64_t row, std::int64_t, std::int64_t count) {
    merge(sums[row], sum_row<term>(hint, count, UpdatedMomentum<G, M>(t, offset), StoredMomentum<M>(t, offset)));
  });
}

template <Term term>
void observe(const ObserveArgs& args, LineSum* sums, bool update) {
  const RegTensors& t = args.tensors;
  with_momentum_dtype(t.momentum_dtype, [&]<DType M>() {
    if (!update) return observe_stored<term, M>(args, sums);
    with_grad_dtype(t.grad_dtype, [&]<DType G>() { observe_updated<term, G, M>(args, sums); });
  });
}

}  // namespace

void reg_update_rows(const UpdateRowsArgs& args) {
  const RegTensors& t = args.tensors;
  if (t.run.empty()) return;
  with_momentum_dtype(t.momentum_dtype, [&]<DType M>() {
    with_grad_dtype(t.grad_dtype,
                    [&]<DType G>() { with_param_dtype(t, [&]<DType P>() { update_rows<G, M, P>(args); }); });
  });
}

void observe_rows(const ObserveArgs& args) {
  bool update = args.earlier_count == 0;
  if (args.squares) {
    observe<Term::square>(args, args.squares, update);
    update = false;
  }
  if (args.magnitudes) observe<Term::magnitude>(args, args.magnitudes, update);
}

}  // namespace regatta::kernels::REGATTA_ISA
