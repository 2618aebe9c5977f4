// run_on_ranks over threads of this process: exit codes, what is said of whom, agreement, signals, and what --mesh,
// --transport and --deadline become.

#include "cli/ranks.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <limits>
#include <set>
#include <stdexcept>
#include <thread>

#include "cli/mesh_ranks.h"
#include "runtime/error.h"

namespace regatta::cli {
namespace {

struct Ended {
  int exit_code = -1;
  std::string said;
};

RunOptions options_of_tests() {
  RunOptions options;
  options.program = "regatta tests";
  options.world = "mesh dp=3";
  options.transport.deadline = std::chrono::minutes(2);
  options.grace = std::chrono::minutes(2);
  return options;
}

Ended run(int ranks, const std::function<void(RankContext&)>& body, const RunOptions& options = options_of_tests(),
          const std::string& transport = "local") {
  ::testing::internal::CaptureStderr();
  Ended ended;
  ended.exit_code = run_on_ranks(transport, ranks, options, body);
  ended.said = ::testing::internal::GetCapturedStderr();
  return ended;
}

TEST(RunOnRanks, GivesEachRankItsNumber) {
  std::atomic<int> seen = 0;
  const auto body = [&](RankContext& context) {
    EXPECT_EQ(context.rank, context.transport.rank());
    EXPECT_EQ(context.world_size, context.transport.world_size());
    EXPECT_FALSE(context.stop_requested());
    EXPECT_FALSE(context.drain_requested());
    EXPECT_EQ(context.transport.options().deadline, std::chrono::minutes(2));
    seen += 1 << (4 * context.rank);
  };
  for (const auto& [asked, expected] : {std::pair{3, 0x111}, {1, 0x1}, {0, 0x1}}) {
    seen = 0;
    const Ended ended = run(asked, body);
    EXPECT_EQ(ended.exit_code, 0);
    EXPECT_EQ(ended.said, "");
    EXPECT_EQ(seen, expected);
  }
  const Ended ended = run(-2, body);
  EXPECT_EQ(ended.exit_code, 2);
  EXPECT_EQ(ended.said, "regatta tests: mesh dp=3 has -2 ranks\n");
}

// Which exit code and sentence each kind of exception becomes, thrown by one rank while the others wait for it.
TEST(RunOnRanks, TellsWhatOneRankThrew) {
  struct Case {
    std::function<void()> thrown;
    int exit_code;
    std::string sentence;
  };
  std::vector<Case> cases{{[] { throw std::invalid_argument("axis 'dp' is 0"); }, 2, "axis 'dp' is 0"},
                          {[] { throw std::runtime_error("something else"); }, 1, "something else"},
                          {[] { throw 42; }, 1, "an unknown exception was thrown"}};
  for (const Code code : {Code::invalid_argument, Code::timeout, Code::transport, Code::device, Code::checkpoint,
                          Code::non_finite, Code::aborted})
    cases.push_back(
        {[code] { throw Error(code, "of an error"); }, code == Code::invalid_argument ? 2 : 1, "of an error"});
  for (const Case& one : cases)
    for (int culprit = 0; culprit < 3; ++culprit) {
      const Ended ended = run(3, [&](RankContext& context) {
        context.transport.barrier("together");
        if (context.rank == culprit) one.thrown();
        context.transport.barrier("never complete");
      });
      EXPECT_EQ(ended.exit_code, one.exit_code) << one.sentence;
      // One may fail in the first barrier, when the culprit is quick; within one process that is no news either.
      EXPECT_EQ(ended.said, "regatta tests: rank " + std::to_string(culprit) + ": " + one.sentence + "\n");
    }
}

TEST(RunOnRanks, TellsOfEveryRankThatFailedByItself) {
  const Ended ended = run(4, [](RankContext& context) {
    if (context.rank == 1) throw Error(Code::device, "no memory");
    if (context.rank == 3) throw Error(Code::invalid_argument, "bad shape");
  });
  EXPECT_EQ(ended.exit_code, 1);
  EXPECT_EQ(ended.said, "regatta tests: rank 1: no memory\nregatta tests: rank 3: bad shape\n");
  const Ended bad = run(4, [](RankContext& context) {
    if (context.rank > 1) throw Error(Code::invalid_argument, "bad shape " + std::to_string(context.rank));
  });
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_EQ(bad.said, "regatta tests: rank 2: bad shape 2\n");
}

TEST(RunOnRanks, AgreementsAreEverybodysErrorAndTheFirstRanksWord) {
  struct Case {
    std::vector<std::string> thrown;  // by rank; empty: nothing
    std::vector<Code> codes;
    int exit_code;
    std::string said;
  };
  const Code bad = Code::invalid_argument, disk = Code::checkpoint;
  for (const Case& one : std::vector<Case>{{{"", "", ""}, {bad, bad, bad}, 0, ""},
                                           {{"no file", "no file", "no file"}, {bad, bad, bad}, 2, "no file"},
                                           {{"no file", "no file", "no file"}, {disk, disk, disk}, 1, "no file"},
                                           {{"", "one", "two"}, {bad, bad, disk}, 2, "rank 1: one"},
                                           {{"", "one", "two"}, {bad, disk, bad}, 1, "rank 1: one"},
                                           {{"", "", "two words"}, {bad, bad, disk}, 1, "rank 2: two words"},
                                           {{"zero", "", ""}, {bad, bad, bad}, 2, "rank 0: zero"},
                                           {{"same", "same", "same"}, {bad, disk, bad}, 2, "rank 0: same"}}) {
    std::atomic<int> told = 0, went_on = 0;
    const Ended ended = run(3, [&](RankContext& context) {
      const auto rank = static_cast<std::size_t>(context.rank);
      try {
        context.agree([&] {
          if (!one.thrown[rank].empty()) throw Error(one.codes[rank], one.thrown[rank]);
        });
      } catch (const Error& error) {
        EXPECT_EQ(error.what(), one.said);
        ++told;
        throw;
      }
      context.transport.barrier("all went on");
      ++went_on;
    });
    EXPECT_EQ(ended.exit_code, one.exit_code);
    EXPECT_EQ(ended.said, one.said.empty() ? "" : "regatta tests: " + one.said + "\n");
    EXPECT_EQ(told, one.said.empty() ? 0 : 3);
    EXPECT_EQ(went_on, one.said.empty() ? 3 : 0);
  }
}

TEST(RunOnRanks, RefusesThreadsUnderALauncherOnce) {
  for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    for (const char* rank : {"0", "1"}) {
      setenv(variable, "2", 1);
      setenv("RANK", rank, 1);
      const Ended ended = run(2, [](RankContext&) { ADD_FAILURE() << "ran"; });
      unsetenv(variable);
      unsetenv("RANK");
      EXPECT_EQ(ended.exit_code, 2);
      const std::string sentence =
          "regatta tests: transport 'local' makes its ranks itself, but mpirun started 2 processes; use transport "
          "mpi\n";
      EXPECT_EQ(ended.said, rank == std::string("0") ? sentence : "");
    }
  }
  setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
  EXPECT_EQ(run(2, [](RankContext&) {}).exit_code, 0) << "one process may have many ranks";
  unsetenv("OMPI_COMM_WORLD_SIZE");
  const Ended pigeon = run(
      2, [](RankContext&) {}, options_of_tests(), "pigeon");
  EXPECT_EQ(pigeon.exit_code, 2);
  EXPECT_EQ(pigeon.said.rfind("regatta tests: transport 'pigeon' is not built into this program", 0), 0u);
}

// ---- signals

using Handler = void (*)(int);
Handler handler_of(int signal_number) {
  struct sigaction action = {};
  sigaction(signal_number, nullptr, &action);
  return action.sa_handler;
}

void raise_here(int signal_number) { kill(getpid(), signal_number); }

void wait_until(const std::function<bool()>& fact) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(2);
  while (!fact() && std::chrono::steady_clock::now() < limit) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(fact());
}

