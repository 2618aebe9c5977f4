// AdamW, elementwise; the formula is in kernels.h.

#include "kernels/cpu/apply.h"
#include "kernels/cpu/table.h"

namespace regatta::kernels::REGATTA_ISA {
namespace {

template <DType G, DType M, DType P>
void update(const AdamwArgs& args) {
  const auto* grad = static_cast<const Storage<G>*>(args.grad);
  auto* moment1 = static_cast<Storage<M>*>(args.moment1);
  float* moment2 = args.moment2;
  float* weight = args.weight;
  auto* param = static_cast<Storage<P>*>(args.param);
  const F32 grad_scale = splat(args.grad_scale), beta1 = splat(args.beta1),
            one_minus_beta1 = splat(args.one_minus_beta1), beta2 = splat(args.beta2),
            one_minus_beta2 = splat(args.one_minus_beta2), correction = splat(args.inverse_sqrt_correction2),
            eps = splat(args.eps), step = splat(args.step), decay = splat(args.decay);
  HealthTotals all;
  for_each_block(args.count, [&](std::int64_t begin, std::int64_t end) {
    BlockHealth health;
    for_each_part(begin, end, [&]<bool tail>(int part, std::int64_t i, std::int64_t left) {
      // Loads before stores: buffers often lie a power of two apart, and a load waits for a store with the same low
      // address bits.
      const F32 g = load<G, tail>(grad + i, left) * grad_scale, w = load<DType::f32, tail>(weight + i, left);
      const F32 v = fma(beta2, load<DType::f32, tail>(moment2 + i, left), (one_minus_beta2 * g) * g);
      const F32 m =
          store<M, tail>(moment1 + i, fma(beta1, load<M, tail>(moment1 + i, left), one_minus_beta1 * g), left);
      store<DType::f32, tail>(moment2 + i, v, left);
      F32 updated = fma(-step, m / fma(square_root(v), correction, eps), w * decay);
      // The lanes past the end are 0/eps, which is not a number when eps is 0.
      if constexpr (tail) {
        for (std::int64_t lane = left; lane < width; ++lane) updated[lane] = 0;
      }
      store<DType::f32, tail>(weight + i, updated, left);
      if constexpr (P != DType::f32) store<P, tail>(param + i, updated, left);
      health.update.add(part, updated - w);
      health.weight.add(part, updated);
    });
    all.add(health);
  });
  all.add_to(*args.health);
}

}  // namespace

void adamw(const AdamwArgs& args) {
  with_momentum_dtype(args.moment1_dtype, [&]<DType M>() {
    with_grad_dtype(args.grad_dtype, [&]<DType G>() {
      with_grad_dtype(args.param ? args.param_dtype : DType::f32, [&]<DType P>() { update<G, M, P>(args); });
    });
  });
}

}  // namespace regatta::kernels::REGATTA_ISA
