#pragma once
// The element arithmetic of kernels.h for host and device: every operation is named, rounded to nearest even and never
// contracted. The host's twin is what the tests compare with the CPU kernels.

#include "kernels/exact_sum.h"
#include "sharding/dtype.h"
#include "sharding/geometry.h"

namespace regatta::kernels::cuda {

#if defined(__CUDA_ARCH__)
__device__ inline float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float add_rn(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float sub_rn(float a, float b) { return __fsub_rn(a, b); }
__device__ inline float div_rn(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float sqrt_rn(float a) { return __fsqrt_rn(a); }
__device__ inline double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ inline double mul_rn(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double add_rn(double a, double b) { return __dadd_rn(a, b); }
__device__ inline double sub_rn(double a, double b) { return __dsub_rn(a, b); }
__device__ inline double div_rn(double a, double b) { return __ddiv_rn(a, b); }
__device__ inline double sqrt_rn(double a) { return __dsqrt_rn(a); }
__device__ inline float to_float(double a) { return __double2float_rn(a); }
__device__ inline int leading_zeros(std::uint64_t a) { return __clzll(static_cast<long long>(a)); }
__device__ inline std::uint32_t bits_of(float a) { return __float_as_uint(a); }
__device__ inline float float_of(std::uint32_t a) { return __uint_as_float(a); }
__device__ inline std::int64_t bits_of(double a) { return __double_as_longlong(a); }
#else
REGATTA_HOST_DEVICE inline float fma_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
REGATTA_HOST_DEVICE inline float mul_rn(float a, float b) { return a * b; }
REGATTA_HOST_DEVICE inline float add_rn(float a, float b) { return a + b; }
REGATTA_HOST_DEVICE inline float sub_rn(float a, float b) { return a - b; }
REGATTA_HOST_DEVICE inline float div_rn(float a, float b) { return a / b; }
REGATTA_HOST_DEVICE inline float sqrt_rn(float a) { return __builtin_sqrtf(a); }
REGATTA_HOST_DEVICE inline double fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
REGATTA_HOST_DEVICE inline double mul_rn(double a, double b) { return a * b; }
REGATTA_HOST_DEVICE inline double add_rn(double a, double b) { return a + b; }
REGATTA_HOST_DEVICE inline double sub_rn(double a, double b) { return a - b; }
REGATTA_HOST_DEVICE inline double div_rn(double a, double b) { return a / b; }
REGATTA_HOST_DEVICE inline double sqrt_rn(double a) { return __builtin_sqrt(a); }
REGATTA_HOST_DEVICE inline float to_float(double a) { return static_cast<float>(a); }
REGATTA_HOST_DEVICE inline int leading_zeros(std::uint64_t a) { return a == 0 ? 64 : __builtin_clzll(a); }
REGATTA_HOST_DEVICE inline std::uint32_t bits_of(float a) { return __builtin_bit_cast(std::uint32_t, a); }
REGATTA_HOST_DEVICE inline float float_of(std::uint32_t a) { return __builtin_bit_cast(float, a); }
REGATTA_HOST_DEVICE inline std::int64_t bits_of(double a) { return __builtin_bit_cast(std::int64_t, a); }
#endif

inline constexpr std::uint32_t infinity_bits = 0x7f800000U;
REGATTA_HOST_DEVICE inline std::uint32_t magnitude_bits(float a) { return bits_of(a) & 0x7fffffffU; }

// The conversions are done on integers, as on CPUs without instructions for them: those of the device give other NaNs.

REGATTA_HOST_DEVICE inline float from_bf16(std::uint32_t h) { return float_of(h << 16); }
REGATTA_HOST_DEVICE inline std::uint32_t to_bf16(float a) {
  const std::uint32_t bits = bits_of(a);
  if ((bits & 0x7fffffffU) > infinity_bits) return (bits >> 16) | 0x40U;
  return (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
}
REGATTA_HOST_DEVICE inline float from_f16(std::uint32_t h) {
  const std::uint32_t sign = (h & 0x8000U) << 16, rest = h & 0x7fffU, mantissa = rest & 0x3ffU;
  std::uint32_t magnitude = (rest << 13) + ((127U - 15U) << 23);
  if (rest >= 0x7c00U) {
    magnitude = infinity_bits | (mantissa << 13) | (mantissa != 0 ? 0x400000U : 0U);
  } else if (rest < 0x400U) {
    magnitude = bits_of(mul_rn(static_cast<float>(static_cast<std::int32_t>(mantissa)), 0x1p-24F));
  }
  return float_of(sign | magnitude);
}
REGATTA_HOST_DEVICE inline std::uint32_t to_f16(float a) {
  const std::uint32_t bits = bits_of(a), sign = (bits >> 16) & 0x8000U, rest = bits & 0x7fffffffU;
  std::uint32_t magnitude = (rest - ((127U - 15U) << 23) + 0xfffU + ((rest >> 13) & 1U)) >> 13;
  if (rest > infinity_bits) {
    magnitude = 0x7e00U | ((rest >> 13) & 0x3ffU);
  } else if (rest >= 0x47800000U) {
    magnitude = 0x7c00U;
  } else if (rest < 0x38800000U) {
    // Adding 0.5 leaves a multiple of 2^-24 in the low bits, rounded to nearest even.
    magnitude = bits_of(add_rn(float_of(rest), 0.5F)) - 0x3f000000U;
  }
  return sign | magnitude;
}
REGATTA_HOST_DEVICE inline float from_16(DType dtype, std::uint32_t h) {
  return dtype == DType::bf16 ? from_bf16(h) : from_f16(h);
}
REGATTA_HOST_DEVICE inline std::uint32_t to_16(DType dtype, float a) {
  return dtype == DType::bf16 ? to_bf16(a) : to_f16(a);
}
/// What is read back after a store.
REGATTA_HOST_DEVICE inline float stored(DType dtype, float a) {
  return dtype == DType::f32 ? a : from_16(dtype, to_16(dtype, a));
}

/// The new momentum, before it is stored.
REGATTA_HOST_DEVICE inline float next_momentum(float mu, float one_minus_mu, float grad_scale, float grad, float m) {
  return fma_rn(mu, m, mul_rn(one_minus_mu, mul_rn(grad, grad_scale)));
}
REGATTA_HOST_DEVICE inline float next_weight(float step, float a, float weight, float decay) {
  return fma_rn(-step, a, mul_rn(weight, decay));
}

/// inverse_norm() and step_factor() of kernels.h.
REGATTA_HOST_DEVICE inline float line_inverse(double norm, double eps) {
  if (norm <= 0x1p-126) return 0;
  if (!(norm < __builtin_inf())) return float_of(0x7fc00000U);
  return to_float(div_rn(1.0, norm > eps ? norm : eps));
}
REGATTA_HOST_DEVICE inline float line_step(float inverse, double scale) {
  return to_float(mul_rn(static_cast<double>(inverse), scale));
}
/// The scale of a block's steps when its RMS is measured.
REGATTA_HOST_DEVICE inline double measured_scale(double lr_rho, double block_sum, double numel) {
  const double rms = sqrt_rn(div_rn(block_sum, numel));
  if (rms == 0) return 0;
  if (!(rms < __builtin_inf())) return static_cast<double>(float_of(0x7fc00000U));
  return div_rn(lr_rho, rms);
}
/// A line's share of its block's sum of squares.
REGATTA_HOST_DEVICE inline float line_term(double squares, float inverse) {
  const double factor = inverse;
  return to_float(mul_rn(mul_rn(squares, factor), factor));
}

}  // namespace regatta::kernels::cuda
