#include "runtime/transport/shared/board.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace regatta {
namespace {

static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "a lock would not work across processes");

/// All rings of a group together stay within 16 MiB.
std::int64_t ring_bytes(int ranks) {
  const std::uint64_t share = (std::uint64_t{16} << 20) / (static_cast<std::uint64_t>(ranks) * ranks);
  return static_cast<std::int64_t>(std::clamp<std::uint64_t>(std::bit_floor(share), 4096, 65536));
}

/// Calls copy(ring offset, data offset, bytes) for the one or two stretches of a ring.
template <class Copy>
void stretches(std::uint64_t at, std::int64_t count, std::int64_t size, Copy copy) {
  const std::int64_t begin = static_cast<std::int64_t>(at % static_cast<std::uint64_t>(size));
  const std::int64_t first = std::min(count, size - begin);
  copy(begin, 0, first);
  if (count > first) copy(0, first, count - first);
}

}  // namespace

std::int64_t Board::bytes(int ranks) {
  const std::int64_t pairs = std::int64_t{ranks} * ranks;
  return ranks * static_cast<std::int64_t>(sizeof(BoardRow)) + pairs * static_cast<std::int64_t>(sizeof(ByteRing)) +
         pairs * ring_bytes(ranks);
}

Board::Board(std::byte* memory, int ranks)
    : ranks_(ranks),
      ring_bytes_(ring_bytes(ranks)),
      rows_(reinterpret_cast<BoardRow*>(memory)),
      rings_(reinterpret_cast<ByteRing*>(memory + ranks * sizeof(BoardRow))),
      data_(reinterpret_cast<std::byte*>(rings_ + static_cast<std::ptrdiff_t>(ranks) * ranks)) {}

std::int64_t Board::write(int from, int to, const std::byte* data, std::int64_t count, bool whole) const {
  ByteRing& ring = this->ring(from, to);
  const std::uint64_t written = ring.written.load(std::memory_order_relaxed);
  const std::int64_t room =
      ring_bytes_ - static_cast<std::int64_t>(written - ring.read.load(std::memory_order_acquire));
  if (whole && room < count) return 0;
  const std::int64_t moved = std::min(room, count);
  if (moved == 0) return 0;
  std::byte* target = ring_data(from, to);
  stretches(written, moved, ring_bytes_, [&](std::int64_t at, std::int64_t offset, std::int64_t bytes) {
    std::memcpy(target + at, data + offset, static_cast<std::size_t>(bytes));
  });
  ring.written.store(written + static_cast<std::uint64_t>(moved), std::memory_order_release);
  return moved;
}

std::int64_t Board::read(int from, int to, std::byte* data, std::int64_t count, bool whole) const {
  ByteRing& ring = this->ring(from, to);
  const std::uint64_t read = ring.read.load(std::memory_order_relaxed);
  const std::int64_t ready = static_cast<std::int64_t>(ring.written.load(std::memory_order_acquire) - read);
  if (whole && ready < count) return 0;
  const std::int64_t moved = std::min(ready, count);
  if (moved == 0) return 0;
  const std::byte* source = ring_data(from, to);
  stretches(read, moved, ring_bytes_, [&](std::int64_t at, std::int64_t offset, std::int64_t bytes) {
    std::memcpy(data + offset, source + at, static_cast<std::size_t>(bytes));
  });
  ring.read.store(read + static_cast<std::uint64_t>(moved), std::memory_order_release);
  return moved;
}

}  // namespace regatta
