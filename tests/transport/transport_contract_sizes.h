#pragma once
// Bodies of the transports' contract (transport_contract.h) about sizes and memory: chunks of many tiles, messages as
// long as the rings they pass, the bytes around a collective, memory that is used again or let go.

#include <array>

#include "runtime/transport/shared/board.h"
#include "tests/transport/transport_checks.h"

namespace regatta::testing {

/// Bytes that the group's reducers are given at a time.
inline std::int64_t tile_of(Transport& t) {
  constexpr std::int64_t most = 3 << 20, untiled = 1 << 16;
  std::vector<std::int64_t> bounds(static_cast<std::size_t>(t.world_size()) + 1, most);
  bounds[0] = 0;
  std::vector<std::int64_t> tile{0};
  const auto first = [&](auto, std::int64_t begin, std::int64_t end) {
    if (tile[0] == 0) tile[0] = end - begin;
  };
  t.reduce_scatter(t.allocate(most), 0, bounds, first, "how long is a tile").wait();
  t.broadcast(writable_bytes_of(tile), 0, "the length of a tile").wait();
  return tile[0] == most ? untiled : tile[0];
}

/// Ranks with many, with few and without tiles, at the edges of a tile; with the same buffer, and other values each
/// time.
inline void reduce_scatter_sums_chunks_of_many_tiles(Transport& t) {
  const std::int64_t tile = tile_of(t) / 4;
  const std::vector<std::int64_t> sizes{9 * tile + 5, tile - 1, 0, tile + 1, tile, 2 * tile};
  const std::int64_t offset = 128;
  SymmetricBuffer buffer;
  int salt = 0;
  for (const int shift : {0, 3, 1}) {
    std::vector<std::int64_t> floats;
    for (int r = 0; r < t.world_size(); ++r)
      floats.push_back(salt == 2 ? 17 + r : sizes[static_cast<std::size_t>(r + shift) % sizes.size()]);
    const std::vector<std::int64_t> bounds = byte_bounds(floats);
    if (buffer.bytes() < offset + bounds.back()) buffer = t.allocate(offset + bounds.back());
    fill(buffer, offset, bounds.back() / 4, root_rank(t), salt);
    std::vector<float> result(static_cast<std::size_t>(floats[t.rank()]), -1);
    t.reduce_scatter(buffer, offset, bounds, SummingReducer(result, bounds[t.rank()]), "many tiles").wait();
    require_sums(result, bounds[t.rank()] / 4, t, salt);
    ++salt;
  }
}

/// Each rank to the next two, so that a message or its header ends at, just before and just after the end of a ring.
inline void exchanges_of_the_lengths_of_rings_arrive(Transport& t) {
  const std::int64_t ranks = t.world_size();
  const std::int64_t rows = ranks * static_cast<std::int64_t>(sizeof(BoardRow));
  const std::int64_t ring =
      (Board::bytes(t.world_size()) - rows) / (ranks * ranks) - static_cast<std::int64_t>(sizeof(ByteRing));
  const auto byte_at = [](int from, int to, std::int64_t i, int round) {
    return static_cast<std::byte>((from * 91 + to * 57 + i * 3 + (i >> 8) + round) & 0xff);
  };
  std::vector<std::byte> send, receive;
  int round = 0;
  for (const std::int64_t length : {std::int64_t{1}, std::int64_t{16}, ring - 33, ring - 17, ring - 16, ring - 15,
                                    ring - 1, ring, ring + 1, std::int64_t{3}, 2 * ring + 7}) {
    ++round;
    const auto count = [&](int from, int to) {
      const std::int64_t ahead = (to - from + ranks) % ranks;
      return ahead == 1 || ahead == 2 ? length + from % 2 : 2;
    };
    std::vector<std::int64_t> send_bytes, receive_bytes;
    send.clear();
    receive.clear();
    for (int p = 0; p < t.world_size(); ++p) {
      send_bytes.push_back(count(t.rank(), p));
      receive_bytes.push_back(count(p, t.rank()));
      for (std::int64_t i = 0; i < send_bytes.back(); ++i) send.push_back(byte_at(t.rank(), p, i, round));
      receive.resize(receive.size() + static_cast<std::size_t>(receive_bytes.back()), std::byte{0xee});
    }
    t.exchange(send, send_bytes, receive, receive_bytes, "as long as a ring").wait();
    std::size_t at = 0;
    for (int p = 0; p < t.world_size(); ++p) {
      for (std::int64_t i = 0; i < receive_bytes[p]; ++i, ++at)
        if (receive[at] != byte_at(p, t.rank(), i, round))
          throw std::logic_error("byte " + std::to_string(i) + " of " + std::to_string(receive_bytes[p]) +
                                 " from rank " + std::to_string(p));
    }
  }
}

/// Chunks that begin behind the offset and behind the first bound; equal ones take another way than ragged ones.
inline void collectives_touch_their_bytes_only(Transport& t) {
  for (const bool equal : {true, false}) {
    std::vector<std::int64_t> bounds{192};
    for (int r = 0; r < t.world_size(); ++r) bounds.push_back(bounds.back() + 64 * (equal ? 3 : r % 3));
    const std::int64_t offset = 320, begin = offset + bounds.front(), end = offset + bounds.back();
    const SymmetricBuffer buffer = t.allocate(end + 256);
    auto* values = reinterpret_cast<float*>(buffer.data() + offset);
    std::vector<std::byte> before;
    const auto remember = [&] { before.assign(buffer.data(), buffer.data() + buffer.bytes()); };
    const auto require_rest_unchanged = [&](const std::string& what) {
      for (std::int64_t i = 0; i < buffer.bytes(); ++i)
        if ((i < begin || i >= end) && buffer.data()[i] != before[static_cast<std::size_t>(i)])
          throw std::logic_error(what + " changed byte " + std::to_string(i));
    };
    std::memset(buffer.data(), 0x5a, static_cast<std::size_t>(buffer.bytes()));
    fill(buffer, offset, bounds.back() / 4, root_rank(t), 2);
    remember();
    std::vector<float> result(static_cast<std::size_t>(bounds[t.rank() + 1] - bounds[t.rank()]) / 4, -1);
    t.reduce_scatter(buffer, offset, bounds, SummingReducer(result, bounds[t.rank()]), "its bytes only").wait();
    require_sums(result, bounds[t.rank()] / 4, t, 2);
    require_rest_unchanged("reduce_scatter");

    for (std::int64_t i = bounds[t.rank()] / 4; i < bounds[t.rank() + 1] / 4; ++i) values[i] = value_of(3, i, 1);
    remember();
    t.all_gather(buffer, offset, bounds, "its bytes only").wait();
    for (std::int64_t i = bounds.front() / 4; i < bounds.back() / 4; ++i)
      require(values[i] == value_of(3, i, 1), "element " + std::to_string(i) + " was not gathered");
    require_rest_unchanged("all_gather");
  }
}

/// What a rank gives may lie where its part of the result goes.
inline void small_collectives_work_in_place(Transport& t) {
  for (const std::int64_t longest : {3, 5000}) {
    std::vector<std::int64_t> bytes, starts{0};
    for (int p = 0; p < t.world_size(); ++p) {
      bytes.push_back(p % 3 == 2 ? 0 : longest - p);
      starts.push_back(starts.back() + std::max<std::int64_t>(bytes.back(), 0));
      bytes.back() = std::max<std::int64_t>(bytes.back(), 0);
    }
    std::vector<std::byte> all(static_cast<std::size_t>(starts.back()));
    const std::span<std::byte> mine =
        std::span(all).subspan(static_cast<std::size_t>(starts[t.rank()]), static_cast<std::size_t>(bytes[t.rank()]));
    std::fill(mine.begin(), mine.end(), static_cast<std::byte>(40 + t.rank()));
    t.all_gather_small(mine, all, bytes, "in place").wait();
    for (int p = 0; p < t.world_size(); ++p)
      for (std::int64_t i = starts[p]; i < starts[p + 1]; ++i)
        require(all[static_cast<std::size_t>(i)] == static_cast<std::byte>(40 + p), "part of " + std::to_string(p));
  }
  std::vector<std::int64_t> only_own(static_cast<std::size_t>(t.world_size()), 0);
  only_own[t.rank()] = 9;
  const std::vector<std::byte> send(9, std::byte{7});
  std::vector<std::byte> receive(9);
  t.exchange(send, only_own, receive, only_own, "to itself").wait();
  require(receive == send, "what a rank sends itself");
}

/// A rank with a small chunk has soon gathered the others'; its own is still being read then.
inline void own_chunks_may_be_overwritten_once_done(Transport& t) {
  std::vector<std::int64_t> floats;
  for (int r = 0; r < t.world_size(); ++r) floats.push_back(r % 2 == 0 ? 1 << 17 : 16);
  const std::vector<std::int64_t> bounds = byte_bounds(floats);
  const SymmetricBuffer buffer = t.allocate(bounds.back());
  auto* values = reinterpret_cast<float*>(buffer.data());
  const std::span<float> own(values + bounds[t.rank()] / 4, static_cast<std::size_t>(floats[t.rank()]));
  for (int round = 1; round <= 4; ++round) {
    std::fill(own.begin(), own.end(), static_cast<float>(100 * round + t.rank()));
    t.all_gather(buffer, 0, bounds, "overwritten at once").wait();
    std::fill(own.begin(), own.end(), -1.0F);
    for (int p = 0; p < t.world_size(); ++p) {
      if (p == t.rank()) continue;
      const bool good = std::all_of(values + bounds[p] / 4, values + bounds[p + 1] / 4,
                                    [&](float v) { return v == static_cast<float>(100 * round + p); });
      require(good, "chunk of rank " + std::to_string(p) + " in round " + std::to_string(round));
    }
  }
}

/// As many in flight as there may be, for longer than the ring is; each value arrives at its own place.
inline void the_ring_of_tickets_wraps_around(Transport& t) {
  constexpr int count = Transport::max_in_flight + 150;
  std::vector<int> values(count, -1);
  std::vector<Ticket> tickets;
  for (int k = 0; k < count; ++k) {
    const int root = k % t.world_size();
    if (k >= Transport::max_in_flight) tickets[static_cast<std::size_t>(k - Transport::max_in_flight)].wait();
    if (root == t.rank()) values[k] = 7 * k;
    tickets.push_back(t.broadcast(std::as_writable_bytes(std::span(&values[k], 1)), root, "one of many"));
  }
  tickets.back().wait();
  for (int k = 0; k < count; ++k) {
    require(values[k] == 7 * k, "value " + std::to_string(k) + " is " + std::to_string(values[k]));
    if (k + Transport::max_in_flight >= count)
      require(tickets[k].done(), "what was called before a collective that is done is done");
  }
}

/// The caller lets go of its buffer as soon as the call is made.
inline void queued_collectives_hold_their_memory(Transport& t) {
  const std::vector<std::int64_t> bounds = byte_bounds(std::vector<std::int64_t>(t.world_size(), 70'000));
  constexpr int count = 3;
  std::array<std::vector<float>, count> results;
  std::vector<Ticket> tickets;
  for (int k = 0; k < count; ++k) {
    results[k].assign(70'000, -1);
    SymmetricBuffer buffer = t.allocate(bounds.back());
    fill(buffer, 0, bounds.back() / 4, root_rank(t), k);
    // So that the others are waiting when the last one comes; nothing depends on how long this takes.
    if (t.rank() + 1 == t.world_size()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    tickets.push_back(t.reduce_scatter(buffer, 0, bounds, SummingReducer(results[k], bounds[t.rank()]), "let go"));
    buffer = {};
  }
  for (int k = 0; k < count; ++k) {
    tickets[k].wait();
    require_sums(results[k], bounds[t.rank()] / 4, t, k);
  }
}

}  // namespace regatta::testing
