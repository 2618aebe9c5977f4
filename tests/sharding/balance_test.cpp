// Who gets what: buckets, chunks and owners of whole matrices against the obvious, on random inputs.

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "sharding/bucket.h"
#include "sharding/owners.h"
#include "tests/sharding/random.h"

namespace regatta::sharding {
namespace {

TEST(BucketProperties, GroupsFillUpAndTakeEveryParameterFromTheLast) {
  Random random(7);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::int64_t> bytes(static_cast<std::size_t>(any(random, 1, 20)));
    std::vector<int> kinds(bytes.size());
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = any(random, 0, 30);
      kinds[i] = static_cast<int>(any(random, 0, 12) / 9);
    }
    const std::int64_t least = any(random, 1, 60);
    int next = static_cast<int>(bytes.size()) - 1;
    const auto groups = group_params(bytes, kinds, least);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      std::int64_t filled = 0;
      ASSERT_FALSE(groups[g].empty());
      for (const int param : groups[g]) {
        EXPECT_EQ(param, next--);
        EXPECT_LT(filled, least) << "a full bucket takes no more";
        EXPECT_EQ(kinds[param], kinds[groups[g].front()]);
        filled += bytes[param];
      }
      const bool kind_ends = g + 1 == groups.size() || kinds[groups[g + 1].front()] != kinds[groups[g].front()];
      EXPECT_TRUE(kind_ends || filled >= least) << "a bucket is full, or nothing of its kind follows";
    }
    EXPECT_EQ(next, -1);
  }
}

// Of all places where a chunk may end, the one nearest to an even share.
TEST(BucketProperties, CutsMoveToTheNearestAllowedPlace) {
  Random random(8);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::vector<LocalBlock>> params(static_cast<std::size_t>(any(random, 1, 3)));
    std::vector<int> order;
    for (auto& blocks : params) {
      order.insert(order.begin(), static_cast<int>(order.size()));
      blocks.resize(static_cast<std::size_t>(any(random, 1, 3)));
      for (LocalBlock& block : blocks) block = {any(random, 0, 9), any(random, 1, 9), random() % 2 == 0};
    }
    const int dp = static_cast<int>(any(random, 1, 6));
    const Cut cut = static_cast<Cut>(random() % 3);
    const BucketLayout layout = lay_out(order, params, dp, cut);
    std::set<std::int64_t> allowed{0};  // `layout.numel` and the starts of parameters are ends of what is before
    std::int64_t end = 0;
    ASSERT_EQ(layout.entries.size(), order.size());
    for (std::size_t e = 0; e < order.size(); ++e) {
      const BucketEntry& entry = layout.entries[e];
      EXPECT_EQ(entry.param, order[e]);
      EXPECT_EQ(entry.offset, (end + entry_alignment - 1) / entry_alignment * entry_alignment);
      std::int64_t at = entry.offset;
      for (const LocalBlock& block : params[entry.param]) {
        for (std::int64_t i = 0; i <= block.numel(); ++i) {
          const bool may = i == 0 || i == block.numel() || cut == Cut::element ||
                           (cut == Cut::row && (!block.lines || i % block.cols == 0));
          if (may) allowed.insert(at + i);
        }
        at += block.numel();
      }
      EXPECT_EQ(entry.numel, at - entry.offset);
      end = at;
    }
    EXPECT_EQ(layout.numel, end);
    // Padding is nobody's: places are as far apart as there are elements between them.
    const auto elements_before = [&](std::int64_t place) {
      std::int64_t count = 0;
      for (const BucketEntry& entry : layout.entries)
        count += std::clamp<std::int64_t>(place - entry.offset, 0, entry.numel);
      return count;
    };
    for (int k = 1; k < dp; ++k) {
      const std::int64_t wanted = elements_before(layout.numel * k / dp);
      std::int64_t nearest = layout.numel;
      for (const std::int64_t place : allowed) nearest = std::min(nearest, std::abs(elements_before(place) - wanted));
      EXPECT_TRUE(allowed.count(layout.bounds[k]) > 0) << layout.bounds[k];
      EXPECT_EQ(std::abs(elements_before(layout.bounds[k]) - wanted), nearest) << "cut " << static_cast<int>(cut);
    }
  }
}

TEST(OwnerProperties, DealtWaveByWaveTheMostWorkFirst) {
  Random random(9);
  for (int round = 0; round < 300; ++round) {
    const int ranks = static_cast<int>(any(random, 1, 6));
    std::vector<MatrixTask> tasks(static_cast<std::size_t>(any(random, 1, 25)));
    int wave = 0;
    for (MatrixTask& task : tasks) {
      wave += random() % 4 == 0;
      task = {static_cast<double>(any(random, 1, 6)), {}, wave};
      for (int rank = 0; rank < ranks; ++rank)
        if (random() % 2) task.holders.push_back(rank);
      if (task.holders.empty()) task.holders = {static_cast<int>(random() % static_cast<unsigned>(ranks))};
    }
    const std::vector<int> owners = assign_owners(tasks, ranks);
    std::vector<double> load(static_cast<std::size_t>(ranks));
    std::vector<bool> dealt(tasks.size());
    for (std::size_t n = 0; n < tasks.size(); ++n) {
      std::size_t next = tasks.size();
      for (std::size_t i = 0; i < tasks.size(); ++i) {
        if (dealt[i]) continue;
        if (next == tasks.size() || tasks[i].wave < tasks[next].wave ||
            (tasks[i].wave == tasks[next].wave && tasks[i].work > tasks[next].work))
          next = i;
      }
      int least = tasks[next].holders.front();
      for (const int rank : tasks[next].holders)
        if (load[rank] < load[least]) least = rank;
      EXPECT_EQ(owners[next], least);
      load[least] += tasks[next].work;
      dealt[next] = true;
    }
  }
  EXPECT_EQ(newton_schulz_work({3, 10}), 2 * 9 * 10 + 27);
  EXPECT_EQ(newton_schulz_work({10, 3}), 2 * 9 * 10 + 27);
}

TEST(OwnerProperties, ElementsInAMessageEndAtFourBytes) {
  for (const std::int64_t bytes : {1, 2, 4})
    for (std::int64_t count = 0; count < 9; ++count) {
      const std::int64_t section =
          element_section(View::matrix({.element_bytes = bytes}), {{0, 3}, {0, 4}, {0, count}});
      EXPECT_EQ(section % 4, 0);
      EXPECT_GE(section, count * bytes);
      EXPECT_LT(section, count * bytes + 4);
    }
}

}  // namespace
}  // namespace regatta::sharding