TEST(RunOnRanksSignals, StopEveryWait) {
  for (const int signal_number : {SIGINT, SIGTERM}) {
    const Ended ended = run(2, [&](RankContext& context) {
      if (context.rank == 0) {
        raise_here(signal_number);
        wait_until([&] { return context.stop_requested(); });
      }
      EXPECT_FALSE(context.drain_requested());
      while (true) context.transport.barrier("step");
    });
    EXPECT_EQ(ended.exit_code, 1);
    EXPECT_NE(ended.said.find("the job was told to stop; barrier 'step' was given up"), std::string::npos)
        << ended.said;
  }
  // The next run knows nothing of it.
  EXPECT_EQ(run(2, [](RankContext& context) { EXPECT_FALSE(context.stop_requested()); }).exit_code, 0);
}

TEST(RunOnRanksSignals, AreCaughtOnlyWhileItRuns) {
  const Handler before[] = {handler_of(SIGINT), handler_of(SIGTERM), handler_of(SIGUSR1)};
  for (const bool drains : {false, true}) {
    RunOptions options = options_of_tests();
    options.drain_signals = drains;
    run(
        1,
        [&](RankContext&) {
          EXPECT_NE(handler_of(SIGINT), before[0]);
          EXPECT_NE(handler_of(SIGTERM), before[1]);
          EXPECT_EQ(handler_of(SIGTERM) == handler_of(SIGINT), !drains);
          EXPECT_EQ(handler_of(SIGUSR1) != before[2], drains);
        },
        options);
    EXPECT_EQ(handler_of(SIGINT), before[0]);
    EXPECT_EQ(handler_of(SIGTERM), before[1]);
    EXPECT_EQ(handler_of(SIGUSR1), before[2]);
  }
}

