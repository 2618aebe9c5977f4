// Small pieces of the planner against the obvious: element by element, on random inputs.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>

#include "sharding/lines.h"
#include "sharding/reshard.h"
#include "tests/sharding/random.h"

namespace regatta::sharding {
namespace {

TEST(MeshProperties, GroupsAreTheRanksThatAgreeElsewhere) {
  Random random(1);
  for (int round = 0; round < 60; ++round) {
    const Mesh mesh({{"dp", static_cast<int>(any(random, 1, 4))},
                     {"ep", static_cast<int>(any(random, 1, 3))},
                     {"tp", static_cast<int>(any(random, 1, 4))}});
    std::set<std::vector<int>> places;
    for (int rank = 0; rank < mesh.world_size(); ++rank) {
      std::vector<int> place;
      for (const Axis& axis : mesh.axes()) {
        place.push_back(mesh.coordinate(rank, axis.name));
        EXPECT_TRUE(place.back() >= 0 && place.back() < axis.size);
      }
      EXPECT_TRUE(places.empty() || *places.rbegin() < place) << "row-major";
      places.insert(place);
      for (const std::vector<std::string>& free : std::vector<std::vector<std::string>>{
               {}, {"dp"}, {"ep"}, {"tp"}, {"tp", "dp"}, {"ep", "tp"}, {"dp", "ep", "tp"}, {"none"}}) {
        std::vector<int> expected;
        for (int other = 0; other < mesh.world_size(); ++other) {
          bool same = true;
          for (const Axis& axis : mesh.axes())
            same = same && (std::count(free.begin(), free.end(), axis.name) > 0 ||
                            mesh.coordinate(other, axis.name) == mesh.coordinate(rank, axis.name));
          if (same) expected.push_back(other);
        }
        EXPECT_EQ(mesh.group(rank, free), expected);
      }
    }
    EXPECT_EQ(std::ssize(places), mesh.world_size());
    EXPECT_EQ(Mesh::parse(mesh.text()), mesh);
  }
  EXPECT_EQ(Mesh().text(), "1");
}

TEST(MeshProperties, TheLargestMesh) {
  EXPECT_EQ(Mesh::parse("dp=4096,tp=4096").world_size(), 1 << 24);
  EXPECT_EQ(Mesh::parse("dp=16777216").world_size(), 1 << 24);
  for (const char* text : {"dp=4097,tp=4096", "dp=4096,tp=4097", "dp=16777217", "dp=2,tp=8388609"})
    EXPECT_THROW(Mesh::parse(text), std::invalid_argument) << text;
}

BlockPart random_part(Random& random, MatrixShape block) {
  BlockPart part;
  part.rows.begin = any(random, 0, block.rows);
  part.rows.end = any(random, part.rows.begin, block.rows);
  part.cols.begin = any(random, 0, block.cols - 1);
  part.cols.end = any(random, part.cols.begin + 1, block.cols);
  if (random() % 3 == 0) part.cols = {0, block.cols};
  part.run.begin = any(random, 0, part.rect_numel());
  part.run.end = any(random, part.run.begin, part.rect_numel());
  if (random() % 3 == 0) part.run = {0, part.rect_numel()};
  return part;
}

// Places in the block of a part's elements, in the part's order.
std::vector<std::int64_t> places_of(const BlockPart& part, std::int64_t block_cols) {
  std::vector<std::int64_t> places;
  for (std::int64_t e = part.run.begin; e < part.run.end; ++e)
    places.push_back((part.rows.begin + e / part.cols.size()) * block_cols + part.cols.begin + e % part.cols.size());
  return places;
}

TEST(LinesProperties, TouchedLinesAreThoseOfTheElements) {
  Random random(2);
  for (int round = 0; round < 3000; ++round) {
    const MatrixShape block{any(random, 1, 7), any(random, 1, 9)};
    const BlockPart part = random_part(random, block);
    for (const Line line : {Line::row, Line::column}) {
      std::set<std::int64_t> expected, got;
      for (const std::int64_t place : places_of(part, block.cols))
        expected.insert(line == Line::row ? place / block.cols : place % block.cols);
      std::int64_t end = -1;
      for (const Range& range : touched_lines(part, line)) {
        EXPECT_GT(range.begin, end) << "ascending, and not two where one would do";
        EXPECT_FALSE(range.empty());
        end = range.end;
        for (std::int64_t k = range.begin; k < range.end; ++k) got.insert(k);
      }
      EXPECT_EQ(got, expected);
    }
  }
}

TEST(LinesProperties, SharesDealEveryLineOnceInTurn) {
  Random random(3);
  for (int round = 0; round < 500; ++round) {
    OpenLines open{{any(random, 0, 50), 0}, {}};
    open.lines.end = open.lines.begin + any(random, 1, 20);
    for (int rank = 0; rank < 8; ++rank)
      if (random() % 2) open.ranks.push_back(rank * 3);
    if (open.ranks.size() < 2) open.ranks = {4, 9};
    const int turn = static_cast<int>(any(random, 0, 20)), count = static_cast<int>(open.ranks.size());
    std::int64_t at = open.lines.begin, largest = 0;
    int i = 0;
    for (const OwnedLines& share : share_lines(open, turn)) {
      EXPECT_EQ(share.lines.begin, at);
      EXPECT_FALSE(share.lines.empty());
      at = share.lines.end;
      largest = std::max(largest, share.lines.size());
      EXPECT_EQ(share.owner, open.ranks[(turn + i++) % count]);
    }
    EXPECT_EQ(at, open.lines.end);
    EXPECT_EQ(largest, (open.lines.size() + count - 1) / count);
  }
}

TEST(ReshardProperties, StretchesAreTheElements) {
  Random random(4);
  for (int round = 0; round < 3000; ++round) {
    const MatrixShape block{any(random, 1, 7), any(random, 1, 9)};
    const BlockPart part = random_part(random, block);
    std::vector<std::int64_t> each, joined;
    const auto take = [](std::vector<std::int64_t>& places, std::int64_t in_block, std::int64_t in_part,
                         std::int64_t count) {
      EXPECT_EQ(in_part, std::ssize(places));
      EXPECT_GT(count, 0);
      for (std::int64_t k = 0; k < count; ++k) places.push_back(in_block + k);
    };
    for_each_stretch(part, block.cols, [&](std::int64_t in_block, std::int64_t in_part, std::int64_t count) {
      take(each, in_block, in_part, count);
    });
    const std::vector<Stretch> found = stretches(part, block.cols);
    for (std::size_t i = 0; i < found.size(); ++i) {
      take(joined, found[i].in_block, found[i].in_part, found[i].count);
      EXPECT_TRUE(i == 0 || found[i].in_block > found[i - 1].in_block + found[i - 1].count) << "joined where it can be";
    }
    EXPECT_EQ(each, places_of(part, block.cols));
    EXPECT_EQ(joined, places_of(part, block.cols));
  }
}

// Sources that overlap and leave gaps: every element once, from the first that has it.
TEST(ReshardProperties, TheFirstSourceThatHasAnElementGivesIt) {
  Random random(5);
  for (int round = 0; round < 3000; ++round) {
    const MatrixShape block{any(random, 1, 7), any(random, 1, 9)};
    std::vector<BlockPart> sources(static_cast<std::size_t>(any(random, 0, 5)));
    std::map<std::int64_t, std::pair<int, std::int64_t>> first;
    for (int s = 0; s < std::ssize(sources); ++s) {
      sources[s] = random_part(random, block);
      const std::vector<std::int64_t> places = places_of(sources[s], block.cols);
      for (std::size_t i = 0; i < places.size(); ++i) first.try_emplace(places[i], s, static_cast<std::int64_t>(i));
    }
    const BlockPart target = random_part(random, block);
    std::vector<std::pair<int, std::int64_t>> expected, got;
    for (const std::int64_t place : places_of(target, block.cols)) {
      const auto found = first.find(place);
      expected.push_back(found == first.end() ? std::pair<int, std::int64_t>{-1, 0} : found->second);
    }
    got.assign(expected.size(), {-1, 0});
    for (const Copy& copy : reshard(sources, target, block.cols))
      for (std::int64_t k = 0; k < copy.count; ++k) {
        ASSERT_LT(copy.to + k, std::ssize(got));
        EXPECT_EQ(got[copy.to + k].first, -1) << "copied twice";
        got[copy.to + k] = {copy.source, copy.from + k};
      }
    EXPECT_EQ(got, expected);
  }
}

// A replica of the tensor holds each element once, and rows of stacked blocks are cut between indices of the first dim.
TEST(PlacementProperties, PartsTileTheTensor) {
  Random random(6);
  const char* placements[] = {"",
                              "tp:0",
                              "tp:1",
                              "dp:rows",
                              "dp:flat",
                              "tp:0,dp:rows",
                              "tp:1,dp:rows",
                              "dp:rows,tp:1",
                              "tp:1,dp:flat",
                              "tp:0,dp:1",
                              "dp:1,tp:0"};
  for (int round = 0; round < 2000; ++round) {
    const Mesh mesh({{"dp", static_cast<int>(any(random, 1, 4))}, {"tp", static_cast<int>(any(random, 1, 3))}});
    const Placement placement = Placement::parse(placements[random() % std::size(placements)]);
    EXPECT_EQ(Placement::parse(placement.text()), placement);
    const std::int64_t unit = any(random, 1, 3), cols = any(random, 1, 6);
    const bool experts = unit > 1 && placement.text().find("tp:0") == std::string::npos;
    std::vector<MatrixShape> blocks(static_cast<std::size_t>(any(random, 1, 3)));
    for (MatrixShape& block : blocks) block = {any(random, 1, 5) * (experts ? unit : 1), cols};
    std::vector<std::vector<int>> held(blocks.size());
    for (std::size_t b = 0; b < blocks.size(); ++b) held[b].resize(blocks[b].numel());
    for (int rank = 0; rank < mesh.world_size(); ++rank) {
      if (!placement.find("dp") && mesh.coordinate(rank, "dp") > 0) continue;
      if (!placement.find("tp") && mesh.coordinate(rank, "tp") > 0) continue;
      const auto parts = local_parts(mesh, placement, rank, blocks, experts ? unit : 1);
      ASSERT_EQ(parts.size(), blocks.size());
      std::int64_t rows_before = 0;
      for (std::size_t b = 0; b < parts.size(); ++b) {
        for (const std::int64_t place : places_of(parts[b], cols)) ++held[b][place];
        const bool stacked = placement.text().find("rows") != std::string::npos;
        if (stacked && experts && !parts[b].run.empty()) {
          EXPECT_EQ((rows_before + parts[b].rows.begin) % unit, 0);
          EXPECT_EQ((rows_before + parts[b].rows.end) % unit, 0);
        }
        rows_before += blocks[b].rows;
      }
    }
    for (const std::vector<int>& counts : held)
      for (const int count : counts) ASSERT_EQ(count, 1) << placement.text() << " on " << mesh.text();
  }
}

}  // namespace
}  // namespace regatta::sharding
