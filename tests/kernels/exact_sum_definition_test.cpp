// The sums against their definition, computed apart: the bin of the largest value by search, every value rounded to
// units of the lowest bin, ties to even, and added as a 128-bit integer.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/exact_sum.h"

namespace regatta::kernels {
namespace {

using Random = std::mt19937_64;

template <class Sum>
constexpr int bins_of = std::is_same_v<Sum, LineSum> ? 2 : 3;

int bin_by_search(double largest, int bits) {
  int bin = -30;
  while (largest >= std::ldexp(1.0, bits * (bin + 1) - 1)) ++bin;
  return bin;
}

// x / 2^e to the nearest integer, ties to even. Long doubles have 64 bits, so that nothing is lost before.
__int128 units_of(double x, int e) {
  return static_cast<__int128>(std::nearbyint(std::ldexp(static_cast<long double>(x), -e)));
}

template <class Sum>
__int128 total_of(const Sum& sum) {
  if constexpr (std::is_same_v<Sum, LineSum>) {
    return static_cast<__int128>(sum.hi) * (std::int64_t{1} << 40) + sum.lo;
  } else {
    return (static_cast<__int128>(sum.hi) * (std::int64_t{1} << 32) + sum.mid) * (std::int64_t{1} << 32) + sum.lo;
  }
}

// Of a positive integer, rounded once to nearest even, by hand.
double rounded(__int128 total) {
  int shift = 0;
  while (total >> shift >= (std::int64_t{1} << 53)) ++shift;
  __int128 kept = total >> shift;
  const __int128 rest = total - (kept << shift), half = shift == 0 ? 1 : static_cast<__int128>(1) << (shift - 1);
  if (shift > 0 && (rest > half || (rest == half && kept % 2 == 1))) ++kept;
  return std::ldexp(static_cast<double>(static_cast<std::int64_t>(kept)), shift);
}

std::vector<double> random_terms(Random& random, int bits) {
  std::vector<double> terms(1 + random() % 60);
  const int kind = static_cast<int>(random() % 4), middle = static_cast<int>(random() % 100) - 50;
  for (double& term : terms) {
    if (kind == 0) {  // ties of the lowest bins, where the bin of 1 is the largest
      term = std::ldexp(static_cast<double>(2 * (random() % 5000) + 1), -bits * static_cast<int>(1 + random() % 2) - 1);
    } else if (kind == 1) {  // squares of floats of one size, or of any
      const auto a = static_cast<float>(std::ldexp(1 + static_cast<double>(random() % 100000) / 100001, middle));
      term = static_cast<double>(a) * a;
    } else if (kind == 2) {
      const auto a = static_cast<float>(
          std::ldexp(1.0 + 1e-7 * static_cast<double>(random() % 9000000), static_cast<int>(random() % 270) - 145));
      term = random() % 2 ? static_cast<double>(a) * a : a;
    } else {  // at and around the bins' borders
      term = std::ldexp(1.0, bits * (static_cast<int>(random() % 5) - 2) - 1);
      if (random() % 3 == 0) term = std::nextafter(term, random() % 2 ? 0.0 : 1e300);
    }
    if (random() % 9 == 0) term = 0;
  }
  if (kind == 0) terms.push_back(1.25);
  return terms;
}

template <class Sum>
class Definition : public ::testing::Test {};
using Sums = ::testing::Types<LineSum, WholeSum>;
TYPED_TEST_SUITE(Definition, Sums);

TYPED_TEST(Definition, IntegersBinAndValue) {
  Random random(5);
  constexpr int bits = TypeParam::bits, bins = bins_of<TypeParam>;
  for (int round = 0; round < 20000; ++round) {
    const std::vector<double> terms = random_terms(random, bits);
    const double largest = *std::max_element(terms.begin(), terms.end());
    TypeParam sum, left, right;
    for (const double term : terms) {
      add(sum, term);
      add(random() % 2 ? left : right, term);
    }
    merge(left, right);
    ASSERT_EQ(left, sum);
    if (largest == 0) {
      ASSERT_EQ(sum, TypeParam{});
      continue;
    }
    const int bin = bin_by_search(largest, bits), unit = bits * (bin - bins + 1);
    __int128 total = 0, upper = 0;
    for (const double term : terms) {
      total += units_of(term, unit);
      upper += units_of(term, bits * bin);
    }
    ASSERT_EQ(sum.bin, bin) << largest;
    ASSERT_TRUE(total_of(sum) == total) << round;
    ASSERT_TRUE(sum.hi == upper) << round;
    const double expected = std::ldexp(rounded(total), unit);
    if constexpr (bins == 2) {
      ASSERT_EQ(value(sum), expected) << round;
    } else {
      ASSERT_NEAR(value(sum), expected, 0x1p-52 * expected) << round;
    }
  }
}

// Two roundings of a whole sum, each to even: of the upper two bins, and of the end.
TEST(WholeSum, ValueRoundsTheUpperBinsThenTheEnd) {
  Random random(6);
  for (int round = 0; round < 20000; ++round) {
    WholeSum sum;
    sum.bin = static_cast<std::int32_t>(random() % 9) - 5;
    sum.hi = static_cast<std::int64_t>(random() >> (2 + random() % 60));
    sum.mid = static_cast<std::int64_t>(random()) >> (random() % 60 + 1);
    sum.lo = static_cast<std::int64_t>(random()) >> (random() % 60 + 1);
    const __int128 upper = static_cast<__int128>(sum.hi) * (std::int64_t{1} << 32) + sum.mid;
    if (upper <= 0) continue;
    const double expected =
        std::ldexp(std::ldexp(rounded(upper), 32) + static_cast<double>(sum.lo), 32 * (sum.bin - 2));
    ASSERT_EQ(value(sum), expected);
  }
}

// Bins of sums that were not finite hold nothing, whatever came before or after.
TYPED_TEST(Definition, NotFiniteIsOneStateOnly) {
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::nan("");
  TypeParam broken;
  broken.bin = non_finite_bin;
  for (const double wrong : {infinity, nan})
    for (const double before : {0.0, 1e-60, 1.0, 1e60})
      for (const double after : {0.0, 1e-60, 1.0, 1e60, infinity}) {
        TypeParam sum, other;
        for (const double term : {before, wrong, after}) add(sum, term);
        EXPECT_EQ(sum, broken);
        add(other, after);
        merge(other, sum);
        EXPECT_EQ(other, broken);
        merge(sum, other);
        EXPECT_EQ(sum, broken);
      }
  EXPECT_EQ(value(broken), infinity);
}

TEST(LineSum, MergeKeepsTheLargest) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float a : {0.0F, 1.0F, 5.0F, infinity})
    for (const float b : {0.0F, 2.0F, 5.0F, infinity}) {
      LineSum left, right;
      left.largest = a;
      right.largest = b;
      merge(left, right);
      EXPECT_EQ(left.largest, std::max(a, b));
    }
}

}  // namespace
}  // namespace regatta::kernels
