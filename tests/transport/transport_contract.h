#pragma once
// What every transport must do, as bodies that each rank runs. A body throws when something is wrong. They work on any
// world size, leave the transport usable, and are instantiated by local_test and by the mpi test under mpirun. What a
// transport does when something fails: transport_failures.h.

#include "tests/transport/transport_checks.h"
#include "tests/transport/transport_contract_groups.h"
#include "tests/transport/transport_contract_refusals.h"
#include "tests/transport/transport_contract_sizes.h"

namespace regatta::testing {

inline void reduce_scatter_sums_every_shape_of_chunks(Transport& t) {
  int salt = 0;
  for (const auto& floats : chunk_patterns(t.world_size())) {
    const std::vector<std::int64_t> bounds = byte_bounds(floats);
    const std::int64_t offset = 64 * salt;
    const SymmetricBuffer buffer = t.allocate(offset + bounds.back());
    fill(buffer, offset, bounds.back() / 4, root_rank(t), salt);
    std::vector<float> result(static_cast<std::size_t>(floats[t.rank()]), -1);
    t.reduce_scatter(buffer, offset, bounds, SummingReducer(result, bounds[t.rank()]), "sums").wait();
    require_sums(result, bounds[t.rank()] / 4, t, salt);
    // Everybody has read this rank's part: it may be overwritten at once.
    std::memset(buffer.data(), 0xff, static_cast<std::size_t>(buffer.bytes()));
    ++salt;
  }
}

inline void all_gather_fills_every_shape_of_chunks(Transport& t) {
  int salt = 0;
  for (const auto& floats : chunk_patterns(t.world_size())) {
    const std::vector<std::int64_t> bounds = byte_bounds(floats);
    const std::int64_t offset = 64 * salt;
    const SymmetricBuffer buffer = t.allocate(offset + bounds.back());
    auto* values = reinterpret_cast<float*>(buffer.data() + offset);
    for (std::int64_t i = bounds[t.rank()] / 4; i < bounds[t.rank() + 1] / 4; ++i) values[i] = value_of(1, i, salt);
    t.all_gather(buffer, offset, bounds, "chunks").wait();
    for (std::int64_t i = 0; i < bounds.back() / 4; ++i) {
      if (values[i] != value_of(1, i, salt))
        throw std::logic_error("element " + std::to_string(i) + " was not gathered");
    }
    ++salt;
  }
}

inline void allocated_memory_is_zero_and_aligned(Transport& t) {
  for (const std::int64_t bytes : {std::int64_t{0}, std::int64_t{1}, std::int64_t{4097}, std::int64_t{5'000'000}}) {
    const SymmetricBuffer buffer = t.allocate(bytes);
    require(static_cast<bool>(buffer), "a buffer of few bytes is a buffer");
    require(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64 == 0, "buffers are aligned to 64 bytes");
    require(buffer.bytes() >= bytes, "the buffer is too small");
    require(std::all_of(buffer.data(), buffer.data() + bytes, [](std::byte b) { return b == std::byte{0}; }),
            "buffers start with zeros");
    t.barrier("all have looked");
    std::memset(buffer.data(), 1, static_cast<std::size_t>(bytes));
  }
}

inline std::int64_t sparse_count(int from, int to, int round) {
  if (round == 0) return 0;                                   // nobody sends
  if (round == 1) return from == 0 && to != 0 ? 8 * to : 0;   // one to all
  if (round == 2) return to == (from + 1) % 7 ? 150'001 : 0;  // neighbours, longer than any inner buffer
  if (round == 3) return (from + 2 * to) % 3 == 0 ? 0 : from * 100 + to + 1;
  return 1 + (from * 31 + to * 17) % 5;  // all to all, self included
}

inline std::byte exchange_byte(int from, int to, std::int64_t index, int round) {
  return static_cast<std::byte>((from * 91 + to * 57 + index * 3 + round) & 0xff);
}

inline void exchange_delivers_sparse_patterns(Transport& t) {
  for (int round = 0; round < 5; ++round) {
    std::vector<std::int64_t> send_bytes, receive_bytes;
    std::vector<std::byte> send, receive;
    for (int p = 0; p < t.world_size(); ++p) {
      send_bytes.push_back(sparse_count(t.rank(), p, round));
      receive_bytes.push_back(sparse_count(p, t.rank(), round));
      for (std::int64_t i = 0; i < send_bytes.back(); ++i) send.push_back(exchange_byte(t.rank(), p, i, round));
      receive.resize(receive.size() + static_cast<std::size_t>(receive_bytes.back()));
    }
    t.exchange(send, send_bytes, receive, receive_bytes, "sparse").wait();
    std::size_t at = 0;
    for (int p = 0; p < t.world_size(); ++p) {
      for (std::int64_t i = 0; i < receive_bytes[p]; ++i, ++at) {
        if (receive[at] != exchange_byte(p, t.rank(), i, round))
          throw std::logic_error("wrong byte from rank " + std::to_string(p));
      }
    }
  }
}

inline void all_gather_small_joins_ragged_parts(Transport& t) {
  for (const int step : {0, 1, 1000, 40'000}) {
    std::vector<std::int64_t> bytes;
    for (int p = 0; p < t.world_size(); ++p) bytes.push_back(p == 1 ? 0 : step * (p + 1));
    const std::vector<std::byte> mine(static_cast<std::size_t>(bytes[t.rank()]), static_cast<std::byte>(t.rank() + 1));
    std::vector<std::byte> all(static_cast<std::size_t>(std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0})));
    t.all_gather_small(mine, all, bytes, "ragged").wait();
    std::size_t at = 0;
    for (int p = 0; p < t.world_size(); ++p) {
      for (std::int64_t i = 0; i < bytes[p]; ++i, ++at) {
        if (all[at] != static_cast<std::byte>(p + 1)) throw std::logic_error("wrong byte of rank " + std::to_string(p));
      }
    }
  }
}

