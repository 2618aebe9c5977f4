#pragma once
// exact_sum.h as one thread uses it: values of one line some at a time, and the sum's value without 128-bit integers.

#include "kernels/cuda/arithmetic.cuh"

#if defined(__CUDA_ARCH__)
#define REGATTA_UNROLL _Pragma("unroll")
#else
#define REGATTA_UNROLL
#endif

namespace regatta::kernels::cuda {

enum class Term : std::uint8_t { square, magnitude };

/// A LineSum whose largest magnitude is held as bits: they order as the magnitudes do, NaN above all.
struct ThreadSum {
  std::int64_t hi = 0;
  std::int64_t lo = 0;
  std::int32_t bin = empty_bin;
  std::uint32_t largest = 0;
};

REGATTA_HOST_DEVICE inline void raise_to(ThreadSum& sum, std::int32_t bin) {
  if (bin <= sum.bin) return;
  sum.lo = bin == sum.bin + 1 ? sum.hi : 0;
  sum.hi = 0;
  sum.bin = bin;
}
REGATTA_HOST_DEVICE inline void merge_into(ThreadSum& sum, ThreadSum other) {
  raise_to(sum, other.bin);
  raise_to(other, sum.bin);
  sum.hi += other.hi;
  sum.lo += other.lo;
  if (other.largest > sum.largest) sum.largest = other.largest;
}
REGATTA_HOST_DEVICE inline LineSum to_line(const ThreadSum& sum) {
  LineSum line;
  line.hi = sum.hi;
  line.lo = sum.lo;
  line.bin = sum.bin;
  line.largest = float_of(sum.largest < infinity_bits ? sum.largest : infinity_bits);
  return line;
}
REGATTA_HOST_DEVICE inline ThreadSum from_line(const LineSum& line) {
  ThreadSum sum;
  sum.hi = line.hi;
  sum.lo = line.lo;
  sum.bin = line.bin;
  sum.largest = bits_of(line.largest);
  return sum;
}

/// Adds the terms of `count` values of one line: one look at the largest, then each is split into two integers at the
/// sum's bin (both additions as in exact_sum.h; `both - upper` is exact).
template <Term term, int count>
REGATTA_HOST_DEVICE inline void add_values(ThreadSum& sum, const float* values) {
  std::uint32_t largest = 0;
  REGATTA_UNROLL
  for (int i = 0; i < count; ++i) {
    const std::uint32_t bits = magnitude_bits(values[i]);
    largest = bits > largest ? bits : largest;
  }
  if (largest > sum.largest) sum.largest = largest;
  if (largest == 0 || sum.bin == non_finite_bin) return;
  if (largest >= infinity_bits) return raise_to(sum, non_finite_bin);
  const double x = float_of(largest);
  raise_to(sum, bin_of<LineSum::bits>(term == Term::square ? mul_rn(x, x) : x));
  const double magic = bin_magic<LineSum::bits>(sum.bin), lower = bin_magic<LineSum::bits>(sum.bin - 1);
  const double both = add_rn(magic, lower);
  std::uint64_t hi = 0, lo = 0;  // the bits of the magic numbers wrap on the way
  REGATTA_UNROLL
  for (int i = 0; i < count; ++i) {
    const double a = values[i];
    double upper, rest;
    if (term == Term::square) {
      upper = fma_rn(a, a, magic);
      rest = fma_rn(a, a, sub_rn(both, upper));
    } else {
      const double size = float_of(magnitude_bits(values[i]));
      upper = add_rn(size, magic);
      rest = add_rn(size, sub_rn(both, upper));
    }
    hi += static_cast<std::uint64_t>(bits_of(upper));
    lo += static_cast<std::uint64_t>(bits_of(rest));
  }
  sum.hi += static_cast<std::int64_t>(hi - count * static_cast<std::uint64_t>(bits_of(magic)));
  sum.lo += static_cast<std::int64_t>(lo - count * static_cast<std::uint64_t>(bits_of(lower)));
}

/// 2^bits upper + lower, rounded once. Requires it not to be negative.
REGATTA_HOST_DEVICE inline double rounded_once(std::int64_t upper, int bits, std::int64_t lower) {
  std::uint64_t low = static_cast<std::uint64_t>(upper) << bits;
  std::uint64_t high = static_cast<std::uint64_t>(upper >> (64 - bits));
  low += static_cast<std::uint64_t>(lower);
  if (low < static_cast<std::uint64_t>(lower)) ++high;
  if (lower < 0) --high;
  if (high == 0) return static_cast<double>(low);
  // The 64 leading bits, the last one set when anything below is: its rounding is the whole number's.
  const int shift = leading_zeros(high);
  std::uint64_t top = shift == 0 ? high : (high << shift) | (low >> (64 - shift));
  if ((low << shift) != 0) top |= 1U;
  return mul_rn(static_cast<double>(top), exp2i(64 - shift));
}

/// value() of a LineSum.
REGATTA_HOST_DEVICE inline double line_value(const ThreadSum& sum) {
  if (sum.bin == empty_bin) return 0;
  if (sum.bin == non_finite_bin) return __builtin_inf();
  return mul_rn(rounded_once(sum.hi, LineSum::bits, sum.lo), exp2i(LineSum::bits * (sum.bin - 1)));
}

/// The norm of a line.
REGATTA_HOST_DEVICE inline double norm_two(const ThreadSum& squares) { return sqrt_rn(line_value(squares)); }

/// Adds the squares of finite values to a WholeSum; returns how many of the values are not finite, which are left out.
template <int count>
REGATTA_HOST_DEVICE inline int add_squares(WholeSum& sum, const float* values) {
  std::uint32_t largest = 0;
  int non_finite = 0;
  REGATTA_UNROLL
  for (int i = 0; i < count; ++i) {
    const std::uint32_t bits = magnitude_bits(values[i]);
    if (bits >= infinity_bits) {
      ++non_finite;
    } else if (bits > largest) {
      largest = bits;
    }
  }
  if (largest == 0) return non_finite;
  const double x = float_of(largest);
  raise(sum, bin_of<WholeSum::bits>(mul_rn(x, x)));
  const double magic0 = bin_magic<WholeSum::bits>(sum.bin), magic1 = bin_magic<WholeSum::bits>(sum.bin - 1),
               magic2 = bin_magic<WholeSum::bits>(sum.bin - 2), both = add_rn(magic1, magic2);
  REGATTA_UNROLL
  for (int i = 0; i < count; ++i) {
    const double a = magnitude_bits(values[i]) < infinity_bits ? values[i] : 0.0F;
    const double upper = fma_rn(a, a, magic0);
    const double rest = fma_rn(a, a, sub_rn(magic0, upper));
    const double middle = add_rn(rest, magic1);
    const double last = add_rn(rest, sub_rn(both, middle));
    sum.hi += bits_of(upper) - bits_of(magic0);
    sum.mid += bits_of(middle) - bits_of(magic1);
    sum.lo += bits_of(last) - bits_of(magic2);
  }
  return non_finite;
}

}  // namespace regatta::kernels::cuda
