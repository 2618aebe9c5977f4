#include "sharding/placement.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace regatta::sharding {
namespace {

TEST(Chunk, IsTorchChunk) {  // torch.chunk(range(5), 4): 2, 2, 1, nothing
  EXPECT_EQ(chunk(5, 4, 0), (Range{0, 2}));
  EXPECT_EQ(chunk(5, 4, 1), (Range{2, 4}));
  EXPECT_EQ(chunk(5, 4, 2), (Range{4, 5}));
  EXPECT_EQ(chunk(5, 4, 3), (Range{5, 5}));
}

TEST(Placement, ColumnsOverTpThenRowsOverDp) {
  const Mesh mesh = Mesh::parse("dp=2,tp=2");
  const auto parts = local_parts(mesh, Placement::parse("tp:1,dp:0"), 3, {{5, 6}});
  ASSERT_EQ(parts.size(), 1U);
  EXPECT_EQ(parts[0].rows, (Range{3, 5}));
  EXPECT_EQ(parts[0].cols, (Range{3, 6}));
  EXPECT_EQ(parts[0].run, (Range{0, 6}));
}

TEST(Placement, BothAxesOnOneDimCutTheInnerShard) {
  const Mesh mesh = Mesh::parse("dp=2,tp=2");
  const auto parts = local_parts(mesh, Placement::parse("tp:0,dp:0"), 2, {{8, 1}});  // dp 1, tp 0
  EXPECT_EQ(parts[0].rows, (Range{2, 4}));
}

TEST(Placement, EachBlockIsCutByItself) {  // fused q (4 rows), k (2 rows), v (2 rows)
  const Mesh mesh = Mesh::parse("tp=2");
  const auto parts = local_parts(mesh, Placement::parse("tp:0"), 1, {{4, 3}, {2, 3}, {2, 3}});
  EXPECT_EQ(parts[0].rows, (Range{2, 4}));
  EXPECT_EQ(parts[1].rows, (Range{1, 2}));
  EXPECT_EQ(parts[2].rows, (Range{1, 2}));
}

TEST(Placement, StackedRowsCutAcrossBlocks) {  // FSDP2's Shard(0) of fused q (4 rows), k, v (2 rows each)
  const Mesh mesh = Mesh::parse("dp=3");
  const std::vector<MatrixShape> blocks{{4, 3}, {2, 3}, {2, 3}};
  const Placement rows = Placement::parse("dp:rows");
  const auto rows_on = [&](int rank) {
    std::vector<Range> held;
    for (const BlockPart& part : local_parts(mesh, rows, rank, blocks)) held.push_back(part.rows);
    return held;
  };
  EXPECT_EQ(rows_on(0), (std::vector<Range>{{0, 3}, {0, 0}, {0, 0}}));
  EXPECT_EQ(rows_on(1), (std::vector<Range>{{3, 4}, {0, 2}, {0, 0}}));
  EXPECT_EQ(rows_on(2), (std::vector<Range>{{0, 0}, {0, 0}, {0, 2}}));
  EXPECT_EQ(rows.text(), "dp:rows");
}

TEST(Placement, StackedRowsCutWhatTpLeft) {
  const Mesh mesh = Mesh::parse("dp=2,tp=2");
  const auto parts = local_parts(mesh, Placement::parse("tp:0,dp:rows"), 1, {{4, 3}, {2, 3}, {2, 3}});  // dp 0, tp 1
  EXPECT_EQ(parts[0].rows, (Range{2, 4}));
  EXPECT_TRUE(parts[1].rows.empty());
  EXPECT_TRUE(parts[2].rows.empty());
}

TEST(Placement, StackedRowsKeepExpertsWhole) {  // three experts of two rows over two ranks: two and one
  const Mesh mesh = Mesh::parse("dp=2");
  const auto parts = local_parts(mesh, Placement::parse("dp:rows"), 0, {{2, 3}, {2, 3}, {2, 3}}, 2);
  EXPECT_EQ(parts[1].rows, (Range{0, 2}));
  EXPECT_TRUE(parts[2].rows.empty());
}

TEST(Placement, FlatRunsOverAllBlocks) {
  const Mesh mesh = Mesh::parse("dp=2");
  const auto first = local_parts(mesh, Placement::parse("dp:flat"), 0, {{2, 3}, {1, 3}});
  const auto second = local_parts(mesh, Placement::parse("dp:flat"), 1, {{2, 3}, {1, 3}});
  EXPECT_EQ(first[0].run, (Range{0, 5}));
  EXPECT_TRUE(first[1].run.empty());
  EXPECT_EQ(second[0].run, (Range{5, 6}));
  EXPECT_EQ(second[1].run, (Range{0, 3}));
}

TEST(Placement, WrongTextIsRefused) {
  for (const char* text : {"tp", "tp:2", "tp:flat", "dp:flat,tp:1", "tp:0,tp:1", ":1x"})
    EXPECT_THROW(Placement::parse(text), std::invalid_argument) << text;
}

}  // namespace
}  // namespace regatta::sharding
