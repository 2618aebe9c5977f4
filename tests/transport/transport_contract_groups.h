#pragma once
// Bodies of the transports' contract (transport_contract.h) about groups: several at once, uneven splits, groups that
// are let go with work in flight; and what each group counts.

#include <array>
#include <memory>

#include "tests/transport/transport_checks.h"

namespace regatta::testing {

/// A collective under way, with all that it borrows, and how to tell whether it did what it should.
struct Flight {
  std::vector<std::int64_t> bounds, counts;
  std::vector<std::byte> send, receive;
  std::vector<float> sums;
  Ticket ticket;
  std::function<void()> check;
};

inline std::byte flight_byte(int from, int to, int step, std::size_t i) {
  return static_cast<std::byte>((static_cast<std::size_t>(from * 37 + to * 11 + step * 5) + i) & 0xff);
}

/// All ranks call the same random list of collectives of four groups, and wait for them late and in an order of their
/// own.
inline void several_groups_work_in_flight(Transport& t) {
  const int n = t.world_size();
  int columns = 2;
  while (columns < n && n % columns != 0) ++columns;
  std::vector<int> everyone(static_cast<std::size_t>(n)), row, column;
  std::iota(everyone.begin(), everyone.end(), 0);
  for (const int r : everyone) {
    if (r / columns == t.rank() / columns) row.push_back(r);
    if (r % columns == t.rank() % columns) column.push_back(r);
  }
  const std::unique_ptr<Transport> owned[] = {t.split(everyone), t.split(row), t.split(column)};
  Transport* const groups[] = {&t, owned[0].get(), owned[1].get(), owned[2].get()};
  constexpr int steps = 60;
  constexpr std::int64_t slot = 1 << 15;
  SymmetricBuffer buffers[4];
  for (int g = 0; g < 4; ++g) buffers[g] = groups[g]->allocate(steps * slot);
  std::mt19937 shared(4711), own(static_cast<unsigned>(17 + t.rank()));
  std::vector<std::unique_ptr<Flight>> flights;
  const auto land = [&](std::size_t which) {
    std::swap(flights[which], flights.back());
    flights.back()->ticket.wait();
    flights.back()->check();
    flights.pop_back();
  };
  for (int step = 0; step < steps; ++step) {
    const std::size_t which = shared() % 4;
    const auto kind = shared() % 5;
    Transport& g = *groups[which];
    const SymmetricBuffer& buffer = buffers[which];
    const std::int64_t offset = step * slot;
    std::mt19937 sizes(static_cast<unsigned>(shared()));
    flights.push_back(std::make_unique<Flight>());
    Flight& f = *flights.back();
    std::vector<std::int64_t> chunk;
    for (int r = 0; r < g.world_size(); ++r)
      chunk.push_back(sizes() % 4 == 0 ? 0 : static_cast<std::int64_t>(sizes() % 800));
    f.bounds = byte_bounds(chunk);
    auto* const values = reinterpret_cast<float*>(buffer.data() + offset);
    const std::int64_t first = f.bounds[g.rank()] / 4;
    if (kind == 0) {
      fill(buffer, offset, f.bounds.back() / 4, root_rank(g), step);
      f.sums.assign(static_cast<std::size_t>(chunk[g.rank()]), -1);
      f.ticket = g.reduce_scatter(buffer, offset, f.bounds, SummingReducer(f.sums, f.bounds[g.rank()]), "in flight");
      f.check = [&f, &g, first, step] { require_sums(f.sums, first, g, step); };
    } else if (kind == 1) {
      for (std::int64_t i = 0; i < chunk[g.rank()]; ++i) values[first + i] = value_of(2, first + i, step);
      f.ticket = g.all_gather(buffer, offset, f.bounds, "in flight");
      f.check = [&f, values, step] {
        for (std::int64_t i = 0; i < f.bounds.back() / 4; ++i)
          require(values[i] == value_of(2, i, step), "gathered in flight");
      };
    } else if (kind == 2) {
      const auto count = [&](int from, int to) {
        return (from + 2 * to + step) % 3 == 0 ? 0 : chunk[from] + (step % 16 == 5 ? 70'000 : to);
      };
      std::vector<std::int64_t> send_bytes;
      for (int p = 0; p < g.world_size(); ++p) {
        send_bytes.push_back(count(g.rank(), p));
        f.counts.push_back(count(p, g.rank()));
        for (std::int64_t i = 0; i < send_bytes.back(); ++i)
          f.send.push_back(flight_byte(g.root_ranks()[g.rank()], p, step, static_cast<std::size_t>(i)));
      }
      f.receive.resize(static_cast<std::size_t>(std::accumulate(f.counts.begin(), f.counts.end(), std::int64_t{0})));
      f.bounds = send_bytes;
      f.ticket = g.exchange(f.send, f.bounds, f.receive, f.counts, "in flight");
      f.check = [&f, &g, step] {
        std::size_t at = 0;
        for (int p = 0; p < g.world_size(); ++p)
          for (std::size_t i = 0; i < static_cast<std::size_t>(f.counts[p]); ++i, ++at)
            require(f.receive[at] == flight_byte(g.root_ranks()[p], g.rank(), step, i), "exchanged in flight");
      };
    } else {
      const int root = static_cast<int>(sizes() % static_cast<unsigned>(g.world_size()));
      const std::size_t bytes = kind == 3 ? sizes() % 3000 : 8;
      f.send.assign(bytes, flight_byte(root_rank(g), 0, step, 0));
      if (kind == 3) {
        f.receive = f.send;
        f.ticket = g.broadcast(f.receive, root, "in flight");
        f.check = [&f, &g, root, step] {
          for (const std::byte b : f.receive)
            require(b == flight_byte(g.root_ranks()[root], 0, step, 0), "broadcast in flight");
        };
      } else {
        f.counts.assign(static_cast<std::size_t>(g.world_size()), 8);
        f.receive.resize(8 * f.counts.size());
        f.ticket = g.all_gather_small(f.send, f.receive, f.counts, "in flight");
        f.check = [&f, &g, step] {
          for (int p = 0; p < g.world_size(); ++p)
            require(f.receive[static_cast<std::size_t>(8 * p)] == flight_byte(g.root_ranks()[p], 0, step, 0),
                    "small parts in flight");
        };
      }
    }
    while (flights.size() > own() % 12) land(own() % flights.size());
  }
  while (!flights.empty()) land(flights.size() - 1);
}

inline void require_group_works(Transport& g, int salt) {
  std::vector<int> mine{1000 * salt + root_rank(g)}, all(static_cast<std::size_t>(g.world_size()));
  const std::vector<std::int64_t> four(all.size(), 4);
  g.all_gather_small(bytes_of(mine), writable_bytes_of(all), four, "who is here").wait();
  for (int p = 0; p < g.world_size(); ++p)
    require(all[p] == 1000 * salt + g.root_ranks()[p], "member " + std::to_string(p) + " of a group");
  const std::vector<std::int64_t> bounds = byte_bounds(std::vector<std::int64_t>(all.size(), 9));
  const SymmetricBuffer buffer = g.allocate(bounds.back());
  fill(buffer, 0, bounds.back() / 4, root_rank(g), salt);
  std::vector<float> sums(9, -1);
  g.reduce_scatter(buffer, 0, bounds, SummingReducer(sums, bounds[g.rank()]), "a group's sums").wait();
  require_sums(sums, bounds[g.rank()] / 4, g, salt);
}

/// The lower half splits itself more often than the upper half; groups of members of both still agree.
inline void uneven_splits_are_followed_by_common_ones(Transport& t) {
  std::vector<int> half, parity;
  const int middle = (t.world_size() + 1) / 2;
  for (int r = 0; r < t.world_size(); ++r) {
    if ((r < middle) == (t.rank() < middle)) half.push_back(r);
    if (r % 2 == t.rank() % 2) parity.push_back(r);
  }
  const std::unique_ptr<Transport> own_half = t.split(half);
  std::vector<std::unique_ptr<Transport>> more;
  for (int k = 0; k < (t.rank() < middle ? 3 : 1); ++k) {
    std::vector<int> members(half.size());
    std::iota(members.begin(), members.end(), 0);
    more.push_back(own_half->split(members));
    for (int p = 0; p < more.back()->world_size(); ++p)
      require(more.back()->root_ranks()[p] == half[p], "ranks keep the numbers they have in the root");
  }
  const std::unique_ptr<Transport> both = t.split(parity);
  require(both->root_ranks()[both->rank()] == t.rank(), "this rank's number in the root");
  require_group_works(*both, 1);
  for (const auto& group : more) require_group_works(*group, 2);
  require_group_works(*own_half, 3);
  require_group_works(t, 4);
}

/// By an exception past an idle one, and with work in flight, which is done then.
inline void groups_let_go_harm_nothing(Transport& t) {
  std::vector<int> everyone(static_cast<std::size_t>(t.world_size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  try {
    const std::unique_ptr<Transport> group = t.split(everyone);
    group->barrier("before");
    throw std::runtime_error("something of the caller's");
  } catch (const std::runtime_error&) {
  }
  std::unique_ptr<Transport> group = t.split(everyone);
  std::vector<int> values(40, t.rank() == 0 ? 5 : -1);
  for (int& value : values) group->broadcast(std::as_writable_bytes(std::span(&value, 1)), 0, "not waited for");
  group.reset();
  require(std::all_of(values.begin(), values.end(), [](int v) { return v == 5; }), "a group ends what was called");

  const std::unique_ptr<Transport> alone = t.split(std::vector<int>{t.rank()});
  auto memory = std::make_shared<std::array<float, 64>>();
  const std::weak_ptr<void> held = memory;
  SymmetricBuffer adopted = alone->adopt(reinterpret_cast<std::byte*>(memory->data()), 256, memory);
  memory.reset();
  require(!held.expired() && adopted.bytes() == 256, "adopted memory is held");
  fill(adopted, 0, 64, root_rank(*alone), 5);
  const std::vector<std::int64_t> bounds{32, 160};
  std::vector<float> sums(32, -1);
  alone->reduce_scatter(adopted, 64, bounds, SummingReducer(sums, 32), "of one").wait();
  for (int i = 0; i < 32; ++i)
    require(sums[i] == value_of(root_rank(*alone), 24 + i, 5), "a group of one reduces what lies at offset and bound");
  require_error(Code::invalid_argument, "all_gather 'too far': ", [&] {
    const std::vector<std::int64_t> all{0, 257};
    alone->all_gather(adopted, 0, all, "too far");
  });
  adopted = {};
  require(held.expired(), "adopted memory is let go with its handle");
  if (t.world_size() > 1)
    require_error(Code::invalid_argument, "adopt: a group of " + std::to_string(t.world_size()) + " ranks",
                  [&] { t.adopt(nullptr, 256, nullptr); });
  t.barrier("still works");
}

inline bool same(const TransportCounters::Kind& a, const TransportCounters::Kind& b) {
  return a.calls == b.calls && a.bytes == b.bytes && a.busy_ns == b.busy_ns;
}

/// Another number of calls and of bytes for each kind, by rank; what tickets say of their time adds up to the kind's.
inline void counters_hold_what_was_sent(Transport& t) {
  const int n = t.world_size();
  const std::int64_t others = n - 1;
  std::vector<int> everyone(static_cast<std::size_t>(n));
  std::iota(everyone.begin(), everyone.end(), 0);
  const std::unique_ptr<Transport> copy = t.split(everyone);
  std::vector<std::int64_t> bounds{64}, send_bytes, receive_bytes, parts;
  for (int r = 0; r < n; ++r) {
    bounds.push_back(bounds.back() + 64 * (r + 1));
    send_bytes.push_back(10 + 3 * t.rank() + r);
    receive_bytes.push_back(10 + 3 * r + t.rank());
    parts.push_back(7 + r);
  }
  const auto sum = [](const std::vector<std::int64_t>& v) {
    return std::accumulate(v.begin(), v.end(), std::int64_t{0});
  };
  const SymmetricBuffer buffer = t.allocate(bounds.back());
  const SymmetricBuffer of_copy = copy->allocate(bounds.back());
  std::vector<std::byte> send(static_cast<std::size_t>(sum(send_bytes))), mine(static_cast<std::size_t>(7 + t.rank()));
  std::vector<std::byte> receive(static_cast<std::size_t>(sum(receive_bytes))),
      all(static_cast<std::size_t>(sum(parts)));
  const TransportCounters before = t.counters();
  std::int64_t busy[5] = {};
  const auto wait = [&](int kind, const Ticket& ticket) {
    ticket.wait();
    busy[kind] += ticket.busy_ns();
  };
  wait(0, t.reduce_scatter(
              buffer, 0, bounds, [](auto, auto, auto) {}, "counted"));
  for (int k = 0; k < 2; ++k) wait(1, t.all_gather(buffer, 0, bounds, "counted"));
  for (int k = 0; k < 3; ++k) wait(2, t.exchange(send, send_bytes, receive, receive_bytes, "counted"));
  for (int k = 0; k < 4; ++k) wait(3, t.all_gather_small(mine, all, parts, "counted"));
  std::int64_t from_here = 0;
  for (int k = 0; k < 5; ++k) {
    from_here += k % n == t.rank() ? 9 * others : 0;
    wait(4, t.broadcast(std::span(receive).first(9), k % n, "counted"));
  }
  const TransportCounters after = t.counters();
  const std::int64_t own = 64 * (t.rank() + 1);
  const std::int64_t expected[] = {bounds.back() - bounds.front() - own, 2 * own * others,
                                   3 * (sum(send_bytes) - send_bytes[t.rank()]), 4 * (7 + t.rank()) * others,
                                   from_here};
  const auto kinds = [](const TransportCounters& c) {
    return std::array{c.reduce_scatter, c.all_gather, c.exchange, c.all_gather_small, c.broadcast};
  };
  std::int64_t total = 0;
  for (int k = 0; k < 5; ++k) {
    const TransportCounters::Kind was = kinds(before)[k], is = kinds(after)[k];
    const std::string what = "kind " + std::to_string(k) + ": ";
    require(is.calls - was.calls == k + 1, what + "calls " + std::to_string(is.calls - was.calls));
    require(is.bytes - was.bytes == expected[k],
            what + "bytes " + std::to_string(is.bytes - was.bytes) + ", expected " + std::to_string(expected[k]));
    require(is.busy_ns - was.busy_ns == busy[k], what + "busy time");
    require(n == 1 || busy[k] > 0, what + "no time was spent in it");
    total += expected[k];
  }
  require(after.total_bytes() - before.total_bytes() == total, "bytes in all");

  // Set-up calls, other groups' calls and refused calls are not counted.
  copy->all_gather(of_copy, 0, bounds, "another group's").wait();
  require(copy->counters().all_gather.calls == 1 && copy->counters().all_gather.bytes == own * others &&
              copy->counters().total_bytes() == own * others,
          "a group counts its own");
  t.barrier("not counted");
  t.gather_strings("not counted", "not counted");
  t.allocate(64);
  t.split(everyone);
  require_error(Code::invalid_argument, "root", [&] { t.broadcast(receive, n, "not counted"); });
  for (int k = 0; k < 5; ++k)
    require(same(kinds(t.counters())[k], kinds(after)[k]), "kind " + std::to_string(k) + " has counted too much");
}

}  // namespace regatta::testing
