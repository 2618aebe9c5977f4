// The memory through which ranks of one host coordinate: rings against a queue, at every number of free bytes; that
// rows and rings of different ranks do not overlap and end where the memory ends.

#include "runtime/transport/shared/board.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "runtime/transport/shared/memory_sharing.h"

namespace regatta::testing {
namespace {

std::int64_t ring_of(int ranks) {
  const std::int64_t pairs = std::int64_t{ranks} * ranks;
  return (Board::bytes(ranks) - ranks * static_cast<std::int64_t>(sizeof(BoardRow))) / pairs -
         static_cast<std::int64_t>(sizeof(ByteRing));
}

/// Zeroed memory of a board, with guards behind it.
class Memory {
 public:
  explicit Memory(int ranks) : bytes_(Board::bytes(ranks)), memory_(private_memory(bytes_ + guard)) {
    std::memset(data() + bytes_, 0x77, guard);
  }
  std::byte* data() const { return static_cast<std::byte*>(memory_.get()); }
  bool guards_are_whole() const {
    return std::all_of(data() + bytes_, data() + bytes_ + guard, [](std::byte b) { return b == std::byte{0x77}; });
  }

 private:
  static constexpr std::int64_t guard = 4096;
  std::int64_t bytes_;
  std::shared_ptr<void> memory_;
};

std::vector<std::byte> numbered(std::int64_t count, int salt) {
  std::vector<std::byte> bytes;
  for (std::int64_t i = 0; i < count; ++i) bytes.push_back(static_cast<std::byte>((i * 7 + (i >> 8) + salt) & 0xff));
  return bytes;
}

TEST(Board, RingsAreAsLongAsTheyMayBe) {
  for (const int ranks : {1, 2, 9, 16, 17, 33, 64}) {
    EXPECT_GE(ring_of(ranks), 4096) << ranks;
    EXPECT_EQ(ring_of(ranks) & (ring_of(ranks) - 1), 0) << ranks;
    EXPECT_LE(ring_of(ranks) * ranks * ranks, 16 << 20) << ranks;
  }
  EXPECT_EQ(ring_of(2), 65536);
  EXPECT_EQ(ring_of(16), 65536);
  EXPECT_EQ(ring_of(17), 32768);
  EXPECT_EQ(ring_of(200), 4096);
}

TEST(Board, ARingGivesBackWhatItWasGivenInOrder) {
  const Memory memory(2);
  const Board board(memory.data(), 2);
  const std::int64_t ring = ring_of(2);
  std::mt19937 random(3);
  std::deque<std::byte> expected;
  const std::vector<std::byte> source = numbered(2 * ring, 1);
  std::vector<std::byte> target(static_cast<std::size_t>(2 * ring));
  for (int round = 0; round < 3000; ++round) {
    const std::int64_t room = ring - std::ssize(expected);
    const std::int64_t count = random() % 3 == 0
                                   ? static_cast<std::int64_t>(random() % 20)
                                   : static_cast<std::int64_t>(random() % static_cast<unsigned>(ring + 99));
    const bool whole = random() % 2 == 0;
    if (random() % 2 == 0) {
      const std::size_t from = random() % static_cast<unsigned>(ring / 2);
      const std::int64_t moved = board.write(1, 0, source.data() + from, std::min(count, ring), whole);
      ASSERT_EQ(moved, whole && std::min(count, ring) > room ? 0 : std::min({count, ring, room}));
      for (std::int64_t i = 0; i < moved; ++i) expected.push_back(source[from + static_cast<std::size_t>(i)]);
    } else {
      const std::int64_t ready = std::ssize(expected);
      const std::int64_t moved = board.read(1, 0, target.data(), count, whole);
      ASSERT_EQ(moved, whole && count > ready ? 0 : std::min(count, ready));
      for (std::int64_t i = 0; i < moved; ++i) {
        ASSERT_EQ(target[static_cast<std::size_t>(i)], expected.front()) << "byte " << i << " of round " << round;
        expected.pop_front();
      }
    }
    ASSERT_EQ(board.read(0, 1, target.data(), 1), 0) << "the other direction stays empty";
  }
  EXPECT_TRUE(memory.guards_are_whole());
}

// The last bytes of a ring, for parts that must go as a whole: one too many is none.
TEST(Board, WholePartsNeedTheirWholeRoom) {
  const std::int64_t ring = ring_of(3);
  const std::vector<std::byte> fill = numbered(ring, 2), part = numbered(16, 90);
  for (std::int64_t left = 0; left <= 33; ++left) {
    const Memory memory(3);
    const Board board(memory.data(), 3);
    ASSERT_EQ(board.write(2, 1, fill.data(), ring - left), ring - left);
    EXPECT_EQ(board.write(2, 1, part.data(), 16, true), left >= 16 ? 16 : 0) << left;
    std::vector<std::byte> got(static_cast<std::size_t>(ring));
    ASSERT_EQ(board.read(2, 1, got.data(), ring - left, true), ring - left);
    ASSERT_TRUE(std::equal(fill.begin(), fill.end() - left, got.begin()));
    EXPECT_EQ(board.read(2, 1, got.data(), 17, true), 0);
    EXPECT_EQ(board.read(2, 1, got.data(), 16, true), left >= 16 ? 16 : 0);
    if (left >= 16) {
      EXPECT_TRUE(std::equal(part.begin(), part.end(), got.begin()));
    }
  }
}

TEST(Board, RowsAndRingsDoNotOverlap) {
  for (const int ranks : {1, 2, 3, 9, 17}) {
    const Memory memory(ranks);
    const Board board(memory.data(), ranks);
    const std::int64_t ring = ring_of(ranks);
    for (int r = 0; r < ranks; ++r) {
      board.row(r).arrived = static_cast<std::uint64_t>(r) + 1;
      board.row(r).finished = static_cast<std::uint64_t>(r) + 101;
      board.row(r).signature = static_cast<std::uint64_t>(r) + 201;
      std::memset(board.row(r).label, 'a' + r, BoardRow::label_bytes);
    }
    std::vector<std::byte> got(static_cast<std::size_t>(ring));
    for (int from = 0; from < ranks; ++from)
      for (int to = 0; to < ranks; ++to)
        ASSERT_EQ(board.write(from, to, numbered(ring, 31 * from + to).data(), ring + 5), ring);
    for (int from = 0; from < ranks; ++from)
      for (int to = 0; to < ranks; ++to) {
        ASSERT_EQ(board.read(from, to, got.data(), ring + 5), ring);
        ASSERT_EQ(got, numbered(ring, 31 * from + to)) << from << " to " << to << " of " << ranks;
      }
    for (int r = 0; r < ranks; ++r) {
      EXPECT_EQ(board.row(r).arrived, static_cast<std::uint64_t>(r) + 1);
      EXPECT_EQ(board.row(r).finished, static_cast<std::uint64_t>(r) + 101);
      EXPECT_EQ(board.row(r).signature, static_cast<std::uint64_t>(r) + 201);
      EXPECT_EQ(board.row(r).label[BoardRow::label_bytes - 1], 'a' + r);
    }
    EXPECT_TRUE(memory.guards_are_whole()) << ranks;
  }
}

TEST(Board, OneWritesWhileTheOtherReads) {
  const Memory memory(2);
  const Board board(memory.data(), 2);
  const std::vector<std::byte> source = numbered(3'000'000, 5);
  std::vector<std::byte> target(source.size());
  std::jthread writer([&] {
    for (std::size_t at = 0; at < source.size();) {
      const std::int64_t count = std::min<std::int64_t>(1 + static_cast<std::int64_t>(at % 50'000),
                                                        std::ssize(source) - static_cast<std::int64_t>(at));
      const std::int64_t moved = board.write(0, 1, source.data() + at, count);
      if (moved == 0) std::this_thread::yield();
      at += static_cast<std::size_t>(moved);
    }
  });
  for (std::size_t at = 0; at < target.size();) {
    const std::int64_t moved = board.read(0, 1, target.data() + at, std::ssize(target) - static_cast<std::int64_t>(at));
    if (moved == 0) std::this_thread::yield();
    at += static_cast<std::size_t>(moved);
  }
  EXPECT_EQ(target, source);
}

TEST(PrivateMemory, IsZeroAlignedAndLetGo) {
  for (const std::int64_t bytes : {1, 4095, (4 << 20) - 1, 4 << 20, (6 << 20) + 1}) {
    for (int round = 0; round < 2; ++round) {
      const std::shared_ptr<void> memory = private_memory(bytes);
      auto* const data = static_cast<std::byte*>(memory.get());
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 64, 0u);
      if (bytes >= 4 << 20) {
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % (2 << 20), 0u) << bytes;
      }
      EXPECT_TRUE(std::all_of(data, data + bytes, [](std::byte b) { return b == std::byte{0}; })) << bytes;
      std::memset(data, 1, static_cast<std::size_t>(bytes));  // all of it is there
    }
  }
}

}  // namespace
}  // namespace regatta::testing
