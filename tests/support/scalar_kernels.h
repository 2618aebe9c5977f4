#pragma once
// The kernel table once more, one element at a time and as plainly as kernels.h states it: the twin that every other
// table must match bit for bit (health figures excepted: their order of summation is free).

#include <bit>
#include <cmath>
#include <vector>

#include "kernels/kernels.h"

namespace regatta::testing {

using kernels::LineFactors;
using kernels::LineSum;
using kernels::WholeSum;

inline float read(DType dtype, const void* from, std::int64_t i) {
  switch (dtype) {
    case DType::f32: return static_cast<const float*>(from)[i];
    case DType::bf16: return std::bit_cast<float>(std::uint32_t{static_cast<const std::uint16_t*>(from)[i]} << 16);
    case DType::f16: return static_cast<float>(static_cast<const _Float16*>(from)[i]);
  }
  return 0;
}

inline void write(DType dtype, void* to, std::int64_t i, float x) {
  switch (dtype) {
    case DType::f32: static_cast<float*>(to)[i] = x; return;
    case DType::f16: static_cast<_Float16*>(to)[i] = static_cast<_Float16>(x); return;
    case DType::bf16: break;
  }
  std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) {
    bits |= 0x400000U;
  } else {
    const std::uint32_t rest = bits & 0xffffU, below = bits - rest;
    const bool up = rest > 0x8000U || (rest == 0x8000U && (below & 0x10000U) != 0);
    bits = up ? below + 0x10000U : below;
  }
  static_cast<std::uint16_t*>(to)[i] = static_cast<std::uint16_t>(bits >> 16);
}

inline void note_largest(LineSum& sum, float a) {
  const float magnitude = std::isfinite(a) ? std::fabs(a) : INFINITY;
  if (magnitude > sum.largest) sum.largest = magnitude;
}
inline void add_square(LineSum& sum, float a) {
  note_largest(sum, a);
  kernels::add(sum, static_cast<double>(a) * a);
}
inline void add_magnitude(LineSum& sum, float a) {
  note_largest(sum, a);
  kernels::add(sum, std::fabs(static_cast<double>(a)));
}

inline float update_momentum(const kernels::RegTensors& t, std::int64_t i) {
  const float g = read(t.grad_dtype, t.grad, i) * t.grad_scale;
  const float scaled = t.one_minus_mu * g;
  write(t.momentum_dtype, t.momentum, i, std::fmaf(t.mu, read(t.momentum_dtype, t.momentum, i), scaled));
  return read(t.momentum_dtype, t.momentum, i);
}

inline void write_weight(const kernels::RegTensors& t, std::int64_t i, float step, float a,
                         kernels::SweepHealth& health) {
  const float old = t.weight[i], decayed = old * t.decay;
  const float updated = std::fmaf(-step, a, decayed);
  t.weight[i] = updated;
  if (t.param) write(t.param_dtype, t.param, i, updated);
  health.update_squares += std::pow(static_cast<double>(updated - old), 2);
  health.weight_squares += std::pow(static_cast<double>(updated), 2);
}

inline std::int64_t line_index(const MatrixRun& run, std::int64_t i, Line line) {
  const std::int64_t at = run.begin + i;
  return line == Line::row ? at / run.cols - run.begin / run.cols : at % run.cols;
}

inline float scaled(const kernels::RegTensors& t, const LineFactors* passes, int count, std::int64_t i) {
  float a = read(t.momentum_dtype, t.momentum, i);
  for (int k = 0; k < count; ++k) a = a * passes[k].factor[line_index(t.run, i, passes[k].line)];
  return a;
}

inline void scalar_update_rows(const kernels::UpdateRowsArgs& args) {
  const kernels::RegTensors& t = args.tensors;
  for (std::int64_t begin = 0; begin < t.run.numel(); begin += t.run.cols) {
    LineSum sum;
    for (std::int64_t i = begin; i < begin + t.run.cols; ++i) add_square(sum, update_momentum(t, i));
    const double norm = std::sqrt(kernels::value(sum));
    kernels::count_line(*args.health, norm, args.eps);
    const float step = kernels::step_factor(kernels::inverse_norm(norm, args.eps), args.scale);
    for (std::int64_t i = begin; i < begin + t.run.cols; ++i)
      write_weight(t, i, step, read(t.momentum_dtype, t.momentum, i), *args.health);
  }
}

