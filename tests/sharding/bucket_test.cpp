#include "sharding/bucket.h"

#include <gtest/gtest.h>

#include <random>

namespace regatta::sharding {
namespace {

TEST(Buckets, FillFromTheLastParameter) {
  const std::vector<std::int64_t> bytes{10, 10, 10, 10, 10};
  const std::vector<int> kinds{0, 0, 0, 0, 0};
  EXPECT_EQ(group_params(bytes, kinds, 20), (std::vector<std::vector<int>>{{4, 3}, {2, 1}, {0}}));
}

TEST(Buckets, HoldOneKind) {
  const std::vector<std::int64_t> bytes{1, 1, 1};
  const std::vector<int> kinds{0, 1, 1};
  EXPECT_EQ(group_params(bytes, kinds, 100), (std::vector<std::vector<int>>{{2, 1}, {0}}));
}

class Cuts : public ::testing::Test {
 protected:
  BucketLayout cut(std::vector<LocalBlock> blocks, int dp, Cut cut) {
    const std::vector<std::vector<LocalBlock>> params{std::move(blocks)};
    const std::vector<int> order{0};
    return lay_out(order, params, dp, cut);
  }
};

TEST_F(Cuts, ElementCutsAreEven) {
  EXPECT_EQ(cut({{5, 3, true}}, 2, Cut::element).bounds, (std::vector<std::int64_t>{0, 7, 15}));
}

TEST_F(Cuts, RowCutsMoveToTheNearestRow) {
  EXPECT_EQ(cut({{5, 3, true}}, 2, Cut::row).bounds, (std::vector<std::int64_t>{0, 6, 15}));
  EXPECT_EQ(cut({{1, 9, true}}, 3, Cut::row).bounds, (std::vector<std::int64_t>{0, 0, 9, 9}));
}

TEST_F(Cuts, ElementsNeedNoRows) {
  EXPECT_EQ(cut({{5, 3, false}}, 2, Cut::row).bounds, (std::vector<std::int64_t>{0, 7, 15}));
}

TEST_F(Cuts, MatrixCutsMoveBetweenBlocks) {
  EXPECT_EQ(cut({{2, 2, true}, {4, 2, true}}, 3, Cut::matrix).bounds, (std::vector<std::int64_t>{0, 4, 12, 12}));
}

TEST(Layout, EntriesAreAlignedAndChunksTileTheBucket) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 500; ++trial) {
    std::vector<std::vector<LocalBlock>> params(1 + random() % 4);
    std::vector<int> order;
    for (auto& blocks : params) {
      order.push_back(static_cast<int>(order.size()));
      blocks.resize(1 + random() % 3);
      const std::int64_t cols = 1 + random() % 40;
      for (LocalBlock& block : blocks) block = {static_cast<std::int64_t>(random() % 30), cols, random() % 2 == 0};
    }
    const int dp = 1 + static_cast<int>(random() % 7);
    const Cut kind = static_cast<Cut>(random() % 3);
    const BucketLayout layout = lay_out(order, params, dp, kind);
    ASSERT_EQ(layout.bounds.size(), static_cast<std::size_t>(dp) + 1);
    EXPECT_EQ(layout.bounds.front(), 0);
    EXPECT_EQ(layout.bounds.back(), layout.numel);
    for (int k = 0; k < dp; ++k) EXPECT_LE(layout.bounds[k], layout.bounds[k + 1]);
    for (const BucketEntry& entry : layout.entries) EXPECT_EQ(entry.offset % entry_alignment, 0);
    if (kind != Cut::matrix) continue;
    for (int k = 1; k < dp; ++k)  // no bound lies strictly inside a block
      for (const BucketEntry& entry : layout.entries) {
        std::int64_t begin = entry.offset;
        for (const LocalBlock& block : params[entry.param]) {
          EXPECT_FALSE(begin < layout.bounds[k] && layout.bounds[k] < begin + block.numel());
          begin += block.numel();
        }
      }
  }
}

}  // namespace
}  // namespace regatta::sharding
