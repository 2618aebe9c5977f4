#include "runtime/rules/schedule.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace regatta {
namespace {

TEST(Schedule, ConstantAfterWarmup) {
  const Schedule schedule{.kind = Schedule::Kind::constant, .base = 0.1, .warmup = 3, .steps = 10};
  EXPECT_DOUBLE_EQ(schedule.lr(0), 0.025);
  EXPECT_DOUBLE_EQ(schedule.lr(1), 0.05);
  EXPECT_DOUBLE_EQ(schedule.lr(2), 0.075);
  EXPECT_DOUBLE_EQ(schedule.lr(3), 0.1);
  EXPECT_DOUBLE_EQ(schedule.lr(1000), 0.1);
}

TEST(Schedule, LinearFallsToTheFinalRatio) {
  const Schedule schedule{.kind = Schedule::Kind::linear, .base = 1, .warmup = 2, .steps = 12, .final_ratio = 0.5};
  EXPECT_DOUBLE_EQ(schedule.lr(2), 1);
  EXPECT_DOUBLE_EQ(schedule.lr(7), 0.75);
  EXPECT_DOUBLE_EQ(schedule.lr(12), 0.5);
  EXPECT_DOUBLE_EQ(schedule.lr(13), 0.5);
}

TEST(Schedule, CosineIsHalfWayInTheMiddle) {
  const Schedule schedule{.kind = Schedule::Kind::cosine, .base = 2, .warmup = 0, .steps = 8, .final_ratio = 0.1};
  EXPECT_DOUBLE_EQ(schedule.lr(0), 2);
  EXPECT_NEAR(schedule.lr(4), 2 * 0.55, 1e-15);
  EXPECT_NEAR(schedule.lr(8), 0.2, 1e-15);
  EXPECT_GT(schedule.lr(1), schedule.lr(2));
}

TEST(Schedule, ChangesReplaceItFromTheirStepOn) {
  Schedule schedule{.kind = Schedule::Kind::linear, .base = 1, .warmup = 0, .steps = 10};
  const double before = schedule.lr(2);
  schedule.changes = {{3, 0.5}, {6, 0.25}};
  EXPECT_EQ(schedule.lr(2), before);
  EXPECT_EQ(schedule.lr(3), 0.5);
  EXPECT_EQ(schedule.lr(5), 0.5);
  EXPECT_EQ(schedule.lr(6), 0.25);
  EXPECT_EQ(schedule.lr(100), 0.25);
}

TEST(Schedule, AllWarmupStaysFinite) {
  const Schedule schedule{.kind = Schedule::Kind::linear, .base = 1, .warmup = 5, .steps = 5};
  EXPECT_DOUBLE_EQ(schedule.lr(5), 1);
  EXPECT_DOUBLE_EQ(schedule.lr(6), 0);
}

TEST(Schedule, UnknownNameListsTheKnownOnes) {
  EXPECT_EQ(Schedule::parse("cosine"), Schedule::Kind::cosine);
  try {
    Schedule::parse("cosinus");
    ADD_FAILURE() << "took an unknown name";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "schedule 'cosinus' is unknown; constant, linear or cosine was expected");
  }
}

}  // namespace
}  // namespace regatta
