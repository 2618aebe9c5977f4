#include "sharding/lines.h"

#include <gtest/gtest.h>

namespace regatta::sharding {
namespace {

BlockPart flat(MatrixShape shape, Range run) { return {{0, shape.rows}, {0, shape.cols}, run}; }

TEST(TouchedLines, RowsOfAPartialRun) {
  EXPECT_EQ(touched_lines(flat({4, 5}, {3, 11}), Line::row), (std::vector<Range>{{0, 3}}));
}

TEST(TouchedLines, ColumnsInsideOneRow) {
  EXPECT_EQ(touched_lines(flat({4, 5}, {6, 9}), Line::column), (std::vector<Range>{{1, 4}}));
}

TEST(TouchedLines, ColumnsThatWrapAroundLeaveAGap) {
  EXPECT_EQ(touched_lines(flat({4, 5}, {4, 6}), Line::column), (std::vector<Range>{{0, 1}, {4, 5}}));
}

TEST(TouchedLines, ColumnsThatWrapAroundAndOverlapAreAll) {
  EXPECT_EQ(touched_lines(flat({4, 5}, {3, 9}), Line::column), (std::vector<Range>{{0, 5}}));
}

TEST(TouchedLines, AreInTheBlocksCoordinates) {
  const BlockPart part{{2, 4}, {10, 13}, {0, 6}};
  EXPECT_EQ(touched_lines(part, Line::row), (std::vector<Range>{{2, 4}}));
  EXPECT_EQ(touched_lines(part, Line::column), (std::vector<Range>{{10, 13}}));
}

TEST(OpenLines, RowCutAtAShardEdgeOpensOneRow) {
  const std::vector<LineHolder> holders{{0, touched_lines(flat({4, 5}, {0, 8}), Line::row)},
                                        {1, touched_lines(flat({4, 5}, {8, 20}), Line::row)}};
  EXPECT_EQ(open_lines(holders), (std::vector<OpenLines>{{{1, 2}, {0, 1}}}));
}

TEST(OpenLines, RowsCutBetweenRowsStayClosed) {
  const std::vector<LineHolder> holders{{0, {{0, 2}}}, {1, {{2, 4}}}};
  EXPECT_TRUE(open_lines(holders).empty());
}

TEST(OpenLines, ARowLongerThanAShardIsHeldByThree) {
  std::vector<LineHolder> holders;
  for (int r = 0; r < 3; ++r) holders.push_back({r, touched_lines(flat({1, 9}, {3 * r, 3 * r + 3}), Line::row)});
  EXPECT_EQ(open_lines(holders), (std::vector<OpenLines>{{{0, 1}, {0, 1, 2}}}));
}

TEST(OpenLines, DifferentHoldersMakeDifferentStretches) {
  const std::vector<LineHolder> holders{{0, {{0, 6}}}, {1, {{2, 8}}}, {4, {{4, 8}}}};
  EXPECT_EQ(open_lines(holders), (std::vector<OpenLines>{{{2, 4}, {0, 1}}, {{4, 6}, {0, 1, 4}}, {{6, 8}, {1, 4}}}));
}

TEST(Shares, DealEveryLineToOneHolder) {
  const OpenLines open{{10, 15}, {2, 5, 7}};
  const auto shares = share_lines(open, 1);
  ASSERT_EQ(shares.size(), 3U);
  EXPECT_EQ(shares[0].lines, (Range{10, 12}));
  EXPECT_EQ(shares[0].owner, 5);
  EXPECT_EQ(shares[1].owner, 7);
  EXPECT_EQ(shares[2].lines, (Range{14, 15}));
  EXPECT_EQ(shares[2].owner, 2);
}

}  // namespace
}  // namespace regatta::sharding
