// Saves that fail, on any rank and at any point: who hears of it, what is left, what comes after.

#include "runtime/checkpoint/checkpoint_writer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>

#include "tests/checkpoint/sample.h"
#include "tests/checkpoint/writer_tools.h"
#include "tests/support/spmd.h"

namespace regatta::testing {
namespace {

using checkpoint::CheckpointWriter;
using checkpoint::SaveOutcome;
using checkpoint::SaveSettings;

// A failure on any rank reaches every rank at the end, and the rank's own outcome and rank 0's; later saves are well.
TEST(Writer, AFailureIsToldToAllAndOnce) {
  constexpr int ranks = 3;
  for (int failing = 0; failing < ranks; ++failing) {
    const TestFolder folder;
    std::vector<Sample> samples;
    for (int step = 1; step <= 3; ++step) samples.emplace_back(70, step, ranks, 5, 6);
    run_ranks(ranks, [&](Transport& transport) {
      FailingCalls calls(FailingCalls::Kind::write, transport.rank() == failing ? 0 : 1'000'000, EIO);
      CheckpointWriter writer({.folder = folder.path(), .calls = &calls}, transport);
      writer.save(samples[0].of_rank(transport.rank()).contents);
      const std::string said = error_of([&] { writer.finish(); });
      expect_says(said, "Input/output error");
      expect_says(said, folder.path());
      if (failing > 0) expect_says(said, "rank " + std::to_string(failing));
      EXPECT_EQ(error_of([&] { writer.finish(); }), said);  // as long as there is no other
      for (const int step : {1, 2})
        writer.save(samples[static_cast<std::size_t>(step)].of_rank(transport.rank()).contents);
      writer.finish();
      const SaveOutcome first = writer.outcome().value();
      EXPECT_EQ(first.step, 1);
      if (transport.rank() == 0 || transport.rank() == failing) expect_says(first.problem, "Input/output error");
      for (const int step : {2, 3}) {
        const SaveOutcome later = writer.outcome().value();
        EXPECT_EQ(later.step, step);
        EXPECT_EQ(later.problem, "");
      }
    });
    EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"latest", "step-00000002", "step-00000003"}));
    EXPECT_EQ(samples[2].misfit(step_in(folder, 3)), "");
  }
}

TEST(Writer, AFailedSaveLeavesNothingBehind) {
  const TestFolder folder;
  const Sample sample(6, 1, 1);
  for (const auto kind : {FailingCalls::Kind::write, FailingCalls::Kind::fsync, FailingCalls::Kind::rename}) {
    run_ranks(1, [&](Transport& transport) {
      FailingCalls calls(kind, 0, EIO);
      CheckpointWriter writer({.folder = folder.path(), .calls = &calls}, transport);
      writer.save(sample.of_rank(0).contents);
      EXPECT_NE(error_of([&] { writer.finish(); }), "");
    });
    EXPECT_TRUE(names_in(folder.path()).empty());
  }
}

// A disk so full that a rank cannot even leave word of its failure: it comes by message.
TEST(Writer, ARankThatCannotLeaveWordIsHeard) {
  const TestFolder folder;
  struct FullDisk : UnflushedCalls {
    std::atomic<bool> full{true};
    ssize_t write(int descriptor, const void* data, std::size_t bytes) override {
      if (!full) return SystemCalls::write(descriptor, data, bytes);
      errno = ENOSPC;
      return -1;
    }
  } disk;
  const Sample sample(6, 1, 2);
  run_ranks(2, [&](Transport& transport) {
    SaveSettings settings{.folder = folder.path(), .calls = &unflushed};
    if (transport.rank() == 1) settings.calls = &disk;
    CheckpointWriter writer(settings, transport);
    writer.save(sample.of_rank(transport.rank()).contents);
    const std::string said = error_of([&] { writer.finish(); });
    expect_says(said, "rank 1");
    expect_says(said, "No space left");
    disk.full = false;
    writer.save(sample.of_rank(transport.rank()).contents);  // rank 0 does not take the old problem for a new one
    writer.finish();
  });
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"latest", "step-00000001"}));
  EXPECT_EQ(sample.misfit(step_in(folder, 1)), "");
}

