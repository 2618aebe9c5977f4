// REG over rows: the one-sweep update of whole rows, and the statistics of rows that other runs share.

#include "kernels/cpu/apply.h"
#include "kernels/cpu/line_sums.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/values.h"

namespace regatta::kernels::REGATTA_ISA {
namespace {

// Adds the terms of `count` values to `line`. `values(offset)` are those from an offset on; the first reading may have
// effects, `stored(offset)` reads the same values again.
template <Term term, class Values, class Stored>
REGATTA_INLINE void add_row(LineSum& line, std::int32_t hint, std::int64_t count, const Values& values,
                            const Stored& stored) {
  for (std::int64_t i = 0; i < count; i += block_numel) {
    const std::int64_t numel = count - i < block_numel ? count - i : block_numel;
    const std::int32_t guess = guess_bin(line, hint);
    settle<term>(line, sum_block<term>(values(i), numel, guess), guess,
                 [&](std::int32_t bin) { return sum_block<term>(stored(i), numel, bin); });
  }
}

// The bin of a neighbouring line is the best guess for the next one.
REGATTA_INLINE void learn(std::int32_t& hint, const LineSum& line) { hint = guess_bin(line, hint); }

template <DType G, DType M>
void update_rows(const UpdateRowsArgs& args) {
  const RegTensors& t = args.tensors;
  const ApplyRow apply = apply_row(M, t.param, t.param_dtype);
  std::int32_t hint = 0;
  for_each_row(t.run, [&](std::int64_t offset, std::int64_t, std::int64_t, std::int64_t count) {
    LineSum line;
    add_row<Term::square>(
        line, hint, count, [&](std::int64_t i) { return UpdatedMomentum<G, M>(t, offset + i); },
        [&](std::int64_t i) { return StoredMomentum<M>(t, offset + i); });
    learn(hint, line);
    const double norm = __builtin_sqrt(value(line));
    count_line(*args.health, norm, args.eps);
    apply(t, offset, count, step_factor(inverse_norm(norm, args.eps), args.scale), *args.health);
  });
}

template <Term term, DType M>
void observe_stored(const ObserveArgs& args, LineSum* sums) {
  const RegTensors& t = args.tensors;
  std::int32_t hint = 0;
  for_each_row(t.run, [&](std::int64_t offset, std::int64_t row, std::int64_t col, std::int64_t count) {
    const auto values = [&](std::int64_t i) {
      return ScaledMomentum<M>(t, offset + i, args.earlier, args.earlier_count, row, col + i);
    };
    LineSum line;
    add_row<term>(line, hint, count, values, values);
    learn(hint, line);
    merge(sums[row], line);
  });
}

template <Term term, DType G, DType M>
void observe_updated(const ObserveArgs& args, LineSum* sums) {
  const RegTensors& t = args.tensors;
  std::int32_t hint = 0;
  for_each_row(t.run, [&](std::int64_t offset, std::int64_t row, std::int64_t, std::int64_t count) {
    LineSum line;
    add_row<term>(
        line, hint, count, [&](std::int64_t i) { return UpdatedMomentum<G, M>(t, offset + i); },
        [&](std::int64_t i) { return StoredMomentum<M>(t, offset + i); });
    learn(hint, line);
    merge(sums[row], line);
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
  with_momentum_dtype(t.momentum_dtype,
                      [&]<DType M>() { with_grad_dtype(t.grad_dtype, [&]<DType G>() { update_rows<G, M>(args); }); });
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
