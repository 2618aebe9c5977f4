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

}  // namespace
}  // namespace regatta::cli
