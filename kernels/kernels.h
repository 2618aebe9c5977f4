#pragma once
// The kernel table: every sweep over memory that the engine makes, as plain functions on pointers and counts.
//
// Contract of all kernels
// - No allocation, no global state, no threads: the caller splits a run into sub-runs and may run them at the same
// time.
// - Pointers address the first element of the (sub-)run, `run.begin`.
// - Element arithmetic is fixed by the formulas below: fma(), division and sqrt() are the correctly rounded fp32 ones,
//   fl() marks a rounding to fp32, nothing is contracted or reassociated. The bits of a result depend on its inputs
//   only, never on how runs are split, on the instruction set or on alignment.
// - Line sums are exact_sum.h's, so partial sums of sub-runs merge to the same bits in any order.
// - bf16 and fp16 are read exactly and written round to nearest even (NaN stays NaN).
// - Health figures are plain sums, fp32 over some thousand elements and fp64 beyond, good to six digits: equal for
// equal
//   splits on every instruction set, not across layouts.

#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/exact_sum.h"
#include "sharding/dtype.h"
#include "sharding/geometry.h"

namespace regatta::kernels {

/// What falls out of an update sweep besides the update. Kernels add to it.
struct SweepHealth {
  double update_squares = 0;               ///< sum of (w' - w)^2
  double weight_squares = 0;               ///< sum of w'^2
  float smallest_norm = __builtin_inff();  ///< over non-zero lines
  float largest_norm = 0;
  std::int64_t zero_lines = 0;        ///< lines whose norm is at most the smallest normal fp32
  std::int64_t clamped_lines = 0;     ///< non-zero lines whose norm is below eps
  std::int64_t non_finite_lines = 0;  ///< lines whose norm is Inf or NaN (momentum overflow)