inline void broadcast_works_from_every_root(Transport& t) {
  for (int root = 0; root < t.world_size(); ++root) {
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{200'001}}) {
      std::vector<std::byte> data(count, static_cast<std::byte>(t.rank() == root ? root + 1 : 0));
      t.broadcast(data, root, "from a root").wait();
      require(std::all_of(data.begin(), data.end(), [&](std::byte b) { return b == static_cast<std::byte>(root + 1); }),
              "broadcast from rank " + std::to_string(root) + " did not arrive");
    }
  }
}

inline void strings_are_gathered_by_rank(Transport& t) {
  const std::string mine = t.rank() == 0 ? "" : std::string(static_cast<std::size_t>(t.rank()) * 1000, 'a') + "z";
  const std::vector<std::string> all = t.gather_strings(mine, "strings");
  require(static_cast<int>(all.size()) == t.world_size(), "one string per rank");
  for (int p = 0; p < t.world_size(); ++p) {
    const std::string expected = p == 0 ? "" : std::string(static_cast<std::size_t>(p) * 1000, 'a') + "z";
    require(all[p] == expected, "wrong string of rank " + std::to_string(p));
  }
}

/// On one host all ranks see the same clock.
inline void barriers_wait_for_all(Transport& t) {
  std::mt19937 random(static_cast<unsigned>(t.rank()));
  const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
  const auto latest_of = [&](std::int64_t mine) {
    const std::vector<std::int64_t> own{mine}, eight(static_cast<std::size_t>(t.world_size()), 8);
    std::vector<std::int64_t> all(eight.size());
    t.all_gather_small(bytes_of(own), writable_bytes_of(all), eight, "when they came").wait();
    return *std::max_element(all.begin(), all.end());
  };
  for (int round = 0; round < 10; ++round) {
    if (round % t.world_size() == t.rank())
      std::this_thread::sleep_for(std::chrono::microseconds(300 + random() % 500));
    const std::int64_t came = now();
    t.barrier("all have come");
    const std::int64_t left = now();
    require(left >= latest_of(came), "a rank left a barrier before all had come");
  }
}

