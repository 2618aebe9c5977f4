// Who says what when ranks fail, and with which exit code.

#include "cli/rank_outcome.h"

#include <gtest/gtest.h>

namespace regatta::cli {
namespace {

const RankOutcome fine{};

RankOutcome failed(Code code, const std::string& reason) { return {true, code, false, false, reason}; }
RankOutcome followed(const std::string& reason) { return {true, Code::aborted, true, false, reason}; }
RankOutcome agreed(Code code, const std::string& reason) { return {true, code, false, true, reason}; }

TEST(RankOutcome, SuccessSaysNothing) {
  EXPECT_EQ(exit_code_of({fine, fine}), 0);
  EXPECT_EQ(line_of({fine, fine}, 0), "");
}

TEST(RankOutcome, WhatAllAgreedOnIsToldByTheFirst) {
  const std::vector<RankOutcome> ranks{agreed(Code::invalid_argument, "no such file"),
                                       agreed(Code::invalid_argument, "no such file")};
  EXPECT_EQ(exit_code_of(ranks), 2);
  EXPECT_EQ(line_of(ranks, 0), "no such file");
  EXPECT_EQ(line_of(ranks, 1), "");
}

TEST(RankOutcome, TheSameBadInputEverywhereIsToldOnce) {
  const std::vector<RankOutcome> ranks(3, failed(Code::invalid_argument, "dp is 0"));
  EXPECT_EQ(exit_code_of(ranks), 2);
  EXPECT_EQ(line_of(ranks, 0), "dp is 0");
  EXPECT_EQ(line_of(ranks, 2), "");
}

TEST(RankOutcome, BadInputOfOneRankIsToldByThatRankAlone) {
  const std::vector<RankOutcome> ranks{followed("rank 1 stopped: bad shape"),
                                       failed(Code::invalid_argument, "bad shape"), fine};
  EXPECT_EQ(exit_code_of(ranks), 2);
  EXPECT_EQ(line_of(ranks, 0), "");
  EXPECT_EQ(line_of(ranks, 1), "rank 1: bad shape");
  EXPECT_EQ(line_of(ranks, 2), "");
}

TEST(RankOutcome, AFailureAtRunTimeIsToldByEveryRankItEnded) {
  const std::vector<RankOutcome> ranks{followed("rank 1 stopped: disk full"), failed(Code::checkpoint, "disk full"),
                                       fine};
  EXPECT_EQ(exit_code_of(ranks), 1);
  EXPECT_EQ(line_of(ranks, 0), "rank 0: rank 1 stopped: disk full");
  EXPECT_EQ(line_of(ranks, 1), "rank 1: disk full");
  EXPECT_EQ(line_of(ranks, 2), "");
}

TEST(RankOutcome, BadInputBesideARealFailureIsAFailure) {
  const std::vector<RankOutcome> ranks{failed(Code::invalid_argument, "bad"), failed(Code::device, "no memory")};
  EXPECT_EQ(exit_code_of(ranks), 1);
  EXPECT_EQ(line_of(ranks, 0), "rank 0: bad");
  EXPECT_EQ(line_of(ranks, 1), "rank 1: no memory");
}

// Every way in which three ranks can end, against what the header promises.
TEST(RankOutcome, OfEveryCombination) {
  const std::vector<RankOutcome> ways{fine,
                                      failed(Code::invalid_argument, "bad input"),
                                      failed(Code::invalid_argument, "other bad input"),
                                      failed(Code::device, "no memory"),
                                      failed(Code::device, ""),
                                      failed(Code::aborted, "told to stop"),
                                      followed("rank 1 stopped: no memory"),
                                      {true, Code::timeout, true, false, "followed late"}};
  int bad_inputs = 0, failures = 0;
  for (const RankOutcome& a : ways)
    for (const RankOutcome& b : ways)
      for (const RankOutcome& c : ways) {
        const std::vector<RankOutcome> ranks{a, b, c};
        int began = 0, began_with_bad_input = 0, ended = 0, first = -1;
        for (int r = 0; r < 3; ++r) {
          if (!ranks[r].failed) continue;
          ++ended;
          if (ranks[r].secondary) continue;
          if (first < 0) first = r;
          ++began;
          began_with_bad_input += ranks[r].code == Code::invalid_argument ? 1 : 0;
        }
        const bool bad_input = began > 0 && began == began_with_bad_input;
        EXPECT_EQ(exit_code_of(ranks), ended == 0 ? 0 : bad_input ? 2 : 1);
        const bool all_alike = ended == 3 && a.reason == b.reason && b.reason == c.reason;
        for (int r = 0; r < 3; ++r) {
          const std::string own = "rank " + std::to_string(r) + ": " + ranks[r].reason;
          const std::string expected = !ranks[r].failed ? ""
                                       : all_alike      ? r == 0 ? ranks[r].reason : ""
                                       : bad_input      ? r == first ? own : ""
                                                        : own;
          EXPECT_EQ(line_of(ranks, r), expected);
        }
        bad_inputs += bad_input ? 1 : 0;
        failures += ended > 0 && !bad_input ? 1 : 0;
      }
  EXPECT_GT(bad_inputs, 0);
  EXPECT_GT(failures, 0);
}

}  // namespace
}  // namespace regatta::cli
