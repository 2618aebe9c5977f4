#include "runtime/rules/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

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

// Every step of random schedules, from the words of the header.
TEST(Schedule, EveryStepOfEveryKind) {
  std::mt19937 random(1);
  const auto any = [&](int most) { return static_cast<std::int64_t>(random() % static_cast<unsigned>(most)); };
  for (int round = 0; round < 300; ++round) {
    Schedule schedule;
    schedule.kind = static_cast<Schedule::Kind>(any(3));
    schedule.base = 0.5 + static_cast<double>(any(5));
    schedule.warmup = any(6);
    schedule.steps = schedule.warmup + 1 + any(12);
    schedule.final_ratio = static_cast<double>(any(5)) / 4;
    if (round % 2 == 1)
      for (std::int64_t at = any(8); at < 25 && schedule.changes.size() < 3; at += 1 + any(8))
        schedule.changes.push_back({at, 0.125 * static_cast<double>(at + 1)});
    for (std::int64_t step = 0; step < 30; ++step) {
      double expected = schedule.base, from = static_cast<double>(step - schedule.warmup),
             to = static_cast<double>(schedule.steps - schedule.warmup);
      if (step < schedule.warmup) {
        expected *= static_cast<double>(step + 1) / static_cast<double>(schedule.warmup + 1);
      } else if (schedule.kind != Schedule::Kind::constant) {
        const double left = step >= schedule.steps                    ? 0
                            : schedule.kind == Schedule::Kind::linear ? 1 - from / to
                                                                      : (1 + std::cos(M_PI * from / to)) / 2;
        expected *= schedule.final_ratio + (1 - schedule.final_ratio) * left;
      }
      for (const Schedule::Change& change : schedule.changes)
        if (change.step <= step) expected = change.lr;
      EXPECT_NEAR(schedule.lr(step), expected, 1e-14 * schedule.base)
          << "kind " << static_cast<int>(schedule.kind) << " step " << step;
    }
  }
}

TEST(Schedule, UnknownNameListsTheKnownOnes) {
  EXPECT_EQ(Schedule::parse("constant"), Schedule::Kind::constant);
  EXPECT_EQ(Schedule::parse("linear"), Schedule::Kind::linear);
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