TEST(Writer, RankZeroGivesUpOnARankThatDoesNotWrite) {
  const TestFolder folder;
  Gate gate;
  const Sample first(6, 1, 2), second(6, 2, 2);
  run_ranks(2, [&](Transport& transport) {
    SaveSettings settings{.folder = folder.path(), .deadline_seconds = 0.05};
    if (transport.rank() == 1) settings = {.folder = folder.path(), .deadline_seconds = 0.05, .calls = &gate};
    CheckpointWriter writer(settings, transport);
    writer.save(first.of_rank(transport.rank()).contents);
    if (transport.rank() == 0) {
      const SaveOutcome outcome = ended(writer);
      expect_says(outcome.problem, "rank 1 has not written its part of " + step_in(folder, 1) + ".part within 0.05");
      gate.open();
    }
    EXPECT_NE(error_of([&] { writer.finish(); }), "");
  });
  run_ranks(2, [&](Transport& transport) {
    CheckpointWriter writer({.folder = folder.path(), .calls = &unflushed}, transport);
    writer.save(second.of_rank(transport.rank()).contents);
    writer.finish();
  });
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"latest", "step-00000002"}));
}

// A job that ends in an error does not wait for ranks that are gone.
TEST(Writer, EndsWithoutTheOthers) {
  const TestFolder folder;
  Gate gate;
  const Sample sample(6, 1, 2);
  const auto begun = std::chrono::steady_clock::now();
  run_ranks(2, [&](Transport& transport) {
    SaveSettings settings{.folder = folder.path(), .deadline_seconds = 120};
    if (transport.rank() == 1) settings.calls = &gate;
    {
      CheckpointWriter writer(settings, transport);
      writer.save(sample.of_rank(transport.rank()).contents);
      if (transport.rank() == 1) transport.gather_strings("", "the other is gone");
      if (transport.rank() == 1) gate.open();
    }
    if (transport.rank() == 0) transport.gather_strings("", "gone");
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(60));
  EXPECT_TRUE(checkpoint::list_checkpoints(folder.path()).empty());
}

// Rank 0 may publish as soon as the last rank's record is there, however late that rank comes back from leaving it.
TEST(Writer, ARankMayBeSlowAfterItsRecord) {
  const TestFolder folder;
  struct Slow : UnflushedCalls {
    std::promise<void> published;
    int rename(const char* from, const char* to) override {
      const int result = SystemCalls::rename(from, to);
      published.get_future().wait();
      return result;
    }
  } slow;
  const Sample sample(6, 1, 2);
  run_ranks(2, [&](Transport& transport) {
    SaveSettings settings{.folder = folder.path(), .calls = &unflushed};
    if (transport.rank() == 1) settings.calls = &slow;
    CheckpointWriter writer(settings, transport);
    writer.save(sample.of_rank(transport.rank()).contents);
    if (transport.rank() == 0) {
      EXPECT_EQ(ended(writer).problem, "");
      slow.published.set_value();
    }
    EXPECT_EQ(error_of([&] { writer.finish(); }), "");
  });
  EXPECT_EQ(sample.misfit(step_in(folder, 1)), "");
}

TEST(Writer, WhatFailsAfterTheCheckpointIsThereIsSaidToo) {
  const TestFolder folder;
  const Sample sample(6, 1, 1);
  run_ranks(1, [&](Transport& transport) {
    FailingCalls calls(FailingCalls::Kind::rename, 1, EIO);  // the first is the checkpoint's own
    CheckpointWriter writer({.folder = folder.path(), .calls = &calls}, transport);
    writer.save(sample.of_rank(0).contents);
    expect_says(error_of([&] { writer.finish(); }), "saved, but ");
  });
  EXPECT_EQ(sample.misfit(step_in(folder, 1)), "");
}

}  // namespace
}  // namespace regatta::testing
