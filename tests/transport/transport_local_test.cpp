// The contract on ranks as threads, and how failures of a rank reach the others.

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "runtime/transport/factory.h"
#include "tests/transport/transport_contract.h"
#include "tests/support/spmd.h"

namespace regatta::testing {
namespace {

using namespace std::chrono_literals;

class LocalTransport : public ::testing::TestWithParam<ContractCase> {};

TEST_P(LocalTransport, Keeps) {
  for (int ranks = 1; ranks <= 9; ++ranks)
    EXPECT_NO_THROW(run_ranks(ranks, GetParam().body)) << "on " << ranks << " ranks";
}

INSTANTIATE_TEST_SUITE_P(Contract, LocalTransport, ::testing::ValuesIn(contract_cases),
                         [](const auto& info) { return std::string(info.param.name); });

std::string failure_of(int ranks, const std::function<void(Transport&)>& body, std::chrono::milliseconds deadline,
                       std::vector<std::string>& sentences) {
  TransportOptions options;
  options.deadline = deadline;
  sentences.assign(static_cast<std::size_t>(ranks), "");
  try {
    run_ranks(
        ranks,
        [&](Transport& t) {
          try {
            body(t);
          } catch (const std::exception& error) {
            sentences[static_cast<std::size_t>(t.rank())] = error.what();
            throw;
          }
        },
        options);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(LocalFaults, ARankThatThrowsEndsTheOthersWithItsReason) {
  std::vector<std::string> sentences;
  const std::string first = failure_of(
      3,
      [](Transport& t) {
        if (t.rank() == 1) throw Error(Code::device, "no more memory for bucket 7");
        t.barrier("step 1");
      },
      120s, sentences);
  EXPECT_EQ(first, "no more memory for bucket 7");
  EXPECT_EQ(sentences[0], "rank 1 stopped: no more memory for bucket 7");
  EXPECT_EQ(sentences[2], "rank 1 stopped: no more memory for bucket 7");
}

TEST(LocalFaults, AReducerThatThrowsEndsAllRanks) {
  std::vector<std::string> sentences;
  failure_of(
      2,
      [](Transport& t) {
        const SymmetricBuffer buffer = t.allocate(128);
        const std::vector<std::int64_t> bounds{0, 64, 128};
        const int rank = t.rank();
        t.reduce_scatter(
             buffer, 0, bounds,
             [rank](auto, auto, auto) {
               if (rank == 0) throw std::runtime_error("bad piece");
             },
             "gradients of bucket 3")
            .wait();
      },
      120s, sentences);
  EXPECT_EQ(sentences[0], "reduce_scatter 'gradients of bucket 3': bad piece");
  EXPECT_EQ(sentences[1], "rank 0 stopped: reduce_scatter 'gradients of bucket 3': bad piece");
}

TEST(LocalFaults, AStalledRankIsNamedAtTheDeadline) {
  std::vector<std::string> sentences;
  std::atomic<bool> release = false;
  failure_of(
      3,
      [&](Transport& t) {
        if (t.rank() == 2) {
          while (!release) std::this_thread::sleep_for(1ms);
          return;
        }
        try {
          t.broadcast({}, 0, "nothing to do").wait();
          t.barrier("gradients of bucket 3");
        } catch (...) {
          release = true;
          throw;
        }
      },
      2s, sentences);
  const std::string expected =
      "barrier 'gradients of bucket 3' did not complete within the deadline of 2 s: rank 2 did not arrive";
  EXPECT_TRUE(sentences[0] == expected || sentences[1] == expected) << sentences[0] << "\n" << sentences[1];
  EXPECT_NE(sentences[0].find("rank 2 did not arrive"), std::string::npos) << sentences[0];
  EXPECT_NE(sentences[1].find("rank 2 did not arrive"), std::string::npos) << sentences[1];
  EXPECT_EQ(sentences[2], "");
}

TEST(LocalFaults, ARankThatLeavesIsNamed) {
  std::vector<std::string> sentences;
  failure_of(
      2,
      [](Transport& t) {
        if (t.rank() == 0) t.barrier("gradients of bucket 3");
      },
      120s, sentences);
  EXPECT_EQ(sentences[0], "rank 1 has left the job: barrier 'gradients of bucket 3' cannot complete");
}

TEST(LocalFaults, AfterAFailureEveryCallAnswersTheSame) {
  std::vector<std::string> sentences;
  failure_of(
      2,
      [](Transport& t) {
        if (t.rank() == 1) throw Error(Code::device, "lost");
        std::vector<std::byte> data(8);
        const Ticket first = t.broadcast(data, 1, "a");
        Ticket second;
        try {
          second = t.broadcast(data, 1, "b");
        } catch (const Error&) {
        }
        require_error(Code::aborted, "rank 1 stopped: lost", [&] { first.wait(); });
        require_error(Code::aborted, "rank 1 stopped: lost", [&] { t.barrier("later"); });
        const int self[] = {0};
        require_error(Code::aborted, "rank 1 stopped: lost", [&] { t.split(self); });
      },
      120s, sentences);
  EXPECT_EQ(sentences[0], "");
}

TEST(LocalFaults, AnExceptionPastCallsInFlightTellsItsOwnReason) {
  std::vector<std::string> sentences;
  failure_of(
      3,
      [](Transport& t) {
        const int everyone[] = {0, 1, 2};
        const std::unique_ptr<Transport> group = t.split(everyone);
        std::vector<std::byte> data(8);
        if (t.rank() == 2) {
          // This one waits for rank 0, which never sends it.
          group->broadcast(data, 0, "in flight");
          throw Error(Code::device, "no more memory for bucket 7");
        }
        t.barrier("step 1");
      },
      120s, sentences);
  EXPECT_EQ(sentences[2], "no more memory for bucket 7");
  EXPECT_EQ(sentences[0], "rank 2 stopped: no more memory for bucket 7");
  EXPECT_EQ(sentences[1], "rank 2 stopped: no more memory for bucket 7");
}

TEST(LocalFaults, TheStopFlagEndsWaits) {
  std::atomic<bool> stop = false;
  TransportOptions options;
  options.stop = &stop;
  try {
    run_ranks(
        2,
        [&](Transport& t) {
          if (t.rank() == 0) t.barrier("gradients of bucket 3");
          std::this_thread::sleep_for(20ms);
          stop = true;
          t.barrier("too late");
        },
        options);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::aborted);
    EXPECT_NE(std::string(error.what()).find("the job was told to stop"), std::string::npos) << error.what();
  }
}

TEST(LocalFaults, DifferentCallsAreToldApart) {
  std::vector<std::string> sentences;
  failure_of(
      2,
      [](Transport& t) {
        const SymmetricBuffer buffer = t.allocate(128);
        const std::vector<std::int64_t> bounds{0, t.rank() == 0 ? 64 : 32, 128};
        t.all_gather(buffer, 0, bounds, t.rank() == 0 ? "parameters of bucket 0" : "parameters of bucket 1").wait();
      },
      120s, sentences);
  EXPECT_TRUE(sentences[0].find("rank 1 is at 'parameters of bucket 1'") != std::string::npos ||
              sentences[1].find("rank 0 is at 'parameters of bucket 0'") != std::string::npos)
      << sentences[0] << "\n"
      << sentences[1];
  EXPECT_NE(sentences[0], "");
  EXPECT_NE(sentences[1], "");
}

TEST(LocalFaults, CountsThatDisagreeAreNamed) {
  std::vector<std::string> sentences;
  failure_of(
      2,
      [](Transport& t) {
        std::vector<std::byte> memory(16);
        const std::vector<std::int64_t> give{0, t.rank() == 0 ? 8 : 0}, take{t.rank() == 1 ? 12 : 0, 0};
        t.exchange(std::span(memory).first(t.rank() == 0 ? 8 : 0), give,
                   std::span(memory).first(t.rank() == 1 ? 12 : 0), take, "line sums")
            .wait();
        t.barrier("after");
      },
      120s, sentences);
  EXPECT_EQ(sentences[1], "exchange 'line sums': rank 0 sends 8 bytes, rank 1 expects 12");
  EXPECT_EQ(sentences[0], "rank 1 stopped: exchange 'line sums': rank 0 sends 8 bytes, rank 1 expects 12");
}

TEST(LocalFaults, MoreThanTheRingHoldsIsRefused) {
  std::atomic<bool> go = false;
  run_ranks(2, [&](Transport& t) {
    std::vector<std::byte> data(4);
    std::vector<Ticket> tickets;
    if (t.rank() == 1) {
      while (!go) std::this_thread::sleep_for(1ms);
    }
    for (int k = 0; k < Transport::max_in_flight; ++k) tickets.push_back(t.broadcast(data, 1, "one of many"));
    if (t.rank() == 0) {
      require_error(Code::invalid_argument, "1024 collectives are in flight",
                    [&] { t.broadcast(data, 1, "too many"); });
      go = true;
    }
    for (const Ticket& ticket : tickets) ticket.wait();
    t.barrier("all done");
  });
}

TEST(LocalFaults, AWorldOfOneRunsOnTheCaller) {
  run_ranks(1, [](Transport& t) {
    const auto caller = std::this_thread::get_id();
    const SymmetricBuffer buffer = t.allocate(64);
    const std::vector<std::int64_t> bounds{0, 64};
    bool called = false;
    const Ticket ticket = t.reduce_scatter(
        buffer, 0, bounds, [&](auto, auto, auto) { called = std::this_thread::get_id() == caller; }, "alone");
    EXPECT_TRUE(ticket.done());
    EXPECT_TRUE(called);
  });
}

TEST(TransportFactory, NamesWhatExists) {
  EXPECT_EQ(transport_names().front(), "local");
  require_error(Code::invalid_argument, "transport 'carrier pigeon' is not built into this program; available: local",
                [] { make_transport("carrier pigeon"); });
  EXPECT_EQ(make_transport("local")->world_size(), 1);
  require_error(Code::invalid_argument, "0 ranks", [] { make_local_transports(0); });
}

}  // namespace
}  // namespace regatta::testing
