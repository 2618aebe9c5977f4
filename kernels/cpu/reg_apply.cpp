// REG's last sweep over open lines: weights from the momentum and the lines' factors.

#include "kernels/cpu/apply.h"
#include "kernels/cpu/table.h"

namespace regatta::kernels::REGATTA_ISA {
namespace {

template <DType M, DType P>
void apply(const ApplyArgs& args) {
  const RegTensors& t = args.tensors;
  const int earlier = args.pass_count - 1;
  const LineFactors last = args.passes[earlier];
  HealthTotals lanes;
  for_each_row(t.run, [&](std::int64_t offset, std::int64_t row, std::int64_t col, std::int64_t count) {
    const auto with_steps = [&](const auto& values) {
      if (last.line == Line::row) {
        apply_segment<P>(t, offset, count, values, OneStep{splat(last.factor[row])}, lanes);
      } else {
        apply_segment<P>(t, offset, count, values, StepPerColumn{last.factor + col}, lanes);
      }
    };
    if (earlier == 0) {
      with_steps(StoredMomentum<M>(t, offset));
    } else {
      with_steps(ScaledMomentum<M>(t, offset, args.passes, earlier, row, col));
    }
  });
  lanes.add_to(*args.health);
}

}  // namespace

void reg_apply(const ApplyArgs& args) {
  const RegTensors& t = args.tensors;
  with_momentum_dtype(t.momentum_dtype, [&]<DType M>() { with_param_dtype(t, [&]<DType P>() { apply<M, P>(args); }); });
}

}  // namespace regatta::kernels::REGATTA_ISA
