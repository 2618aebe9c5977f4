// Ranks as threads when something fails, and what can only be seen when a rank is held at a chosen place: deadlines and
// farewells in every collective, calls that do not belong together, collectives that are not done too early.

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

#include "runtime/transport/factory.h"
#include "runtime/transport/shared/board.h"
#include "tests/transport/transport_failures.h"
#include "tests/support/spmd.h"

namespace regatta::testing {
namespace {

TransportOptions with_deadline(std::chrono::milliseconds deadline) {
  TransportOptions options;
  options.deadline = deadline;
  return options;
}

class LocalFailure : public ::testing::TestWithParam<FailureCase> {};

TEST_P(LocalFailure, IsTold) {
  const bool waits = GetParam().deadline == short_deadline;
  for (const int ranks : waits ? std::vector{3} : std::vector{2, 3, 5}) {
    ThreadsMeet meeting(ranks);
    const auto body = [&](Transport& t) { meeting.run(t, GetParam().body); };
    EXPECT_NO_THROW(run_ranks(ranks, body, with_deadline(GetParam().deadline))) << "on " << ranks << " ranks";
  }
}

const auto name_of_case = [](const auto& info) { return std::string(info.param.name); };
INSTANTIATE_TEST_SUITE_P(Every, LocalFailure, ::testing::ValuesIn(failure_cases), name_of_case);
INSTANTIATE_TEST_SUITE_P(Host, LocalFailure, ::testing::ValuesIn(host_failure_cases), name_of_case);

/// The errors of the ranks that call collective `kind` of all `ranks`; the others, from `first_absent` on, behave as
/// `absent` says.
std::vector<std::string> errors_without(int ranks, int first_absent, int kind, std::chrono::milliseconds deadline,
                                        const std::function<void(Transport&)>& absent) {
  std::vector<std::string> errors(static_cast<std::size_t>(ranks));
  run_ranks(
      ranks,
      [&](Transport& t) {
        EveryCall every(t);
        if (t.rank() >= first_absent) return absent(t);
        try {
          every.collectives("bucket 3")[static_cast<std::size_t>(kind)].second();
        } catch (const Error& error) {
          errors[static_cast<std::size_t>(t.rank())] = std::string(name_of(error.code())) + ": " + error.what();
        }
      },
      with_deadline(deadline));
  return errors;
}

constexpr std::array kinds{"reduce_scatter", "all_gather", "exchange", "all_gather_small", "broadcast", "barrier"};

// With one rank that waits, what it says does not depend on who is quick.
TEST(LocalDeadline, NamesTheCollectiveAndAllWhoDidNotArrive) {
  std::vector<std::jthread> threads;
  threads.emplace_back([] {
    const auto until_others_know = [](Transport& t) { await_failures(t, {0}); };
    const std::string said = errors_without(2, 1, 5, std::chrono::milliseconds(2500), until_others_know)[0];
    EXPECT_NE(said.find("within the deadline of 2.5 s: rank 1 did"), std::string::npos) << said;
  });
  for (int kind = 0; kind < std::ssize(kinds); ++kind) {
    for (const int ranks : {2, 3, 4}) {
      threads.emplace_back([=] {
        const std::string said =
            errors_without(ranks, 1, kind, short_deadline, [](Transport& t) { await_failures(t, {0}); })[0];
        std::string who = ranks == 2 ? "rank 1" : ranks == 3 ? "ranks 1 and 2" : "ranks 1, 2 and 3";
        if (kinds[kind] == std::string("broadcast")) who = "rank " + std::to_string(ranks - 1);  // its root
        EXPECT_EQ(said, std::string(name_of(Code::timeout)) + ": " + kinds[kind] +
                            " 'bucket 3' did not complete within the deadline of 3 s: " + who + " did not arrive");
      });
    }
  }
}

TEST(LocalFarewell, EndsEveryCollectiveByName) {
  for (int kind = 0; kind < std::ssize(kinds); ++kind) {
    for (const std::string& said : errors_without(3, 2, kind, generous_deadline, [](Transport&) {})) {
      if (said.empty()) continue;
      const std::string part = "rank 2 has left the job: " + std::string(kinds[kind]) + " 'bucket 3' cannot complete";
      EXPECT_NE(said.find(part), std::string::npos) << said;
    }
    const std::string alone = errors_without(2, 1, kind, generous_deadline, [](Transport&) {})[0];
    EXPECT_EQ(alone, std::string(name_of(Code::transport)) + ": rank 1 has left the job: " + kinds[kind] +
                         " 'bucket 3' cannot complete");
  }
}

// One that has done its part before it leaves is not missed.
TEST(LocalFarewell, AfterItsPartHarmsNobody) {
  for (int round = 0; round < 20; ++round)
    run_ranks(2, [&](Transport& t) {
      std::vector<int> value{t.rank() == 1 ? 5 : 0};
      t.broadcast(writable_bytes_of(value), 1, "the last one").wait();
      EXPECT_EQ(value[0], 5);
    });
}

// ---- calls that do not belong together

struct Calls {
  const char* what;
  std::function<void(Transport&, const std::array<SymmetricBuffer, 2>&, std::string_view)> first, second;
};

TEST(LocalMismatch, IsToldWithBothLabels) {
  const auto gather = [](std::vector<std::int64_t> bounds, std::int64_t offset = 0, int buffer = 0) {
    return [=](Transport& t, const std::array<SymmetricBuffer, 2>& buffers, std::string_view label) {
      t.all_gather(buffers[static_cast<std::size_t>(buffer)], offset, bounds, label).wait();
    };
  };
  const auto reduce = [](Transport& t, const std::array<SymmetricBuffer, 2>& buffers, std::string_view label) {
    const std::vector<std::int64_t> bounds{0, 64, 128};
    t.reduce_scatter(
         buffers[0], 0, bounds, [](auto, auto, auto) {}, label)
        .wait();
  };
  const auto barrier = [](Transport& t, const auto&, std::string_view label) { t.barrier(label); };
  const std::vector<Calls> all{{"kind", gather({0, 64, 128}), reduce},
                               {"a barrier", gather({0, 64, 128}), barrier},
                               {"buffer", gather({0, 64, 128}), gather({0, 64, 128}, 0, 1)},
                               {"offset", gather({0, 64, 128}), gather({0, 64, 128}, 64)},
                               {"first bound", gather({0, 64, 128}), gather({32, 64, 128})},
                               {"inner bound", gather({0, 64, 128}), gather({0, 32, 128})},
                               {"last bound", gather({0, 64, 128}), gather({0, 64, 120})},
                               {"bounds moved by the offset", gather({64, 128, 192}), gather({0, 64, 128}, 64)}};
  const std::string rest =
      " is at a label that is longer than a row of the board has room for: " + std::string(90, 'x');
  const std::string labels[] = {"rank 0" + rest, "rank 1" + rest};
  for (const Calls& calls : all) {
    std::array<std::string, 2> said;
    run_ranks(2, [&](Transport& t) {
      const std::array buffers{t.allocate(256), t.allocate(256)};
      try {
        (t.rank() == 0 ? calls.first : calls.second)(t, buffers, labels[t.rank()]);
        t.barrier("after");
      } catch (const Error& error) {
        said[static_cast<std::size_t>(t.rank())] = error.what();
      }
    });
    bool seen = false;
    for (int r = 0; r < 2; ++r) {
      const std::string other = "rank " + std::to_string(1 - r);
      const std::string& own = said[static_cast<std::size_t>(r)];
      const bool passed_on = own.rfind(other + " stopped: ", 0) == 0;
      const std::string sentence = other + " is at '" + labels[1 - r].substr(0, BoardRow::label_bytes - 1) +
                                   "' with another kind, buffer or bounds while rank " + std::to_string(r) + " is at ";
      EXPECT_TRUE(passed_on || own.rfind(sentence, 0) == 0) << calls.what << ": " << own;
      seen = seen || !passed_on;
    }
    EXPECT_TRUE(seen) << calls.what << ": " << said[0] << "\n" << said[1];
  }
}

// ---- done, but not too early

TEST(LocalReduceScatter, IsNotDoneBeforeAllHaveRead) {
  std::atomic<bool> reading = false, looked = false;
  run_ranks(2, [&](Transport& t) {
    const SymmetricBuffer buffer = t.allocate(128);
    const std::vector<std::int64_t> bounds{0, 64, 128};
    const auto hold = [&, rank = t.rank()](auto, auto, auto) {
      if (rank == 0) return;
      reading = true;
      await("the other rank to have looked", [&] { return looked.load(); });
    };
    const Ticket ticket = t.reduce_scatter(buffer, 0, bounds, hold, "held");
    if (t.rank() == 0) {
      await("rank 1 to read", [&] { return reading.load(); });
      const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(30);
      while (std::chrono::steady_clock::now() < until) {
        EXPECT_FALSE(ticket.done());
        std::this_thread::yield();
      }
      looked = true;
    }
    ticket.wait();
    EXPECT_TRUE(ticket.done());
    EXPECT_GT(ticket.busy_ns(), 20'000'000 * (1 - t.rank())) << "waiting for peers is time spent in it";
  });
}

// Messages that leave few bytes of the ring free, sent while nobody reads.
TEST(LocalExchange, ArrivesThroughARingThatIsFullButForAFewBytes) {
  const std::int64_t ring = Board::bytes(2) / 4 / 4096 * 4096;
  for (std::int64_t left = 0; left <= 36; left += left < 14 || left > 18 ? 5 : 1) {
    std::atomic<bool> sent = false;
    run_ranks(2, [&](Transport& t) {
      const std::int64_t lengths[] = {ring - 16 - left, 1, 40, ring + 3, 2};
      std::array<std::vector<std::byte>, 5> data;
      const std::vector<std::int64_t> none(2, 0);
      std::vector<std::int64_t> counts;
      for (const std::int64_t length : lengths) counts.insert(counts.end(), {0, length, length, 0});
      std::vector<Ticket> tickets;
      if (t.rank() == 1) await("rank 0 to have filled the ring", [&] { return sent.load(); });
      for (std::size_t k = 0; k < data.size(); ++k) {
        const std::span counts_of(counts.data() + 4 * k + (t.rank() == 0 ? 0 : 2), 2);
        data[k].assign(static_cast<std::size_t>(lengths[k]), static_cast<std::byte>(t.rank() == 0 ? 3 * k + 1 : 0));
        for (std::size_t i = 0; i < data[k].size() && t.rank() == 0; i += 97)
          data[k][i] = static_cast<std::byte>(i / 97);
        tickets.push_back(t.rank() == 0 ? t.exchange(data[k], counts_of, {}, none, "to the brim")
                                        : t.exchange({}, none, data[k], counts_of, "to the brim"));
        if (k == 0 && t.rank() == 0) {
          tickets[0].wait();
          sent = true;
        }
      }
      for (std::size_t k = 0; k < data.size(); ++k) {
        tickets[k].wait();
        for (std::size_t i = 0; i < data[k].size(); ++i)
          if (data[k][i] != (i % 97 == 0 ? static_cast<std::byte>(i / 97) : static_cast<std::byte>(3 * k + 1)))
            throw std::logic_error("byte " + std::to_string(i) + " of message " + std::to_string(k) + " with " +
                                   std::to_string(left) + " left");
      }
    });
  }
}

}  // namespace
}  // namespace regatta::testing