inline void many_operations_may_be_in_flight(Transport& t) {
  constexpr int count = 100;
  const std::vector<std::int64_t> bounds = byte_bounds(std::vector<std::int64_t>(t.world_size(), 33));
  const std::int64_t slot = (bounds.back() + 63) / 64 * 64;
  const SymmetricBuffer gradients = t.allocate(count * slot);
  const SymmetricBuffer params = t.allocate(count * slot);
  std::vector<std::vector<float>> results(count, std::vector<float>(33, -1));
  std::vector<Ticket> tickets;
  for (int k = 0; k < count; ++k) {
    fill(gradients, k * slot, bounds.back() / 4, root_rank(t), k);
    reinterpret_cast<float*>(params.data() + k * slot + bounds[t.rank()])[0] = static_cast<float>(100 * t.rank() + k);
    tickets.push_back(
        t.reduce_scatter(gradients, k * slot, bounds, SummingReducer(results[k], bounds[t.rank()]), "one"));
    tickets.push_back(t.all_gather(params, k * slot, bounds, "two"));
  }
  std::shuffle(tickets.begin(), tickets.end(), std::mt19937(static_cast<unsigned>(t.rank())));
  for (const Ticket& ticket : tickets) ticket.wait();
  for (int k = 0; k < count; ++k) {
    require_sums(results[k], bounds[t.rank()] / 4, t, k);
    for (int p = 0; p < t.world_size(); ++p) {
      require(reinterpret_cast<float*>(params.data() + k * slot + bounds[p])[0] == static_cast<float>(100 * p + k),
              "gathered value");
    }
  }
  for (const Ticket& ticket : tickets) {
    require(ticket.done(), "a ticket that was waited for is done");
    require(ticket.busy_ns() >= 0, "busy time");
    ticket.wait();
  }
  Ticket().wait();
  require(Ticket().done(), "an empty ticket is done");
}

/// One group's part of a random program.
struct RandomGroup {
  std::unique_ptr<Transport> owned;
  Transport* transport = nullptr;
  SymmetricBuffer buffer;
};

/// All ranks run the same random list of collectives on the world and on two splits of it, at their own pace.
inline void random_programs_run_to_their_end(Transport& t, int columns, unsigned seed) {
  const int p = t.world_size();
  std::vector<int> row, column;
  for (int r = 0; r < p; ++r) {
    if (r / columns == t.rank() / columns) row.push_back(r);
    if (r % columns == t.rank() % columns) column.push_back(r);
  }
  std::vector<RandomGroup> groups(3);
  groups[0].transport = &t;
  groups[1].owned = t.split(row);
  groups[2].owned = t.split(column);
  for (RandomGroup& group : groups) {
    if (group.owned) group.transport = group.owned.get();
    group.buffer = group.transport->allocate(1 << 18);
  }
  std::mt19937 shared(seed);
  std::mt19937 own(seed * 100 + static_cast<unsigned>(t.rank()));
  for (int step = 0; step < 60; ++step) {
    const int which = static_cast<int>(shared() % 3);
    const int kind = static_cast<int>(shared() % 4);
    RandomGroup& group = groups[which];
    Transport& g = *group.transport;
    const unsigned chunk_seed = static_cast<unsigned>(shared());
    if (own() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 500));
    std::mt19937 chunks(chunk_seed);
    std::vector<std::int64_t> floats;
    for (int r = 0; r < g.world_size(); ++r) floats.push_back(chunks() % 4 == 0 ? 0 : chunks() % 3000);
    const std::vector<std::int64_t> bounds = byte_bounds(floats);
    const std::int64_t begin = bounds[g.rank()] / 4;
    auto* values = reinterpret_cast<float*>(group.buffer.data());
    if (kind == 0) {
      fill(group.buffer, 0, bounds.back() / 4, root_rank(g), step);
      std::vector<float> result(static_cast<std::size_t>(floats[g.rank()]), -1);
      g.reduce_scatter(group.buffer, 0, bounds, SummingReducer(result, bounds[g.rank()]), "random").wait();
      require_sums(result, begin, g, step);
    } else if (kind == 1) {
      for (std::int64_t i = 0; i < floats[g.rank()]; ++i) values[begin + i] = value_of(2, begin + i, step);
      g.all_gather(group.buffer, 0, bounds, "random").wait();
      for (std::int64_t i = 0; i < bounds.back() / 4; ++i)
        if (values[i] != value_of(2, i, step)) throw std::logic_error("random gather");
    } else if (kind == 2) {
      // Rank r sends floats[r] floats to its successor only.
      const int next = (g.rank() + 1) % g.world_size();
      const int previous = (g.rank() + g.world_size() - 1) % g.world_size();
      const std::vector<float> send(static_cast<std::size_t>(floats[g.rank()]), static_cast<float>(g.rank()));
      std::vector<float> receive(static_cast<std::size_t>(floats[previous]), -1);
      std::vector<std::int64_t> send_bytes(g.world_size(), 0), receive_bytes(g.world_size(), 0);
      send_bytes[next] = 4 * floats[g.rank()];
      receive_bytes[previous] = 4 * floats[previous];
      g.exchange(bytes_of(send), send_bytes, writable_bytes_of(receive), receive_bytes, "random").wait();
      require(std::all_of(receive.begin(), receive.end(), [&](float v) { return v == static_cast<float>(previous); }),
              "random exchange");
    } else {
      std::vector<int> sent{step * 10 + g.rank()}, all(static_cast<std::size_t>(g.world_size()));
      const std::vector<std::int64_t> four(g.world_size(), 4);
      g.all_gather_small(bytes_of(sent), writable_bytes_of(all), four, "random").wait();
      for (int r = 0; r < g.world_size(); ++r) require(all[r] == step * 10 + r, "random small gather");
    }
  }
}

