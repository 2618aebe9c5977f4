#pragma once
// The last step of a REG sweep on one row segment: w' = fma(-step, a, fl(w * decay)). Per instruction set, as simd.h.

#include "kernels/cpu/values.h"

namespace regatta::kernels::REGATTA_ISA {

/// Sums of squares for the health figures: fp32 over a block, fp64 over blocks, in step_width lanes so that their order
/// is the same on every instruction set.
struct SquareLanes {
  F32 lanes[parts] = {};

  /// Adds the squares of part `part` of a step.
  REGATTA_INLINE void add(int part, F32 x) { lanes[part] = fma(x, x, lanes[part]); }
};
struct SquareTotals {
  F64 lanes[2 * parts] = {};

  REGATTA_INLINE void add(const SquareLanes& block) {
    for (int part = 0; part < parts; ++part) {
      const Wide wide = widen(block.lanes[part]);
      lanes[2 * part] += wide.low;
      lanes[2 * part + 1] += wide.high;
    }
  }
  REGATTA_INLINE double sum() const {
    double all[step_width];
    std::memcpy(all, lanes, sizeof all);
    return sum_of_lanes(all);
  }
};

/// Of one block, at most block_numel elements; small enough for registers.
struct BlockHealth {
  SquareLanes update, weight;
};
struct HealthTotals {
  SquareTotals update, weight;
  REGATTA_INLINE void add(const BlockHealth& block) {
    update.add(block.update);
    weight.add(block.weight);
  }
  REGATTA_INLINE void add_to(SweepHealth& health) const {
    health.update_squares += update.sum();
    health.weight_squares += weight.sum();
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

/// The weights of one row segment; P is the dtype of their low-precision copy, f32 when there is none.
template <DType P>
struct Weights {
  float* weight;
  Storage<P>* param;
  F32 decay;

  Weights(const RegTensors& t, std::int64_t offset)
      : weight(t.weight + offset),
        param(P == DType::f32 ? nullptr : static_cast<Storage<P>*>(t.param) + offset),
        decay(splat(t.decay)) {}

  /// Part `part` of a step, its elements from `i` on.
  template <bool tail>
  REGATTA_INLINE void apply(int part, std::int64_t i, std::int64_t count, F32 step, F32 a, BlockHealth& health) const {
    const F32 w = load<DType::f32, tail>(weight + i, count);
    const F32 updated = fma(-step, a, w * decay);
    store<DType::f32, tail>(weight + i, updated, count);
    if constexpr (P != DType::f32) store<P, tail>(param + i, updated, count);
    health.update.add(part, updated - w);
    health.weight.add(part, updated);
  }
};

template <DType P, class Values, class Steps>
REGATTA_INLINE void apply_segment(const RegTensors& t, std::int64_t offset, std::int64_t count, const Values& values,
                                  const Steps& steps, HealthTotals& health) {
  const Weights<P> weights(t, offset);
  for_each_block(count, [&](std::int64_t begin, std::int64_t end) {
    BlockHealth block;
    for_each_part(begin, end, [&]<bool tail>(int part, std::int64_t i, std::int64_t left) {
      prefetch_ahead<1024>(weights.weight + i);
      weights.template apply<tail>(part, i, left, steps.template at<tail>(i, left),
                                   values.template at<tail>(part, i, left), block);
    });
    health.add(block);
  });
}

}  // namespace regatta::kernels::REGATTA_ISA