  /// Adds another part's figures; figures of parts are added in a fixed order by the caller.
  [[gnu::always_inline]] void add(const SweepHealth& other) {
    update_squares += other.update_squares;
    weight_squares += other.weight_squares;
    if (other.smallest_norm < smallest_norm) smallest_norm = other.smallest_norm;
    if (other.largest_norm > largest_norm) largest_norm = other.largest_norm;
    zero_lines += other.zero_lines;
    clamped_lines += other.clamped_lines;
    non_finite_lines += other.non_finite_lines;
  }
};

/// The tensors of one (sub-)run and the numbers every element uses.
struct RegTensors {
  MatrixRun run;
  const void* grad = nullptr;  ///< read by update_rows and by observe's first pass only
  DType grad_dtype = DType::f32;
  void* momentum = nullptr;
  DType momentum_dtype = DType::f32;  ///< f32 or bf16
  float* weight = nullptr;            ///< the parameter itself when it is fp32, master weights otherwise
  void* param = nullptr;              ///< low-precision copy to write; null when the parameter is fp32
  DType param_dtype = DType::f32;
  float grad_scale = 1;  ///< clip factor over loss scale
  float mu = 0.95F;
  float one_minus_mu = 0.05F;
  float decay = 1;  ///< 1 - lr * weight_decay
};

/// The inverse norm of a line of p-norm `norm`: 0 for a zero line (norm <= smallest normal fp32), 1/max(norm, eps)
/// otherwise; NaN when the norm is not finite, so that a broken line shows instead of standing still. One place for all
/// kernels and for the owner of an open line.
[[gnu::always_inline]] inline float inverse_norm(double norm, double eps) {
  if (norm <= 0x1p-126) return 0;
  if (!(norm < __builtin_inf())) return __builtin_nanf("");
  return static_cast<float>(1.0 / (norm > eps ? norm : eps));
}
/// lr * scale folded into the last pass's inverse norm: step = fl(inverse * scale).
[[gnu::always_inline]] inline float step_factor(float inverse, double scale) {
  return static_cast<float>(static_cast<double>(inverse) * scale);
}

/// Counts a line into the health figures; `norm` as a double, `eps` as in inverse_norm.
[[gnu::always_inline]] inline void count_line(SweepHealth& health, double norm, double eps) {
  if (!(norm < __builtin_inf())) {
    ++health.non_finite_lines;
  } else if (norm <= 0x1p-126) {
    ++health.zero_lines;
  } else {
    if (norm < eps) ++health.clamped_lines;
    const float n = static_cast<float>(norm);
    if (n < health.smallest_norm) health.smallest_norm = n;
    if (n > health.largest_norm) health.largest_norm = n;
  }
}

/// One sweep for closed rows, p = 2, one pass. Requires a run of whole rows.
///
///     m' = store(fma(mu, m, fl(one_minus_mu * fl(grad * grad_scale))))       store: to the momentum's dtype
///     inverse = inverse_norm(sqrt(exact sum of m'^2 over the row), eps)
///     w' = fma(-step_factor(inverse, scale), m', fl(w * decay)),  param = round(w')
struct UpdateRowsArgs {
  RegTensors tensors;
  double scale = 0;  ///< lr * rho * sqrt(max(m, n)) of the global logical block
  double eps = 1e-12;
  SweepHealth* health = nullptr;
};

/// The inverse norms of one line pass, one per line. `factor[0]` belongs to the first row the run touches (rows), or to
/// column 0 of the run's local matrix (columns).
struct LineFactors {
  Line line = Line::row;
  const float* factor = nullptr;
};

/// First sweep for open lines. Pass 0 (no earlier factors) updates the momentum as above; later passes leave it and see
///
///     a = m' * factor_0[line_0] * factor_1[line_1] ...     in this order, each product rounded to fp32
///
/// and every pass adds the line sums of a (a = m' in pass 0): squares, magnitudes |a|, and the largest |a|.
struct ObserveArgs {
  RegTensors tensors;
  const LineFactors* earlier = nullptr;
  int earlier_count = 0;
  Line line = Line::row;
  LineSum* squares = nullptr;     ///< added to; indexed as LineFactors::factor; null if not wanted
  LineSum* magnitudes = nullptr;  ///< added to; null unless p = 1
};

/// Last sweep: a as above over all passes but the last, then
///
///     w' = fma(-step[line], a, fl(w * decay)),  param = round(w')      step: the last entry of `passes`
struct ApplyArgs {
  RegTensors tensors;
  const LineFactors* passes = nullptr;
  int pass_count = 0;
  SweepHealth* health = nullptr;  ///< update and weight squares only
};

/// AdamW as torch.optim.AdamW computes it (eps after the bias correction of the denominator), elementwise:
///
///     g = fl(grad * grad_scale)
///     m' = store(fma(beta1, m, fl(one_minus_beta1 * g)))
///     v' = fma(beta2, v, fl(fl(one_minus_beta2 * g) * g))
///     w' = fma(-step, fl(m' / fma(sqrt(v'), inverse_sqrt_correction2, eps)), fl(w * decay)),  param = round(w')
struct AdamwArgs {
  std::int64_t count = 0;
  const void* grad = nullptr;
  DType grad_dtype = DType::f32;
  void* moment1 = nullptr;
  DType moment1_dtype = DType::f32;  ///< f32 or bf16
  float* moment2 = nullptr;
  float* weight = nullptr;
  void* param = nullptr;
  DType param_dtype = DType::f32;
  float grad_scale = 1;
  float beta1 = 0.9F, one_minus_beta1 = 0.1F;
  float beta2 = 0.999F, one_minus_beta2 = 0.001F;
  float inverse_sqrt_correction2 = 1;  ///< 1 / sqrt(1 - beta2^t)
  float eps = 1e-8F;
  float step = 0;   ///< lr / (1 - beta1^t)
  float decay = 1;  ///< 1 - lr * weight_decay
  SweepHealth* health = nullptr;
};

/// out = balanced binary tree sum of the pieces in their order, neighbours first: ((0+1)+(2+3))+..., an odd one
/// out moves up a level unchanged; fp32 adds of the pieces read as fp32. Also adds the exact sum of squares of `out`
/// and counts its non-finite elements, which the sum leaves out, in the same pass. `out` may be one of the pieces
/// (fp32) or null (figures only).
struct ReduceTreeArgs {
  const void* const* pieces = nullptr;
  int piece_count = 0;
  DType dtype = DType::f32;
  std::int64_t count = 0;
  float* out = nullptr;
  WholeSum* squares = nullptr;
  std::int64_t* non_finite = nullptr;
};

struct KernelTable {
  std::string_view isa;  ///< instruction set it was compiled for: "x86-64-v4", "x86-64-v3", "baseline"
  void (*reg_update_rows)(const UpdateRowsArgs&);
  void (*reg_observe)(const ObserveArgs&);
  void (*reg_apply)(const ApplyArgs&);
  void (*adamw)(const AdamwArgs&);
  void (*reduce_tree)(const ReduceTreeArgs&);
  /// dst = src (overwrite) or dst = dst + src, src read as fp32.
  void (*accumulate)(float* dst, const void* src, DType src_dtype, std::int64_t count, bool overwrite);
  void (*to_f32)(const void* src, DType src_dtype, float* dst, std::int64_t count);
  void (*from_f32)(const float* src, void* dst, DType dst_dtype, std::int64_t count);
};

/// The best table this machine can run; chosen once.
const KernelTable& cpu_kernels();
/// All tables this machine can run, best first: tests compare their bits.
std::vector<const KernelTable*> all_cpu_kernels();

}  // namespace regatta::kernels
