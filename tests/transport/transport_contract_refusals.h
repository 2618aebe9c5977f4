#pragma once
// Bodies of the transports' contract (transport_contract.h) about wrong calls: every one of every collective is refused
// with a sentence that begins with the collective and its label, nothing is counted, and the transport works on.

#include <limits>

#include "tests/transport/transport_checks.h"

namespace regatta::testing {

/// Like require_error(invalid_argument), for a collective's own sentence.
template <class Body>
void require_refused(const std::string& kind, const std::string& part, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    const std::string sentence = error.what();
    require(error.code() == Code::invalid_argument, "code of: " + sentence);
    require(sentence.rfind(kind + " 'bucket 3 of step 7': ", 0) == 0,
            "expected " + kind + " and its label: " + sentence);
    require(sentence.find(part) != std::string::npos, "expected '" + part + "' in: " + sentence);
    return;
  }
  throw std::logic_error(kind + " was not refused where '" + part + "' was expected");
}

inline constexpr std::string_view refused_label = "bucket 3 of step 7";

inline void wrong_chunks_are_refused(Transport& t) {
  const int n = t.world_size();
  std::vector<int> everyone(static_cast<std::size_t>(n));
  std::iota(everyone.begin(), everyone.end(), 0);
  const std::unique_ptr<Transport> same = t.split(everyone);
  const SymmetricBuffer buffer = t.allocate(64 * n + 128), of_same = same->allocate(64 * n + 128);
  std::vector<std::int64_t> good{0};
  for (int r = 0; r < n; ++r) good.push_back(64 * (r + 1));
  const std::int64_t calls_before = t.counters().reduce_scatter.calls + t.counters().all_gather.calls;
  for (const std::string kind : {"reduce_scatter", "all_gather"}) {
    const auto call = [&](const SymmetricBuffer& memory, std::int64_t offset, const std::vector<std::int64_t>& bounds) {
      if (kind == "all_gather") return t.all_gather(memory, offset, bounds, refused_label);
      return t.reduce_scatter(
          memory, offset, bounds, [](auto, auto, auto) {}, refused_label);
    };
    const auto refuse = [&](const std::string& part, const SymmetricBuffer& memory, std::int64_t offset,
                            const std::vector<std::int64_t>& bounds) {
      require_refused(kind, part, [&] { call(memory, offset, bounds); });
    };
    refuse("the buffer is empty", {}, 0, good);
    refuse("another group", of_same, 0, good);
    const std::string expected = " bounds were given, " + std::to_string(n + 1) + " were expected";
    std::vector<std::int64_t> bounds;
    refuse("0" + expected, buffer, 0, bounds);
    bounds.assign(good.begin(), good.end() - 1);
    refuse(std::to_string(n) + expected, buffer, 0, bounds);
    bounds = good;
    bounds.push_back(bounds.back());
    refuse(std::to_string(n + 2) + expected, buffer, 0, bounds);
    refuse("ascending and not negative", buffer, -1, good);
    bounds = good;
    bounds[0] = -1;
    refuse("ascending and not negative", buffer, 64, bounds);
    for (int r = 0; r < n; ++r) {
      bounds = good;
      bounds[r] = bounds[r + 1] + 1;
      refuse("ascending and not negative", buffer, 0, bounds);
    }
    const std::string has = "the buffer has " + std::to_string(buffer.bytes());
    bounds = good;
    bounds.back() = buffer.bytes() + 1;
    refuse("bytes up to " + std::to_string(buffer.bytes() + 1) + " were asked for, " + has, buffer, 0, bounds);
    refuse("bytes up to " + std::to_string(64 * n + 129) + " were asked for, " + has, buffer, 129, good);
    refuse(has, buffer, std::int64_t{1} << 60, good);
    // The last byte may be used.
    bounds.back() = buffer.bytes();
    call(buffer, 0, bounds).wait();
    call(buffer, 128, good).wait();
  }
  require_refused("reduce_scatter", "there is no reducer",
                  [&] { t.reduce_scatter(buffer, 0, good, nullptr, refused_label); });
  require(t.counters().reduce_scatter.calls + t.counters().all_gather.calls == calls_before + 4,
          "refused calls are not counted");
}

