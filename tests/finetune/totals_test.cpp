// Sums over the steps of a run.

#include "cli/finetune/totals.h"

#include <gtest/gtest.h>

#include "tests/finetune/distinct_step.h"

namespace regatta::finetune {
namespace {

TEST(Totals, EveryFigureIsAddedUp) {
  Totals totals;
  const sharding::WireBytes plan{1000, 2000, 3000, 4000};
  totals.add(record_of(1), plan);
  StepRecord skipped = record_of(2);
  skipped.report.skipped = true;
  skipped.report.bytes = {1000, 0, 0, 40};
  totals.add(skipped, plan);
  totals.add(record_of(3, 2), plan);
  EXPECT_EQ(totals.phases.data, 1);
  EXPECT_EQ(totals.phases.forward, 2);
  EXPECT_EQ(totals.phases.backward, 4);
  EXPECT_EQ(totals.phases.step, 8);
  EXPECT_EQ(totals.phases.all(), 15);
  const StepTimes& t = totals.times;
  EXPECT_EQ(t.wait_grad_seconds, 3 * 0.0625);
  EXPECT_EQ(t.vote_seconds, 3 * 0.03125);
  EXPECT_EQ(t.sweep_seconds, 3 * 0.015625);
  EXPECT_EQ(t.wait_exchange_seconds, 3 * 0.0078125);
  EXPECT_EQ(t.wait_gather_seconds, 3 * 0.00390625);
  EXPECT_EQ(t.step_seconds, 3 * 0.001953125);
  EXPECT_EQ(t.grad_comm_seconds, 3 * 0.125);
  EXPECT_EQ(t.gather_comm_seconds, 3 * 0.0009765625);
  EXPECT_EQ(totals.counted.reduce_scatter, 1200);
  EXPECT_EQ(totals.counted.all_gather, 400);
  EXPECT_EQ(totals.counted.exchange, 800);
  EXPECT_EQ(totals.counted.vote, 1640);
  // A skipped step ends after the vote.
  EXPECT_EQ(totals.planned, (sharding::WireBytes{3000, 4000, 6000, 8040}));
}

TEST(Totals, BytesAreAsPlannedWhenEachIs) {
  Totals totals;
  totals.counted = {1, 2, 3, 4};
  totals.planned = {1, 2, 3, 4};
  EXPECT_TRUE(totals.bytes_as_planned());
  for (std::int64_t StepBytes::*field :
       {&StepBytes::reduce_scatter, &StepBytes::all_gather, &StepBytes::exchange, &StepBytes::vote}) {
    Totals other = totals;
    ++(other.counted.*field);
    EXPECT_FALSE(other.bytes_as_planned());
  }
  // Not only their sum.
  totals.counted = {2, 1, 3, 4};
  EXPECT_FALSE(totals.bytes_as_planned());
}

TEST(Totals, SpeedsAreOfThisRunsSteps) {
  Summary summary;
  summary.tokens_per_step = 100;
  summary.steps = 30;
  summary.first_step = 10;
  summary.totals.phases = {1, 2, 3, 4};
  EXPECT_EQ(summary.own_steps(), 20);
  EXPECT_EQ(summary.tokens_per_second(), 200);
  EXPECT_EQ(summary.step_ms(), 500);
  summary.first_step = 30;  // nothing left to do
  summary.totals.phases = {};
  EXPECT_EQ(summary.tokens_per_second(), 0);
  EXPECT_EQ(summary.step_ms(), 0);
}

TEST(Summary, BytesAreAsPlannedWhenEveryRankSaysSo) {
  for (int wrong = -1; wrong < 4; ++wrong) {
    Summary summary;
    for (int rank = 0; rank < 4; ++rank) summary.add_rank(10 * rank, rank != wrong);
    EXPECT_EQ(summary.bytes_as_planned, wrong < 0) << wrong;
    EXPECT_EQ(summary.state_bytes, (std::vector<std::int64_t>{0, 10, 20, 30}));
  }
}

}  // namespace
}  // namespace regatta::finetune
