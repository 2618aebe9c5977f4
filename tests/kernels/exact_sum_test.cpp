#include "kernels/exact_sum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace regatta::kernels {
namespace {

using Random = std::mt19937_64;

double random_term(Random& random, double spread_bits, bool square) {
  const double exponent = std::uniform_real_distribution<double>(-spread_bits, spread_bits)(random);
  const auto a = static_cast<float>(std::normal_distribution<double>()(random) * std::exp2(exponent));
  return square ? static_cast<double>(a) * a : std::fabs(a);
}

template <class Sum>
Sum sum_of(const std::vector<double>& terms) {
  Sum sum;
  for (const double term : terms) add(sum, term);
  return sum;
}

// Cuts the terms at random places, sums the parts, and merges them in a random tree.
template <class Sum>
Sum sum_in_parts(std::vector<double> terms, Random& random) {
  std::shuffle(terms.begin(), terms.end(), random);
  std::vector<Sum> parts(1 + random() % 9);
  for (const double term : terms) add(parts[random() % parts.size()], term);
  while (parts.size() > 1) {
    const std::size_t to = random() % parts.size();
    std::size_t from = random() % parts.size();
    if (from == to) from = (to + 1) % parts.size();
    merge(parts[to], parts[from]);
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(from));
  }
  return parts[0];
}

template <class Sum>
class ExactSum : public ::testing::Test {};
using Sums = ::testing::Types<LineSum, WholeSum>;
TYPED_TEST_SUITE(ExactSum, Sums);

TYPED_TEST(ExactSum, OrderAndGroupingDoNotMatter) {
  Random random(1);
  for (int round = 0; round < 400; ++round) {
    const double spread = round % 4 == 0 ? 2 : round % 4 == 1 ? 20 : round % 4 == 2 ? 60 : 125;
    std::vector<double> terms(1 + random() % 200);
    for (double& term : terms) term = random() % 7 == 0 ? 0 : random_term(random, spread, random() % 2);
    const auto whole = sum_of<TypeParam>(terms);
    for (int k = 0; k < 3; ++k) {
      const auto parts = sum_in_parts<TypeParam>(terms, random);
      EXPECT_EQ(parts, whole);
      EXPECT_EQ(value(parts), value(whole));
    }
  }
}

TYPED_TEST(ExactSum, CloseToTheTrueSum) {
  Random random(2);
  const double unit = std::is_same_v<TypeParam, LineSum> ? 0x1p-40 : 0x1p-52;
  for (int round = 0; round < 200; ++round) {
    std::vector<double> terms(1 + random() % 1000);
    long double truth = 0;
    double largest = 0;
    for (double& term : terms) {
      term = random_term(random, round % 2 ? 3 : 30, true);
      truth += term;
      largest = std::max(largest, term);
    }
    const double bound = unit * static_cast<double>(terms.size()) * largest + 0x1p-52 * static_cast<double>(truth);
    EXPECT_LE(std::fabs(static_cast<double>(value(sum_of<TypeParam>(terms)) - truth)), bound);
  }
}

TYPED_TEST(ExactSum, WholeNumbersAreExact) {
  Random random(3);
  __int128 truth = 0;
  TypeParam sum;
  for (int i = 0; i < 100000; ++i) {
    const double a = static_cast<double>(random() % (1 << 15));
    add(sum, a * a);
    truth += static_cast<__int128>(a * a);
  }
  EXPECT_EQ(value(sum), static_cast<double>(truth));
}

TYPED_TEST(ExactSum, ZerosAddNothing) {
  TypeParam sum;
  add(sum, 0);
  EXPECT_EQ(sum, TypeParam{});
  EXPECT_EQ(value(sum), 0);
  add(sum, 3);
  add(sum, 0);
  merge(sum, TypeParam{});
  EXPECT_EQ(value(sum), 3);
}

TYPED_TEST(ExactSum, SmallestAndLargestFloats) {
  const double tiny = std::numeric_limits<float>::denorm_min(), huge = std::numeric_limits<float>::max();
  for (const double a : {tiny, 3 * tiny, double{std::numeric_limits<float>::min()}, 1.0, huge}) {
    TypeParam sum;
    for (int i = 0; i < 5; ++i) add(sum, a * a);
    EXPECT_NEAR(value(sum) / (5 * a * a), 1, 1e-12) << a;
  }
  TypeParam mixed;
  add(mixed, tiny * tiny);
  add(mixed, huge * huge);
  EXPECT_EQ(value(mixed), huge * huge);
}

TYPED_TEST(ExactSum, NonFiniteStays) {
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  TypeParam first, second, third;
  for (const double term : {1.0, infinity, 2.0}) add(first, term);
  for (const double term : {nan, 5.0}) add(second, term);
  EXPECT_EQ(value(first), infinity);
  EXPECT_EQ(first, second);
  add(third, 1e30);
  merge(third, second);
  EXPECT_EQ(third, first);
}

// The bin is the smallest T with x below half the unit of bin T + 1.
TYPED_TEST(ExactSum, BinsAsDefined) {
  constexpr int w = TypeParam::bits;
  Random random(4);
  for (int round = 0; round < 20000; ++round) {
    const double x =
        round % 3 == 0 ? std::exp2(static_cast<double>(random() % 500) - 298) : random_term(random, 120, true);
    if (x == 0) continue;
    const int bin = bin_of<w>(x);
    EXPECT_LT(x, bin_unit<w>(bin + 1) / 2);
    EXPECT_GE(x, bin_unit<w>(bin) / 2);
  }
}

// The largest digits a value can have, as often as allowed.
TEST(LineSum, NoOverflowAtTheLargestCount) {
  for (const double x : {0.5, 0x1p39 - 0x1p15, 1.5, 0x1p38 + 0.5}) {
    LineSum sum, power;
    add(power, x);
    for (std::int64_t bit = 1; bit <= LineSum::max_count; bit *= 2) {
      if (LineSum::max_count & bit) merge(sum, power);
      if (bit * 2 <= LineSum::max_count) merge(power, LineSum(power));
    }
    EXPECT_NEAR(value(sum) / (x * static_cast<double>(LineSum::max_count)), 1, 1e-12) << x;
  }
}

}  // namespace
}  // namespace regatta::kernels
