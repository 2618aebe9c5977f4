#include "cli/doctor/self_test.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <thread>
#include <vector>

#include "runtime/error.h"
#include "runtime/transport/local/local_transport.h"
#include "runtime/transport/transport.h"

namespace regatta::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

[[noreturn]] void wrong(const Transport& transport, const std::string& what) {
  throw Error(Code::transport, "the self-test of transport " + std::string(transport.name()) +
                                   " got a wrong value from " + what + " on rank " + std::to_string(transport.rank()));
}

/// Equal chunks of `bytes` in all; the last takes what is left.
std::vector<std::int64_t> equal_chunks(std::int64_t bytes, int ranks) {
  std::vector<std::int64_t> bounds;
  for (int r = 0; r < ranks; ++r) bounds.push_back(bytes / ranks / 64 * 64 * r);
  bounds.push_back(bytes);
  return bounds;
}

void sum_and_gather(Transport& transport) {
  const int ranks = transport.world_size(), rank = transport.rank();
  constexpr std::int64_t bytes = 16 << 20;
  const SymmetricBuffer buffer = transport.allocate(bytes);
  const std::span<std::int32_t> words(reinterpret_cast<std::int32_t*>(buffer.data()), bytes / sizeof(std::int32_t));
  const std::vector<std::int64_t> bounds = equal_chunks(bytes, ranks);
  const auto mine_begin = static_cast<std::size_t>(bounds[rank]);

  for (std::size_t i = 0; i < words.size(); ++i) words[i] = static_cast<std::int32_t>(i % 1000) + rank;
  std::vector<std::int32_t> sums(static_cast<std::size_t>(bounds[rank + 1] - bounds[rank]) / sizeof(std::int32_t));
  const Reducer add = [&](std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end) {
    const std::size_t first = (static_cast<std::size_t>(begin) - mine_begin) / sizeof(std::int32_t);
    const std::size_t count = static_cast<std::size_t>(end - begin) / sizeof(std::int32_t);
    std::fill_n(sums.begin() + static_cast<std::ptrdiff_t>(first), count, 0);
    for (const std::byte* piece : pieces) {
      const auto* values = reinterpret_cast<const std::int32_t*>(piece);
      for (std::size_t i = 0; i < count; ++i) sums[first + i] += values[i];
    }
  };
  transport.reduce_scatter(buffer, 0, bounds, add, "self-test sum").wait();
  const int rank_sum = ranks * (ranks - 1) / 2;
  const std::size_t mine_first = mine_begin / sizeof(std::int32_t);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    if (sums[i] != static_cast<std::int32_t>((mine_first + i) % 1000) * ranks + rank_sum)
      wrong(transport, "reduce_scatter");
  }

  std::copy(sums.begin(), sums.end(), words.begin() + static_cast<std::ptrdiff_t>(mine_first));
  transport.all_gather(buffer, 0, bounds, "self-test gather").wait();
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] != static_cast<std::int32_t>(i % 1000) * ranks + rank_sum) wrong(transport, "all_gather");
  }
}

void small_messages(Transport& transport) {
  const int ranks = transport.world_size(), rank = transport.rank();
  const auto count = static_cast<std::size_t>(ranks);
  // To rank p goes the number 100 * sender + p.
  std::vector<std::int32_t> send(count), received(count);
  for (int p = 0; p < ranks; ++p) send[p] = 100 * rank + p;
  const std::vector<std::int64_t> counts(count, sizeof(std::int32_t));
  transport
      .exchange(std::as_bytes(std::span(send)), counts, std::as_writable_bytes(std::span(received)), counts,
                "self-test exchange")
      .wait();
  for (int p = 0; p < ranks; ++p) {
    if (received[p] != 100 * p + rank) wrong(transport, "exchange");
  }
  std::int32_t word = rank == 0 ? 4711 : 0;
  transport.broadcast(std::as_writable_bytes(std::span(&word, 1)), 0, "self-test broadcast").wait();
  if (word != 4711) wrong(transport, "broadcast");
  const std::vector<std::string> names = transport.gather_strings("rank " + std::to_string(rank), "self-test names");
  for (int p = 0; p < ranks; ++p) {
    if (names[p] != "rank " + std::to_string(p)) wrong(transport, "gather_strings");
  }
}

double timed_reduce_scatter(Transport& transport, const std::function<void()>& got_on) {
  constexpr std::int64_t bytes = 16 << 20;
  const SymmetricBuffer buffer = transport.allocate(bytes);
  const std::vector<std::int64_t> bounds = equal_chunks(bytes, transport.world_size());
  const std::int64_t begin = bounds[transport.rank()];
  std::vector<float> sums(static_cast<std::size_t>(bounds[transport.rank() + 1] - begin) / sizeof(float));
  const Reducer add = [&](std::span<const std::byte* const> pieces, std::int64_t from, std::int64_t to) {
    float* out = sums.data() + (from - begin) / static_cast<std::int64_t>(sizeof(float));
    const auto count = (to - from) / static_cast<std::int64_t>(sizeof(float));
    for (std::size_t p = 0; p < pieces.size(); ++p) {
      const auto* values = reinterpret_cast<const float*>(pieces[p]);
      for (std::int64_t i = 0; i < count; ++i) out[i] = p == 0 ? values[i] : out[i] + values[i];
    }
  };
  double best = 0;
  for (int round = 0; round < 4; ++round) {
    transport.barrier("self-test start");
    const Clock::time_point start = Clock::now();
    transport.reduce_scatter(buffer, 0, bounds, add, "self-test speed").wait();
    best = std::max(best, 1e-9 * static_cast<double>(bytes) / seconds_since(start));
    got_on();
  }
  return best;
}

}  // namespace

double exercise(Transport& transport, const std::function<void()>& got_on) {
  sum_and_gather(transport);
  got_on();
  small_messages(transport);
  got_on();
  const double speed = timed_reduce_scatter(transport, got_on);
  transport.barrier("self-test end");
  return speed;
}

SelfTest test_local(int ranks, std::chrono::milliseconds deadline) {
  SelfTest result{.transport = "local", .ranks = ranks, .ran = true};
  const Clock::time_point start = Clock::now();
  try {
    auto transports = make_local_transports(ranks, TransportOptions{.deadline = deadline});
    result.start_seconds = seconds_since(start);
    std::vector<std::string> failures(static_cast<std::size_t>(ranks));
    std::vector<char> late(static_cast<std::size_t>(ranks), 0);
    {
      std::vector<std::jthread> threads;
      for (int rank = 0; rank < ranks; ++rank) {
        threads.emplace_back([&, rank] {
          try {
            const double speed = exercise(*transports[rank]);
            if (rank == 0) result.reduce_scatter_gb_per_s = speed;
          } catch (const std::exception& error) {
            const auto* const known = dynamic_cast<const Error*>(&error);
            late[rank] = known != nullptr && known->code() == Code::timeout ? 1 : 0;
            failures[rank] = error.what();
            transports[rank]->abort(error.what());
          }
        });
      }
    }
    for (const std::string& failure : failures) {
      if (result.detail.empty()) result.detail = failure;
    }
    result.late = std::find(late.begin(), late.end(), 1) != late.end();
  } catch (const std::exception& error) {
    result.detail = error.what();
  }
  result.passed = result.detail.empty();
  return result;
}

}  // namespace regatta::cli
