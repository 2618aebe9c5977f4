#include "sharding/reshard.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace regatta::sharding {
namespace {

TEST(Stretches, OfARectangle) {
  EXPECT_EQ(stretches({{1, 3}, {2, 4}, {0, 4}}, 5), (std::vector<Stretch>{{7, 0, 2}, {12, 2, 2}}));
}

TEST(Stretches, WholeRowsAreOneStretch) {
  EXPECT_EQ(stretches({{1, 3}, {0, 5}, {0, 10}}, 5), (std::vector<Stretch>{{5, 0, 10}}));
}

TEST(Stretches, OfAFlatRunInsideARectangle) {
  EXPECT_EQ(stretches({{0, 2}, {0, 3}, {2, 5}}, 4), (std::vector<Stretch>{{2, 0, 1}, {4, 1, 2}}));
}

// Any set of parts that tile a block rebuilds any other part of it.
TEST(Reshard, RebuildsAnyPartFromAnyTiling) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 300; ++trial) {
    const std::int64_t rows = 1 + random() % 9, cols = 1 + random() % 9;
    const char* placements[] = {"dp:0", "dp:1", "dp:flat", "tp:0,dp:0", "tp:1,dp:0", "tp:1,dp:flat", "tp:0,dp:1"};
    const auto tiling = [&](const Mesh& mesh, const Placement& placement) {
      std::vector<BlockPart> parts;
      for (int rank = 0; rank < mesh.world_size(); ++rank)
        parts.push_back(local_parts(mesh, placement, rank, {{rows, cols}})[0]);
      return parts;
    };
    const Mesh from_mesh({{"dp", 1 + static_cast<int>(random() % 4)}, {"tp", 1 + static_cast<int>(random() % 3)}});
    const Placement from = Placement::parse(placements[random() % std::size(placements)]);
    const Mesh to_mesh({{"dp", 1 + static_cast<int>(random() % 5)}, {"tp", 1 + static_cast<int>(random() % 3)}});
    const Placement to = Placement::parse(placements[random() % std::size(placements)]);

    std::vector<std::int64_t> whole(rows * cols);
    std::iota(whole.begin(), whole.end(), 100);
    const auto take = [&](const BlockPart& part) {
      std::vector<std::int64_t> values(part.run.size(), -1);
      for (const Stretch& s : stretches(part, cols))
        std::copy_n(whole.begin() + s.in_block, s.count, values.begin() + s.in_part);
      return values;
    };
    const std::vector<BlockPart> sources = tiling(from_mesh, from);
    std::vector<std::vector<std::int64_t>> shards;
    for (const BlockPart& part : sources) shards.push_back(take(part));
    for (const BlockPart& target : tiling(to_mesh, to)) {
      std::vector<std::int64_t> rebuilt(target.run.size(), -2);
      for (const Copy& copy : reshard(sources, target, cols))
        std::copy_n(shards[copy.source].begin() + copy.from, copy.count, rebuilt.begin() + copy.to);
      EXPECT_EQ(rebuilt, take(target));
    }
  }
}

TEST(Reshard, LeavesOutWhatNobodyHolds) {
  const std::vector<BlockPart> sources{{{0, 1}, {0, 4}, {0, 4}}};
  const BlockPart target{{0, 2}, {0, 4}, {0, 8}};
  EXPECT_EQ(reshard(sources, target, 4), (std::vector<Copy>{{0, 0, 0, 4}}));
}

}  // namespace
}  // namespace regatta::sharding