inline void scalar_observe(const kernels::ObserveArgs& args) {
  const kernels::RegTensors& t = args.tensors;
  for (std::int64_t i = 0; i < t.run.numel(); ++i) {
    if (args.earlier_count == 0) update_momentum(t, i);
    const float a = scaled(t, args.earlier, args.earlier_count, i);
    const std::int64_t line = line_index(t.run, i, args.line);
    if (args.squares) add_square(args.squares[line], a);
    if (args.magnitudes) add_magnitude(args.magnitudes[line], a);
  }
}

inline void scalar_apply(const kernels::ApplyArgs& args) {
  const kernels::RegTensors& t = args.tensors;
  const LineFactors& last = args.passes[args.pass_count - 1];
  for (std::int64_t i = 0; i < t.run.numel(); ++i)
    write_weight(t, i, last.factor[line_index(t.run, i, last.line)], scaled(t, args.passes, args.pass_count - 1, i),
                 *args.health);
}

inline void scalar_adamw(const kernels::AdamwArgs& args) {
  for (std::int64_t i = 0; i < args.count; ++i) {
    const float g = read(args.grad_dtype, args.grad, i) * args.grad_scale;
    const float first = args.one_minus_beta1 * g;
    write(args.moment1_dtype, args.moment1, i, std::fmaf(args.beta1, read(args.moment1_dtype, args.moment1, i), first));
    const float m = read(args.moment1_dtype, args.moment1, i);
    const float second = args.one_minus_beta2 * g;
    const float square = second * g;
    const float v = std::fmaf(args.beta2, args.moment2[i], square);
    args.moment2[i] = v;
    const float old = args.weight[i], decayed = old * args.decay;
    const float denominator = std::fmaf(std::sqrt(v), args.inverse_sqrt_correction2, args.eps);
    const float updated = std::fmaf(-args.step, m / denominator, decayed);
    args.weight[i] = updated;
    if (args.param) write(args.param_dtype, args.param, i, updated);
    args.health->update_squares += std::pow(static_cast<double>(updated - old), 2);
    args.health->weight_squares += std::pow(static_cast<double>(updated), 2);
  }
}

inline void scalar_reduce_tree(const kernels::ReduceTreeArgs& args) {
  for (std::int64_t i = 0; i < args.count; ++i) {
    std::vector<float> level;
    for (int piece = 0; piece < args.piece_count; ++piece) level.push_back(read(args.dtype, args.pieces[piece], i));
    while (level.size() > 1) {
      std::vector<float> next;
      for (std::size_t k = 0; k < level.size(); k += 2)
        next.push_back(k + 1 < level.size() ? level[k] + level[k + 1] : level[k]);
      level = next;
    }
    if (args.out) args.out[i] = level[0];
    if (!std::isfinite(level[0])) {
      if (args.non_finite) ++*args.non_finite;
    } else if (args.squares) {
      kernels::add(*args.squares, static_cast<double>(level[0]) * level[0]);
    }
  }
}

inline void scalar_accumulate(float* dst, const void* src, DType dtype, std::int64_t count, bool overwrite) {
  for (std::int64_t i = 0; i < count; ++i) dst[i] = overwrite ? read(dtype, src, i) : dst[i] + read(dtype, src, i);
}
inline void scalar_to_f32(const void* src, DType dtype, float* dst, std::int64_t count) {
  scalar_accumulate(dst, src, dtype, count, true);
}
inline void scalar_from_f32(const float* src, void* dst, DType dtype, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) write(dtype, dst, i, src[i]);
}

inline const kernels::KernelTable scalar_kernels{"scalar",          scalar_update_rows, scalar_observe,
                                                 scalar_apply,      scalar_adamw,       scalar_reduce_tree,
                                                 scalar_accumulate, scalar_to_f32,      scalar_from_f32};

}  // namespace regatta::testing