inline void wrong_counts_are_refused(Transport& t) {
  const int n = t.world_size();
  const auto size = static_cast<std::size_t>(n);
  std::vector<std::byte> memory(8 * size + 2), other(8 * size + 2);
  const auto of = [](std::vector<std::byte>& m, std::size_t bytes) { return std::span(m).first(bytes); };
  const std::vector<std::int64_t> good(size, 8);
  // Each wrong list of counts, how many bytes it is given with, and what is said of it.
  struct Wrong {
    std::vector<std::int64_t> counts;
    std::size_t bytes;
    std::string part;
  };
  const auto wrong_counts = [&](const std::string& what) {
    std::vector<Wrong> wrong;
    const std::string expected = " counts of bytes to " + what + " were given, " + std::to_string(n) + " were expected";
    wrong.push_back({std::vector<std::int64_t>(size - 1, 8), 8 * (size - 1), std::to_string(n - 1) + expected});
    std::vector<std::int64_t> counts = good;
    counts.push_back(0);
    wrong.push_back({counts, 8 * size, std::to_string(n + 1) + expected});
    for (int p = 0; p < n; ++p) {
      counts = good;
      counts[p] = -8;
      if (n > 1) counts[(p + 1) % n] += 16;  // what they add up to is right
      wrong.push_back({counts, 8 * size, "a count of bytes to " + what + " is negative"});
    }
    const std::string sum =
        "the counts of bytes to " + what + " add up to " + std::to_string(8 * n) + ", the memory has ";
    for (const std::size_t bytes : {8 * size - 1, 8 * size + 1})
      wrong.push_back({good, bytes, sum + std::to_string(bytes)});
    return wrong;
  };
  for (const Wrong& w : wrong_counts("send"))
    require_refused("exchange", w.part,
                    [&] { t.exchange(of(memory, w.bytes), w.counts, of(other, 8 * size), good, refused_label); });
  for (const Wrong& w : wrong_counts("receive"))
    require_refused("exchange", w.part,
                    [&] { t.exchange(of(memory, 8 * size), good, of(other, w.bytes), w.counts, refused_label); });
  for (const Wrong& w : wrong_counts("gather"))
    require_refused("all_gather_small", w.part,
                    [&] { t.all_gather_small(of(memory, 8), of(other, w.bytes), w.counts, refused_label); });
  for (const int more : {-1, 1}) {
    std::vector<std::int64_t> own = good;
    own[t.rank()] += more;
    const auto bytes = 8 * size + static_cast<std::size_t>(more);
    require_refused("exchange", "sends itself 8 bytes but expects " + std::to_string(8 + more),
                    [&] { t.exchange(of(memory, 8 * size), good, of(other, bytes), own, refused_label); });
    require_refused("all_gather_small", "gives " + std::to_string(8 + more) + " bytes but announces 8", [&] {
      t.all_gather_small(of(memory, static_cast<std::size_t>(8 + more)), of(other, 8 * size), good, refused_label);
    });
  }
  for (const int root : {-1, n, n + 1, std::numeric_limits<int>::min(), std::numeric_limits<int>::max()})
    require_refused("broadcast", "root " + std::to_string(root) + " is not among the " + std::to_string(n) + " ranks",
                    [&] { t.broadcast(memory, root, refused_label); });
  t.exchange(of(memory, 8 * size), good, of(other, 8 * size), good, "still works").wait();
  t.all_gather_small(of(memory, 8), of(other, 8 * size), good, "still works").wait();
}

inline void wrong_groups_and_sizes_are_refused(Transport& t) {
  const int n = t.world_size(), rank = t.rank();
  const auto refuse = [&](const std::vector<int>& ranks) {
    std::string text;
    for (const int r : ranks) text += (text.empty() ? "" : ",") + std::to_string(r);
    require_error(Code::invalid_argument, "split: the ranks " + text + " must ascend", [&] { t.split(ranks); });
  };
  refuse({});
  refuse({rank, rank});
  refuse({rank, n});
  refuse({-1, rank});
  refuse({n});
  if (n > 1) {
    refuse({std::max(rank, (rank + 1) % n), std::min(rank, (rank + 1) % n)});
    refuse({(rank + 1) % n});
  }
  require_error(Code::invalid_argument, "allocate: -1 bytes were asked for", [&] { t.allocate(-1); });
  std::vector<int> everyone(static_cast<std::size_t>(n));
  std::iota(everyone.begin(), everyone.end(), 0);
  if (n > 1) {
    // Found by talking to the others: all ranks say the same.
    const std::string last = std::to_string(t.root_ranks()[n - 1]), first = std::to_string(t.root_ranks()[0]);
    require_error(Code::invalid_argument, "allocate: rank " + last + " asks for 65 bytes, rank " + first + " for 64",
                  [&] { t.allocate(rank + 1 == n ? 65 : 64); });
    const std::vector<int> alone{rank};
    std::string all = "0";
    for (int r = 1; r < n; ++r) all += "," + std::to_string(r);
    require_error(
        Code::invalid_argument,
        "split: rank " + first + " names the group 0, rank " + std::to_string(t.root_ranks()[1]) + " names " + all,
        [&] { t.split(rank == 0 ? alone : everyone); });
  }
  if (t.device() == nullptr)
    require_error(Code::device, n > 1 ? "rank 0: cannot allocate " : "cannot allocate ",
                  [&] { t.allocate(std::int64_t{1} << 60); });
  const SymmetricBuffer buffer = t.split(everyone)->allocate(1);
  require(buffer.bytes() >= 1, "groups and memory can still be had");
  t.barrier("still works");
}

}  // namespace regatta::testing
