#pragma once
// Sums of non-negative numbers whose bits do not depend on order or grouping.
//
// The exponent range is divided once and for all into bins of W bits: bin b has the unit q(b) = 2^(W*b). Let T be the
// bin of the largest value, the smallest T with value < q(T+1)/2. Every value x is split canonically,
//
//     d(T) = round(x / q(T)),  r = x - d(T) q(T),  d(T-1) = round(r / q(T-1)),  ...      K bins in all,
//
// and the d are summed as integers. Integer sums are associative and the split of x into bins does not depend on
// where the splitting starts (for bins above T it gives zeros), so any partition of the values over threads, ranks and
// devices gives the same integers, without history and without knowing the maximum first: partial sums anchored at
// a lower bin simply hold lower bins that the merge drops. This is the idea of binned (indexed) summation of Demmel and
// Nguyen, with integer accumulators. Rounding is to nearest even, so direct rounding to q(T-K+1) gives the same total.
//
// What is lost: per value at most half of q(T-K+1), and the largest value is at least q(T)/2, so at most 2^-40 of the
// largest value (LineSum) or 2^-64 of it (WholeSum), per value.
//
// A value that is not finite makes the whole sum "not finite", whatever else is in it; that too is independent of
// order.
//
// Everything here is inlined always: code compiled for one instruction set must not be shared with another.

#include <cstdint>

#if defined(__CUDACC__)
#define REGATTA_HOST_DEVICE __host__ __device__
#else
#define REGATTA_HOST_DEVICE
#endif

