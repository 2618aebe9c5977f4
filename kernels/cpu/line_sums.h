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

/// Sums at one bin, still in vectors, the magic numbers' bits included.
struct RunningSums {
  U64 hi_low{}, hi_high{}, lo_low{}, lo_high{};
  U32 largest{};
  std::int64_t lanes = 0;  // that were added
};

/// Adds the terms of values.at(part, i), i in [begin, end), at `bin`.
template <Term term, class Values>
REGATTA_INLINE void add_values(RunningSums& running, const Values& values, std::int64_t begin, std::int64_t end,
                               std::int32_t bin) {
  const F64 magic = splat64(magic_of(bin)), both = splat64(magic_of(bin) + magic_of(bin - 1));
  RunningSums sums = running;  // in registers
  for_each_part(begin, end, [&]<bool tail>(int part, std::int64_t i, std::int64_t left) {
    const F32 a = values.template at<tail>(part, i, left);
    sums.largest = larger(sums.largest, magnitude_bits(a));
    const Wide x = widen(term == Term::square ? a : magnitude(a));
    add_half<term>(x.low, magic, both, sums.hi_low, sums.lo_low);
    add_half<term>(x.high, magic, both, sums.hi_high, sums.lo_high);
  });
  sums.lanes += (end - begin + width - 1) / width * width;
  running = sums;
}

/// Adds sums that were taken at `bin`, which must be the line's own bin unless all values were zero.
REGATTA_INLINE void add_running(LineSum& line, const RunningSums& sums, std::int32_t bin) {
  const auto lanes = static_cast<std::uint64_t>(sums.lanes);
  const std::uint64_t hi = sum_of_lanes(sums.hi_low + sums.hi_high) - lanes * bits_as<std::uint64_t>(magic_of(bin));
  const std::uint64_t lo = sum_of_lanes(sums.lo_low + sums.lo_high) - lanes * bits_as<std::uint64_t>(magic_of(bin - 1));
  line.hi += static_cast<std::int64_t>(hi);
  line.lo += static_cast<std::int64_t>(lo);
}

/// Smallest float whose term is outside `bin`, as bits; infinity when all finite ones are inside.
template <Term term>
REGATTA_INLINE std::uint32_t limit_of(std::int32_t bin) {
  const int exponent = term == Term::square ? 20 * (bin + 1) : 40 * (bin + 1) - 1;
  if (exponent > 128 || (exponent == 128 && term == Term::magnitude)) return infinity_bits;
  // 0x3f3504f4 is the smallest float whose square exceeds one half.
  const double limit = term == Term::square ? double{bits_as<float>(0x3f3504f4U)} * exp2i(exponent) : exp2i(exponent);
  float rounded = static_cast<float>(limit);
  if (rounded < limit) rounded = bits_as<float>(bits_as<std::uint32_t>(rounded) + 1);  // a subnormal: round up
  return bits_as<std::uint32_t>(rounded);
}

/// Sums a line block by block.
template <Term term>
class LineAccumulator {
 public:
  /// `hint` is the bin of a neighbouring line.
  REGATTA_INLINE explicit LineAccumulator(std::int32_t hint) : bin_(hint) {}

  /// `values` may have effects; `stored` reads the same values again.
  template <class Values, class Stored>
  REGATTA_INLINE void add_block(std::int64_t begin, std::int64_t end, const Values& values, const Stored& stored) {
    const RunningSums before = sums_;
    add_values<term>(sums_, values, begin, end, bin_);
    if (settled_ && !any(bits_as<I32>(sums_.largest) >= limit_)) return;
    settle(before, begin, end, stored);
  }

  REGATTA_INLINE LineSum finish() {
    if (line_.bin != empty_bin && line_.bin != non_finite_bin) add_running(line_, sums_, bin_);
    const std::uint32_t largest = largest_lane(sums_.largest);
    line_.largest = largest >= infinity_bits ? __builtin_inff() : bits_as<float>(largest);
    return line_;
  }

 private:
  // The block may not fit the bin at hand, or the bin is a mere guess.
  template <class Stored>
  [[gnu::noinline]] void settle(const RunningSums& before, std::int64_t begin, std::int64_t end, const Stored& stored) {
    const std::uint32_t largest = largest_lane(sums_.largest);
    if (largest == 0) return;
    if (largest >= infinity_bits) {
      raise(line_, non_finite_bin);
      settled_ = true;
      limit_ = I32{} + 0x7fffffff;  // nothing to settle any more
      return;
    }
    const std::int32_t bin = bin_of_largest<term>(bits_as<float>(largest));
    if (bin != bin_) {
      // What came before was all zeros, or was summed at the line's lower bin.
      const U32 seen = sums_.largest;
      if (line_.bin != empty_bin) add_running(line_, before, bin_);
      sums_ = RunningSums{};
      add_values<term>(sums_, stored, begin, end, bin);
      sums_.largest = seen;
      bin_ = bin;
    }
    raise(line_, bin);
    settled_ = true;
    limit_ = bits_as<I32>(U32{} + limit_of<term>(bin));
  }

  LineSum line_;
  RunningSums sums_;
  std::int32_t bin_;
  bool settled_ = false;  // the line's bin is bin_
  I32 limit_{};           // of bin_, as bits
};

}  // namespace regatta::kernels::REGATTA_ISA
