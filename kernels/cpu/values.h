#pragma once
// The values a of one row segment, as a sweep sees them: the momentum just updated, or the momentum scaled by earlier
// passes' factors. Per instruction set, as simd.h. at(part, i, count) is a vector of them from element i of the segment
// on.

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

namespace regatta::kernels::REGATTA_ISA {

/// Updates the momentum where it is read: m' = store(fma(mu, m, fl(one_minus_mu * fl(grad * grad_scale)))).
template <DType G, DType M>
struct UpdatedMomentum {
  const Storage<G>* grad;
  Storage<M>* momentum;
  F32 mu, one_minus_mu, grad_scale;

  UpdatedMomentum(const RegTensors& t, std::int64_t offset)
      : grad(static_cast<const Storage<G>*>(t.grad) + offset),
        momentum(static_cast<Storage<M>*>(t.momentum) + offset),
        mu(splat(t.mu)),
        one_minus_mu(splat(t.one_minus_mu)),
        grad_scale(splat(t.grad_scale)) {}

  /// The new momentum, before it is stored and rounded.
  template <bool tail>
  REGATTA_INLINE F32 next(std::int64_t i, std::int64_t count) const {
    const F32 g = load<G, tail>(grad + i, count), m = load<M, tail>(momentum + i, count);
    return fma(mu, m, one_minus_mu * (g * grad_scale));
  }
  template <bool tail>
  REGATTA_INLINE F32 put(std::int64_t i, F32 value, std::int64_t count) const {
    return store<M, tail>(momentum + i, value, count);
  }
  template <bool tail>
  REGATTA_INLINE F32 at(int, std::int64_t i, std::int64_t count) const {
    return put<tail>(i, next<tail>(i, count), count);
  }
};

/// The momentum as it lies in memory.
template <DType M>
struct StoredMomentum {
  const Storage<M>* momentum;

  StoredMomentum(const RegTensors& t, std::int64_t offset)
      : momentum(static_cast<const Storage<M>*>(t.momentum) + offset) {}

  template <bool tail>
  REGATTA_INLINE F32 at(int, std::int64_t i, std::int64_t count) const {
    return load<M, tail>(momentum + i, count);
  }
};

/// The momentum times earlier passes' factors, in their order, each product rounded.
template <DType M>
struct ScaledMomentum {
  const Storage<M>* momentum;
  const LineFactors* passes;
  int pass_count;
  std::int64_t row, col;  // of the first element; the row counts from the first one the run touches

  ScaledMomentum(const RegTensors& t, std::int64_t offset, const LineFactors* earlier, int count,
                 std::int64_t first_row, std::int64_t first_col)
      : momentum(static_cast<const Storage<M>*>(t.momentum) + offset),
        passes(earlier),
        pass_count(count),
        row(first_row),
        col(first_col) {}

  template <bool tail>
  REGATTA_INLINE F32 at(int, std::int64_t i, std::int64_t count) const {
    F32 a = load<M, tail>(momentum + i, count);
    for (int k = 0; k < pass_count; ++k) {
      const float* factor = passes[k].factor;
      a *= passes[k].line == Line::row ? splat(factor[row]) : load<DType::f32, tail>(factor + col + i, count);
    }
    return a;
  }
};

/// Calls body.template operator()<D>() for the dtype at hand.
template <class Body>
REGATTA_INLINE void with_grad_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32: return body.template operator()<DType::f32>();
    case DType::bf16: return body.template operator()<DType::bf16>();
    case DType::f16: return body.template operator()<DType::f16>();
  }
}
template <class Body>
REGATTA_INLINE void with_momentum_dtype(DType dtype, const Body& body) {
  if (dtype == DType::f32) return body.template operator()<DType::f32>();
  body.template operator()<DType::bf16>();
}

/// The dtype of the low-precision copy of the weights; f32 when there is none.
template <class Body>
REGATTA_INLINE void with_param_dtype(const RegTensors& t, const Body& body) {
  with_grad_dtype(t.param ? t.param_dtype : DType::f32, body);
}

/// Calls body(offset, row, col, count) for every row segment of the run: `row` counts from the first row touched.
template <class Body>
REGATTA_INLINE void for_each_row(const MatrixRun& run, const Body& body) {
  std::int64_t offset = 0, row = 0, col = run.cols > 0 ? run.begin % run.cols : 0;
  const std::int64_t numel = run.end - run.begin;
  while (offset < numel) {
    std::int64_t count = run.cols - col;
    if (count > numel - offset) count = numel - offset;
    body(offset, row, col, count);
    offset += count;
    ++row;
    col = 0;
  }
}

}  // namespace regatta::kernels::REGATTA_ISA