TEST(RunOnRanksSignals, DrainFirstWhereAProgramCan) {
  RunOptions options = options_of_tests();
  options.drain_signals = true;
  for (const int signal_number : {SIGUSR1, SIGTERM}) {
    const Ended ended = run(
        2,
        [&](RankContext& context) {
          if (context.rank == 0) raise_here(signal_number);
          wait_until([&] { return context.drain_requested(); });
          if (context.rank == 0) raise_here(SIGUSR1);  // asks for no more than before
          EXPECT_FALSE(context.stop_requested());
          context.transport.barrier("in good order");
        },
        options);
    EXPECT_EQ(ended.exit_code, 0) << ended.said;
  }
  EXPECT_EQ(run(1, [](RankContext& context) { EXPECT_FALSE(context.drain_requested()); }).exit_code, 0);
  // SIGINT does not drain.
  const Ended interrupted = run(
      1,
      [&](RankContext& context) {
        raise_here(SIGINT);
        wait_until([&] { return context.stop_requested(); });
        EXPECT_FALSE(context.drain_requested());
      },
      options);
  EXPECT_EQ(interrupted.exit_code, 0) << "a body that ends well has ended well";
}

TEST(RunOnRanksSignals, ASecondRequestToEndStopsWhenItIsNotTheSameOne) {
  RunOptions options = options_of_tests();
  options.drain_signals = true;
  run(
      1,
      [&](RankContext& context) {
        const auto start = std::chrono::steady_clock::now();
        while (!context.stop_requested()) {
          raise_here(SIGTERM);
          std::this_thread::sleep_for(std::chrono::milliseconds(100));
          ASSERT_LT(std::chrono::steady_clock::now() - start, std::chrono::minutes(2));
        }
        EXPECT_TRUE(context.drain_requested());
        EXPECT_GT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1)) << "launchers repeat themselves";
      },
      options);
}

TEST(RunOnRanksSignals, ASecondInterruptEndsTheProcessAtOnce) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(run_on_ranks("local", 1, options_of_tests(),
                           [](RankContext& context) {
                             raise_here(SIGINT);
                             wait_until([&] { return context.stop_requested(); });
                             raise_here(SIGINT);
                             std::this_thread::sleep_for(std::chrono::minutes(2));
                           }),
              ::testing::ExitedWithCode(128 + SIGINT), "");
}

TEST(RunOnRanks, RanksThatDoNotEndAreNotWaitedForLongerThanTheGraceTime) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  RunOptions options = options_of_tests();
  options.grace = std::chrono::milliseconds(750);
  EXPECT_EXIT(run_on_ranks("local", 3, options,
                           [](RankContext& context) {
                             if (context.rank == 1) {
                               wait_until([&] { return context.transport.peers()[0].closed; });
                               throw Error(Code::invalid_argument, "bad input");
                             }
                             if (context.rank == 2) std::this_thread::sleep_for(std::chrono::minutes(2));
                           }),
              ::testing::ExitedWithCode(2),
              "^regatta tests: rank 2 did not end within 0.75 s after another rank failed\n"
              "regatta tests: rank 1: bad input\n$");
}

// ---- from the flags of a subcommand

TEST(MeshRanks, PassesOnWhatItWasGiven) {
  RankSettings settings;
  settings.program = "regatta tests";
  settings.mesh = "dp=2,tp=3";
  settings.deadline_seconds = 77.25;
  settings.reduction = TransportOptions::Reduction::sum;
  settings.device_messages = TransportOptions::DeviceMessages::never;
  settings.drain_signals = true;
  const Handler before = handler_of(SIGUSR1);
  std::atomic<int> ranks = 0;
  EXPECT_EQ(run_on_ranks(settings,
                         [&](RankContext& context) {
                           ++ranks;
                           const TransportOptions& options = context.transport.options();
                           EXPECT_EQ(context.world_size, 6);
                           EXPECT_EQ(options.deadline, std::chrono::milliseconds(77'250));
                           EXPECT_EQ(options.reduction, TransportOptions::Reduction::sum);
                           EXPECT_EQ(options.device_messages, TransportOptions::DeviceMessages::never);
                           EXPECT_EQ(options.device, nullptr);
                           EXPECT_NE(handler_of(SIGUSR1), before);
                         }),
            0);
  EXPECT_EQ(ranks, 6);
  settings.mesh = "dp=2";
  settings.transport = "pigeon";
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(run_on_ranks(settings, [](RankContext&) {}), 2);
  EXPECT_EQ(::testing::internal::GetCapturedStderr().rfind("regatta tests: transport 'pigeon'", 0), 0u);
}

TEST(MeshRanks, RefusesWhatIsNoMeshAndNoDeadline) {
  const auto refused = [](const RankSettings& settings) {
    try {
      run_on_ranks(settings, [](RankContext&) { ADD_FAILURE() << "ran"; });
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      return std::string(error.what());
    }
    return std::string();
  };
  RankSettings settings;
  for (const double seconds :
       {0.0, -1.0, 1e6 + 1, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    settings.deadline_seconds = seconds;
    EXPECT_EQ(refused(settings).rfind("--deadline is ", 0), 0u) << seconds;
  }
  settings.deadline_seconds = 1e6;
  EXPECT_EQ(run_on_ranks(settings, [](RankContext&) {}), 0);
  for (const char* mesh : {"dp=0", "dp", "dp=2,dp=2", "=2"}) {
    settings.mesh = mesh;
    EXPECT_NE(refused(settings), "") << mesh;
  }
}

}  // namespace
}  // namespace regatta::cli
