#pragma once
// The integer sums of exact_sum.h, a vector at a time. Per instruction set, as simd.h.
//
// A term x (a square, or a magnitude) is split with two additions: hi = x + M rounds to the upper bin, and lo = x + (C
// - hi), C = M + m, rounds what is left to the lower one; C - hi is exact, and with x a square both are one fused
// multiply-add. The bits of hi and lo are summed as integers; the bits of M and m are taken off once per block.
//
// Blocks are summed at a guessed bin, that of the line so far or of the line before; when the block's largest value
// says otherwise it is summed again from the cache. Bins are so wide that this is rare.

#include "kernels/cpu/simd.h"
#include "kernels/exact_sum.h"

namespace regatta::kernels::REGATTA_ISA {

enum class Term { square, magnitude };

/// Elements summed before the bin is checked: still in the first-level cache if they must be read again.
inline constexpr std::int64_t block_numel = 1024;
inline constexpr std::uint32_t infinity_bits = 0x7f800000U;
/// Below every bin that a float's square or magnitude can have.
inline constexpr std::int32_t lowest_bin = -8;

REGATTA_INLINE double magic_of(std::int32_t bin) { return bin_magic<LineSum::bits>(bin); }

template <Term term>
REGATTA_INLINE std::int32_t bin_of_largest(float largest) {
  const double x = largest;
  return bin_of<LineSum::bits>(term == Term::square ? x * x : x);
}

/// Adds the terms x of half a vector (for squares: the values to square). M and C = M + m as above.
template <Term term>
REGATTA_INLINE void add_half(F64 x, F64 magic, F64 both, U64& hi, U64& lo) {
  if constexpr (term == Term::square) {
    const F64 upper = square_plus(x, magic);
    hi += bits_as<U64>(upper);
    lo += bits_as<U64>(square_plus(x, both - upper));
  } else {
    const F64 upper = x + magic;
    hi += bits_as<U64>(upper);
    lo += bits_as<U64>(x + (both - upper));
  }
}

/// What one block adds, with the bin of its sums taken for granted.
struct BlockSums {
  std::uint64_t hi = 0, lo = 0;
  std::uint32_t largest_bits = 0;
};

/// Sums the terms of values.at(i), i in [0, numel), at `bin`.
template <Term term, class Values>
REGATTA_INLINE BlockSums sum_block(const Values& values, std::int64_t numel, std::int32_t bin) {
  const double magic = magic_of(bin), rest_magic = magic_of(bin - 1);
  const F64 m = splat64(magic), both = splat64(magic + rest_magic);
  U64 hi_low{}, hi_high{}, lo_low{}, lo_high{};
  U32 largest{};
  const auto add = [&](F32 a) {
    largest = larger(largest, magnitude_bits(a));
    const Wide x = widen(term == Term::square ? a : magnitude(a));
    add_half<term>(x.low, m, both, hi_low, lo_low);
    add_half<term>(x.high, m, both, hi_high, lo_high);
  };
  std::int64_t i = 0;
  for (; i + width <= numel; i += width) add(values.template at<false>(i, width));
  if (i < numel) add(values.template at<true>(i, numel - i));
  const auto lanes = static_cast<std::uint64_t>((numel + width - 1) / width * width);
  return {sum_of_lanes(hi_low + hi_high) - lanes * bits_as<std::uint64_t>(magic),
          sum_of_lanes(lo_low + lo_high) - lanes * bits_as<std::uint64_t>(rest_magic), largest_lane(largest)};
}

/// The bin to try for the next block of a line.
REGATTA_INLINE std::int32_t guess_bin(const LineSum& line, std::int32_t hint) {
  return line.bin == empty_bin || line.bin == non_finite_bin ? hint : line.bin;
}

/// Adds a block that was summed at `guess`; `again(bin)` sums it at another bin.
template <Term term, class Again>
REGATTA_INLINE void settle(LineSum& line, BlockSums block, std::int32_t guess, const Again& again) {
  if (block.largest_bits == 0) return;
  if (block.largest_bits >= infinity_bits) {
    raise(line, non_finite_bin);
    line.largest = __builtin_inff();
    return;
  }
  const float largest = bits_as<float>(block.largest_bits);
  if (largest > line.largest) line.largest = largest;
  if (line.bin == non_finite_bin) return;
  raise(line, bin_of_largest<term>(largest));
  if (line.bin != guess) block = again(line.bin);
  line.hi += static_cast<std::int64_t>(block.hi);
  line.lo += static_cast<std::int64_t>(block.lo);
}

}  // namespace regatta::kernels::REGATTA_ISA
