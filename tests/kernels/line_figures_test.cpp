// What all kernels and rules make of a line's norm, stated here once more: where a line is dead, where eps binds, and
// what shows when it is not finite.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/kernels.h"

namespace regatta::kernels {
namespace {

constexpr double least = std::numeric_limits<float>::min();  // the smallest normal float
constexpr double infinity = std::numeric_limits<double>::infinity();

TEST(LineFigures, InverseNormIsZeroForDeadLinesAndNotANumberForBrokenOnes) {
  for (const double eps : {0.0, 1e-12, 1e-3, 2.0}) {
    for (const double norm : {0.0, least / 3, std::nextafter(least, 0.0), least}) EXPECT_EQ(inverse_norm(norm, eps), 0);
    for (const double norm : {infinity, std::nan("")}) EXPECT_TRUE(std::isnan(inverse_norm(norm, eps)));
    for (const double norm :
         {std::nextafter(least, 1.0), 2 * least, 1e-20, 0.9e-12, 1e-12, 1.1e-12, 1e-3, 0.3, 1.0, 3.0, 1e30, 1e60})
      EXPECT_EQ(inverse_norm(norm, eps), static_cast<float>(1 / std::max(norm, eps))) << norm << ' ' << eps;
  }
}

TEST(LineFigures, AStepIsRoundedOnce) {
  // In fp32 the product would be rounded twice, or overflow on the way.
  EXPECT_EQ(step_factor(3e38F, 1e-3), static_cast<float>(double{3e38F} * 1e-3));
  EXPECT_EQ(step_factor(1.0F / 3, 0.1), static_cast<float>(double{1.0F / 3} * 0.1));
  EXPECT_EQ(step_factor(1e30F, 1e-30), static_cast<float>(double{1e30F} * 1e-30));
  EXPECT_EQ(step_factor(1, 1e39), std::numeric_limits<float>::infinity());
  EXPECT_EQ(step_factor(0, 5), 0);
}

TEST(LineFigures, EveryLineIsCountedOnce) {
  struct Case {
    double norm;
    int zero, clamped, broken;
  };
  constexpr double eps = 1e-6;
  for (const Case& c :
       {Case{0, 1, 0, 0}, Case{least / 2, 1, 0, 0}, Case{least, 1, 0, 0}, Case{std::nextafter(least, 1), 0, 1, 0},
        Case{1e-9, 0, 1, 0}, Case{std::nextafter(eps, 0), 0, 1, 0}, Case{eps, 0, 0, 0}, Case{1, 0, 0, 0},
        Case{1e40, 0, 0, 0}, Case{infinity, 0, 0, 1}, Case{std::nan(""), 0, 0, 1}}) {
    SweepHealth health;
    count_line(health, c.norm, eps);
    EXPECT_EQ(health.zero_lines, c.zero) << c.norm;
    EXPECT_EQ(health.clamped_lines, c.clamped) << c.norm;
    EXPECT_EQ(health.non_finite_lines, c.broken) << c.norm;
    const bool alive = c.zero + c.broken == 0;
    EXPECT_EQ(health.smallest_norm, alive ? static_cast<float>(c.norm) : std::numeric_limits<float>::infinity());
    EXPECT_EQ(health.largest_norm, alive ? static_cast<float>(c.norm) : 0);
    EXPECT_EQ(health.update_squares, 0);
    EXPECT_EQ(health.weight_squares, 0);
  }
  SweepHealth all;
  for (const double norm : {3.0, 0.5, 7.0, 0.0, 1e-8, 0.25, infinity, 2.0, 1e-7}) count_line(all, norm, eps);
  EXPECT_EQ(all.zero_lines, 1);
  EXPECT_EQ(all.clamped_lines, 2);
  EXPECT_EQ(all.non_finite_lines, 1);
  EXPECT_EQ(all.smallest_norm, 1e-8F);
  EXPECT_EQ(all.largest_norm, 7);
}

TEST(LineFigures, PartsAddFieldByField) {
  const SweepHealth low{2, 3, 0.5F, 4, 5, 6, 7}, high{20, 30, 0.25F, 40, 50, 60, 70};
  for (const bool swapped : {false, true}) {
    SweepHealth sum = swapped ? high : low;
    sum.add(swapped ? low : high);
    EXPECT_EQ(sum.update_squares, 22);
    EXPECT_EQ(sum.weight_squares, 33);
    EXPECT_EQ(sum.smallest_norm, 0.25F);
    EXPECT_EQ(sum.largest_norm, 40);
    EXPECT_EQ(sum.zero_lines, 55);
    EXPECT_EQ(sum.clamped_lines, 66);
    EXPECT_EQ(sum.non_finite_lines, 77);
  }
  SweepHealth nothing;
  nothing.add(SweepHealth{});
  EXPECT_EQ(nothing.smallest_norm, std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace regatta::kernels
