#pragma once
// The last step of a REG sweep on one row segment: w' = fma(-step, a, fl(w * decay)). Per instruction set, as simd.h.

#include "kernels/cpu/values.h"

namespace regatta::kernels::REGATTA_ISA {

/// Sums of squares in fp64, over step_width lanes so that their order is the same on every instruction set.
struct SquareLanes {
  F64 sum[2 * parts] = {};

  /// Adds the squares of part `part` of a step.
  REGATTA_INLINE void add(int part, F32 x) {
    const Wide wide = widen(x);
    sum[2 * part] = square_plus(wide.low, sum[2 * part]);
    sum[2 * part + 1] = square_plus(wide.high, sum[2 * part + 1]);
  }
  REGATTA_INLINE double total() const {
    double lanes[step_width];
    std::memcpy(lanes, sum, sizeof lanes);
    return sum_of_lanes(lanes);
  }
};

struct HealthLanes {
  SquareLanes update, weight;
  REGATTA_INLINE void add_to(SweepHealth& health) const {
    health.update_squares += update.total();
    health.weight_squares += weight.total();
  }
};

struct OneStep {  // of a whole row
  F32 step;
  template <bool tail>
  REGATTA_INLINE F32 at(std::int64_t, std::int64_t) const {
    return step;
  }
};
struct StepPerColumn {
  const float* step;
  template <bool tail>
  REGATTA_INLINE F32 at(std::int64_t i, std::int64_t count) const {
    return load<DType::f32, tail>(step + i, count);
  }
};

/// P is the dtype of the low-precision copy; f32 means there is none.
template <DType P, class Values, class Steps>
REGATTA_INLINE void apply_segment(const RegTensors& t, std::int64_t offset, std::int64_t count, const Values& values,
                                  const Steps& steps, HealthLanes& health) {
  float* weight = t.weight + offset;
  Storage<P>* param = P == DType::f32 ? nullptr : static_cast<Storage<P>*>(t.param) + offset;
  const F32 decay = splat(t.decay);
  const auto part = [&]<bool tail>(int k, std::int64_t i, std::int64_t left) {
    const F32 a = values.template at<tail>(i, left), w = load<DType::f32, tail>(weight + i, left);
    const F32 updated = fma(-steps.template at<tail>(i, left), a, w * decay);
    store<DType::f32, tail>(weight + i, updated, left);
    if constexpr (P != DType::f32) store<P, tail>(param + i, updated, left);
    health.update.add(k, updated - w);
    health.weight.add(k, updated);
  };
  std::int64_t i = 0;
  for (; i + step_width <= count; i += step_width)
#pragma GCC unroll 4
    for (int k = 0; k < parts; ++k) part.template operator()<false>(k, i + k * width, width);
#pragma GCC unroll 4
  for (int k = 0; k < parts; ++k) {
    const std::int64_t begin = i + k * width;
    if (begin < count) part.template operator()<true>(k, begin, count - begin < width ? count - begin : width);
  }
}

/// Applies one row segment whose step is one number, a being the momentum.
using ApplyRow = void (*)(const RegTensors&, std::int64_t offset, std::int64_t count, float step, SweepHealth&);
/// `param` null means that there is no low-precision copy.
ApplyRow apply_row(DType momentum_dtype, const void* param, DType param_dtype);

}  // namespace regatta::kernels::REGATTA_ISA
