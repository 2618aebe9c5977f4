#pragma once
// The memory that a group's ranks on one host coordinate through: a row per rank that tells how far it is, and a byte
// ring per ordered pair of ranks for small data. Lays itself out in zeroed shared memory; a Board object is only a view
// of it.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace regatta {

/// A rank's progress through the group's collectives, numbered from 1. Valid when all bytes are zero.
struct alignas(64) BoardRow {
  static constexpr int label_bytes = 104;
  std::atomic<std::uint64_t> arrived;  ///< has entered this collective: its buffer may be read, and the fields below
  std::uint64_t signature;             ///< of kind, buffer and bounds; ranks that differ here would corrupt each other
  char label[label_bytes];
  alignas(64) std::atomic<std::uint64_t> finished;  ///< has read all it needs of the others
};

/// Bytes from one rank to one other, in order. One writer, one reader. Valid when all bytes are zero.
struct ByteRing {
  alignas(64) std::atomic<std::uint64_t> written;
  alignas(64) std::atomic<std::uint64_t> read;
};

class Board {
 public:
  Board() = default;
  Board(std::byte* memory, int ranks);
  static std::int64_t bytes(int ranks);

  BoardRow& row(int rank) const { return rows_[rank]; }

  /// Copies as much as fits and returns how much that was. `whole` bytes or nothing, when it is set.
  std::int64_t write(int from, int to, const std::byte* data, std::int64_t count, bool whole = false) const;
  std::int64_t read(int from, int to, std::byte* data, std::int64_t count, bool whole = false) const;

 private:
  ByteRing& ring(int from, int to) const { return rings_[from * ranks_ + to]; }
  std::byte* ring_data(int from, int to) const { return data_ + (from * ranks_ + to) * ring_bytes_; }

  int ranks_ = 0;
  std::int64_t ring_bytes_ = 0;
  BoardRow* rows_ = nullptr;
  ByteRing* rings_ = nullptr;
  std::byte* data_ = nullptr;
};

}  // namespace regatta