namespace regatta::kernels {

/// The bin of "no value yet"; below every bin a finite positive double product of floats can have.
inline constexpr std::int32_t empty_bin = -1000;
/// The bin of a sum that met Inf or NaN; above every other bin. The integers are zero then.
inline constexpr std::int32_t non_finite_bin = 1000;

/// 2^e exactly. Requires -1022 <= e <= 1023.
[[gnu::always_inline]] REGATTA_HOST_DEVICE constexpr double exp2i(int e) {
  return __builtin_bit_cast(double, static_cast<std::uint64_t>(e + 1023) << 52);
}

template <int W>
[[gnu::always_inline]] REGATTA_HOST_DEVICE constexpr double bin_unit(std::int32_t bin) {
  return exp2i(W * bin);
}

/// Adding and subtracting it rounds to a multiple of q(bin); the bits of (x + magic) minus the bits of magic are x /
/// q(bin) as an integer. Requires |x| < 2^51 q(bin).
template <int W>
[[gnu::always_inline]] REGATTA_HOST_DEVICE constexpr double bin_magic(std::int32_t bin) {
  return 1.5 * exp2i(52) * bin_unit<W>(bin);
}

/// Smallest T with x < 2^(W(T+1)-1); empty_bin for x == 0, non_finite_bin for Inf and NaN. Requires x >= 0, and below
/// 2^300 if finite.
template <int W>
[[gnu::always_inline]] REGATTA_HOST_DEVICE constexpr std::int32_t bin_of(double x) {
  if (x == 0) return empty_bin;
  // x < 2^e, with e the exponent of x plus one; squares of floats are normal doubles.
  const int e = static_cast<int>((__builtin_bit_cast(std::uint64_t, x) >> 52) & 0x7ff) - 1022;
  if (e == 0x7ff - 1022) return non_finite_bin;
  // T = ceil((e + 1) / W) - 1 = floor(e / W)
  return e >= 0 ? e / W : -((-e + W - 1) / W);
}

/// The sum over one line (a row or a column). 24 bytes, as it travels.
struct LineSum {
  static constexpr int bits = 40;
  /// More values than this could overflow the integers.
  static constexpr std::int64_t max_count = (std::int64_t{1} << 24) - 1;
  std::int64_t hi = 0;           ///< sum of d(bin)
  std::int64_t lo = 0;           ///< sum of d(bin-1)
  std::int32_t bin = empty_bin;  ///< T of the largest value
  float largest = 0;  ///< largest |a| of the line, for p = inf and for health figures; Inf if any is not finite
  bool operator==(const LineSum&) const = default;
};

/// The sum over a whole parameter, three bins. 32 bytes, as it travels.
struct WholeSum {
  static constexpr int bits = 32;
  static constexpr std::int64_t max_count = (std::int64_t{1} << 32) - 1;
  std::int64_t hi = 0;
  std::int64_t mid = 0;
  std::int64_t lo = 0;
  std::int32_t bin = empty_bin;
  std::int32_t padding = 0;
  bool operator==(const WholeSum&) const = default;
};

/// Moves the sum's anchor up to `bin` (no-op when it is there already): lower bins are dropped.
[[gnu::always_inline]] REGATTA_HOST_DEVICE inline void raise(LineSum& sum, std::int32_t bin) {
  if (bin <= sum.bin) return;
  const std::int64_t hi = sum.hi;
  sum.hi = 0;
  sum.lo = bin == sum.bin + 1 ? hi : 0;
  sum.bin = bin;
}
[[gnu::always_inline]] REGATTA_HOST_DEVICE inline void raise(WholeSum& sum, std::int32_t bin) {
  if (bin <= sum.bin) return;
  const std::int64_t up = static_cast<std::int64_t>(bin) - sum.bin;
  const std::int64_t hi = sum.hi, mid = sum.mid;
  sum.hi = 0;
  sum.mid = up == 1 ? hi : 0;
  sum.lo = up == 1 ? mid : up == 2 ? hi : 0;
  sum.bin = bin;
}

/// Adds one value, the slow and obvious way; the sweeps do the same many at a time. Does not touch `largest`.
[[gnu::always_inline]] REGATTA_HOST_DEVICE inline void add(LineSum& sum, double x) {
  if (x == 0) return;
  raise(sum, bin_of<LineSum::bits>(x));
  if (sum.bin == non_finite_bin) return;
  const double magic_hi = bin_magic<LineSum::bits>(sum.bin), magic_lo = bin_magic<LineSum::bits>(sum.bin - 1);
  const double hi = x + magic_hi, rest = x - (hi - magic_hi), lo = rest + magic_lo;
  sum.hi += __builtin_bit_cast(std::int64_t, hi) - __builtin_bit_cast(std::int64_t, magic_hi);
  sum.lo += __builtin_bit_cast(std::int64_t, lo) - __builtin_bit_cast(std::int64_t, magic_lo);
}
[[gnu::always_inline]] REGATTA_HOST_DEVICE inline void add(WholeSum& sum, double x) {
  if (x == 0) return;
  raise(sum, bin_of<WholeSum::bits>(x));
  if (sum.bin == non_finite_bin) return;
  const double magic_hi = bin_magic<WholeSum::bits>(sum.bin), magic_mid = bin_magic<WholeSum::bits>(sum.bin - 1),
               magic_lo = bin_magic<WholeSum::bits>(sum.bin - 2);
  const double hi = x + magic_hi, rest = x - (hi - magic_hi), mid = rest + magic_mid, rest2 = rest - (mid - magic_mid),
               lo = rest2 + magic_lo;
  sum.hi += __builtin_bit_cast(std::int64_t, hi) - __builtin_bit_cast(std::int64_t, magic_hi);
  sum.mid += __builtin_bit_cast(std::int64_t, mid) - __builtin_bit_cast(std::int64_t, magic_mid);
  sum.lo += __builtin_bit_cast(std::int64_t, lo) - __builtin_bit_cast(std::int64_t, magic_lo);
}

/// Adds another partial sum of the same line.
[[gnu::always_inline]] REGATTA_HOST_DEVICE inline void merge(LineSum& sum, LineSum other) {
  raise(sum, other.bin);
  raise(other, sum.bin);
  sum.hi += other.hi;
  sum.lo += other.lo;
  if (other.largest > sum.largest) sum.largest = other.largest;
}
[[gnu::always_inline]] REGATTA_HOST_DEVICE inline void merge(WholeSum& sum, WholeSum other) {
  raise(sum, other.bin);
  raise(other, sum.bin);
  sum.hi += other.hi;
  sum.mid += other.mid;
  sum.lo += other.lo;
}

/// The sum, rounded once to double; Inf when it is not finite.
[[gnu::always_inline]] inline double value(const LineSum& sum) {
  if (sum.bin == empty_bin) return 0;
  if (sum.bin == non_finite_bin) return __builtin_inf();
  const __int128 total = (static_cast<__int128>(sum.hi) << LineSum::bits) + sum.lo;
  return static_cast<double>(total) * exp2i(LineSum::bits * (sum.bin - 1));
}
/// The sum to within 2^-52 relative (two roundings, in a fixed order); Inf when it is not finite.
[[gnu::always_inline]] inline double value(const WholeSum& sum) {
  if (sum.bin == empty_bin) return 0;
  if (sum.bin == non_finite_bin) return __builtin_inf();
  const __int128 upper = (static_cast<__int128>(sum.hi) << WholeSum::bits) + sum.mid;
  const double total = static_cast<double>(upper) * exp2i(WholeSum::bits) + static_cast<double>(sum.lo);
  return total * exp2i(WholeSum::bits * (sum.bin - 2));
}

}  // namespace regatta::kernels
