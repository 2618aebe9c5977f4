// Ranks as threads: the bits of sums over every number of ranks, what tests may do to bytes that arrive, and memory
// that is given back.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>

#include "runtime/transport/shared/board.h"
#include "tests/transport/transport_checks.h"
#include "tests/support/scalar_kernels.h"
#include "tests/support/spmd.h"

namespace regatta::testing {
namespace {

// ---- the order of additions

TEST(LocalReduceScatter, GivesTheTreeInRankOrderOnEveryNumberOfRanks) {
  for (int ranks = 1; ranks <= 9; ++ranks)
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      const std::int64_t size = size_of(dtype), chunk = 70'032;
      std::vector<std::vector<float>> values(static_cast<std::size_t>(ranks));  // as they are once rounded
      run_ranks(ranks, [&](Transport& t) {
        std::vector<std::int64_t> bounds{0};
        for (int r = 0; r < ranks; ++r) bounds.push_back(bounds.back() + (r == ranks / 2 ? chunk : 48) * size);
        const SymmetricBuffer buffer = t.allocate(bounds.back());
        std::mt19937 random(static_cast<unsigned>(100 * ranks + t.rank()));
        std::vector<float>& own = values[static_cast<std::size_t>(t.rank())];
        for (std::int64_t i = 0; i < bounds.back() / size; ++i) {
          const float value =
              std::ldexp(static_cast<float>(random() % 2048) - 1024, static_cast<int>(random() % 9) - 8);
          write(dtype, buffer.data(), i, value);
          own.push_back(read(dtype, buffer.data(), i));
        }
        t.barrier("all values are known");
        const std::int64_t first = bounds[t.rank()] / size;
        std::vector<float> sums(static_cast<std::size_t>((bounds[t.rank() + 1] - bounds[t.rank()]) / size));
        const auto reduce = [&](std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end) {
          const std::vector<const void*> pointers(pieces.begin(), pieces.end());
          kernels::cpu_kernels().reduce_tree({pointers.data(), ranks, dtype, (end - begin) / size,
                                              sums.data() + (begin / size - first), nullptr, nullptr});
        };
        t.reduce_scatter(buffer, 0, bounds, reduce, "tree").wait();
        for (std::size_t i = 0; i < sums.size(); ++i) {
          std::vector<float> level;
          for (const auto& one : values) level.push_back(one[static_cast<std::size_t>(first) + i]);
          for (; level.size() > 1; level.resize((level.size() + 1) / 2))
            for (std::size_t k = 0; k < (level.size() + 1) / 2; ++k)
              level[k] = 2 * k + 1 < level.size() ? level[2 * k] + level[2 * k + 1] : level[2 * k];
          if (sums[i] != level[0])
            throw std::logic_error("element " + std::to_string(i) + " of rank " + std::to_string(t.rank()));
        }
      });
    }
}

// ---- what arrives can be tampered with, for tests of what follows

class Tampering final : public TransportFaults {
 public:
  void arrived(int root_rank, std::string_view label, std::span<std::byte> bytes) override {
    if (label != "parts" && label != "values") return;  // not what groups are made with
    const std::lock_guard lock(mutex_);
    seen_[std::to_string(root_rank) + " " + std::string(label)] += bytes.size();
    if (root_rank == 2 && !bytes.empty()) bytes.back() = std::byte{99};
  }
  std::map<std::string, std::size_t> seen() {
    const std::lock_guard lock(mutex_);
    return seen_;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::size_t> seen_;
};

TEST(LocalTampering, SeesWhatArrivesByRootRank) {
  Tampering tampering;
  TransportOptions options = test_transport_options();
  options.faults = &tampering;
  run_ranks(
      3,
      [](Transport& t) {
        const std::vector<int> upper{1, 2}, lower{0};
        const std::unique_ptr<Transport> group = t.split(t.rank() == 0 ? lower : upper);
        std::vector<std::byte> mine(5, std::byte{7}), all(5 * static_cast<std::size_t>(group->world_size()));
        const std::vector<std::int64_t> five(static_cast<std::size_t>(group->world_size()), 5);
        group->all_gather_small(mine, all, five, "parts").wait();
        EXPECT_EQ(all.back(), std::byte{static_cast<unsigned char>(t.rank() == 2 ? 99 : 7)});
        t.broadcast(mine, 0, "values").wait();
        EXPECT_EQ(mine.back(), std::byte{static_cast<unsigned char>(t.rank() == 2 ? 99 : 7)});
      },
      options);
  std::map<std::string, std::size_t> seen = tampering.seen();
  EXPECT_EQ(seen["0 parts"], 5u);
  EXPECT_EQ(seen["1 parts"], 10u);
  EXPECT_EQ(seen["2 parts"], 10u);
  for (const char* key : {"0 values", "1 values", "2 values"}) EXPECT_EQ(seen[key], 5u) << key;
}

// ---- memory

std::int64_t address_space_bytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t pages = 0;
  file >> pages;
  return pages * 4096;
}

TEST(LocalMemory, IsGivenBackWithItsLastHandle) {
  constexpr std::int64_t size = 512 << 20;  // never touched
  run_ranks(2, [&](Transport& t) {
    const std::int64_t before = address_space_bytes();
    const std::vector<std::int64_t> bounds{0, 64, 128};
    for (int round = 0; round < 12; ++round) {
      auto captured = std::make_shared<int>(1);
      const std::weak_ptr<int> reducers = captured;
      const SymmetricBuffer buffer = t.allocate(size);
      t.reduce_scatter(
           buffer, 0, bounds, [captured = std::move(captured)](auto, auto, auto) {}, "once")
          .wait();
      require(reducers.expired(), "a reducer is let go when it is done");
    }
    const std::vector<int> both{0, 1};
    for (int round = 0; round < 12; ++round) t.split(both)->allocate(size);
    t.barrier("all have let go");
    require(address_space_bytes() - before < 12 * size, "memory stays behind");
    t.barrier("all have looked");
    // What groups meet with is little, but they may be many.
    const std::int64_t with_few = address_space_bytes();
    constexpr int groups = 1000;
    for (int round = 0; round < groups; ++round) t.split(both);
    t.barrier("all have made their groups");
    require(address_space_bytes() - with_few < groups * 3 / 4 * Board::bytes(2), "groups leave their meeting places");
    t.barrier("all have looked");
  });
}

}  // namespace
}  // namespace regatta::testing