inline void random_programs_on_lines_and_meshes(Transport& t) {
  for (int columns = 1; columns <= t.world_size(); ++columns) {
    if (t.world_size() % columns == 0)
      random_programs_run_to_their_end(t, columns, 7u + static_cast<unsigned>(columns));
  }
}

inline void groups_can_be_split_again(Transport& t) {
  std::vector<int> half;
  const int middle = (t.world_size() + 1) / 2;
  for (int r = 0; r < t.world_size(); ++r) {
    if ((r < middle) == (t.rank() < middle)) half.push_back(r);
  }
  const std::unique_ptr<Transport> group = t.split(half);
  require(group->world_size() == static_cast<int>(half.size()), "size of the half");
  require(half[group->rank()] == t.rank(), "rank in the half");
  const int alone[] = {group->rank()};
  const std::unique_ptr<Transport> single = group->split(alone);
  require(single->world_size() == 1 && single->rank() == 0, "a group of one");
  single->barrier("alone");
  const SymmetricBuffer buffer = single->allocate(400);
  const std::vector<std::int64_t> bounds{0, 400};
  fill(buffer, 0, 100, root_rank(*single), 3);
  std::vector<float> result(100, -1);
  single->reduce_scatter(buffer, 0, bounds, SummingReducer(result, 0), "alone").wait();
  require_sums(result, 0, *single, 3);
  single->all_gather(buffer, 0, bounds, "alone").wait();
  group->barrier("half");
  t.barrier("whole");
}

struct ContractCase {
  const char* name;
  void (*body)(Transport&);
};

inline constexpr ContractCase contract_cases[] = {
    {"ReduceScatterSumsEveryShapeOfChunks", reduce_scatter_sums_every_shape_of_chunks},
    {"AllGatherFillsEveryShapeOfChunks", all_gather_fills_every_shape_of_chunks},
    {"AllocatedMemoryIsZeroAndAligned", allocated_memory_is_zero_and_aligned},
    {"ExchangeDeliversSparsePatterns", exchange_delivers_sparse_patterns},
    {"AllGatherSmallJoinsRaggedParts", all_gather_small_joins_ragged_parts},
    {"BroadcastWorksFromEveryRoot", broadcast_works_from_every_root},
    {"StringsAreGatheredByRank", strings_are_gathered_by_rank},
    {"BarriersWaitForAll", barriers_wait_for_all},
    {"ManyOperationsMayBeInFlight", many_operations_may_be_in_flight},
    {"RandomProgramsOnLinesAndMeshes", random_programs_on_lines_and_meshes},
    {"GroupsCanBeSplitAgain", groups_can_be_split_again},
    {"ReduceScatterSumsChunksOfManyTiles", reduce_scatter_sums_chunks_of_many_tiles},
    {"ExchangesOfTheLengthsOfRingsArrive", exchanges_of_the_lengths_of_rings_arrive},
    {"CollectivesTouchTheirBytesOnly", collectives_touch_their_bytes_only},
    {"SmallCollectivesWorkInPlace", small_collectives_work_in_place},
    {"OwnChunksMayBeOverwrittenOnceDone", own_chunks_may_be_overwritten_once_done},
    {"TheRingOfTicketsWrapsAround", the_ring_of_tickets_wraps_around},
    {"QueuedCollectivesHoldTheirMemory", queued_collectives_hold_their_memory},
    {"SeveralGroupsWorkInFlight", several_groups_work_in_flight},
    {"UnevenSplitsAreFollowedByCommonOnes", uneven_splits_are_followed_by_common_ones},
    {"GroupsLetGoHarmNothing", groups_let_go_harm_nothing},
    {"CountersHoldWhatWasSent", counters_hold_what_was_sent},
    {"WrongChunksAreRefused", wrong_chunks_are_refused},
    {"WrongCountsAreRefused", wrong_counts_are_refused},
    {"WrongGroupsAndSizesAreRefused", wrong_groups_and_sizes_are_refused},
};

}  // namespace regatta::testing
