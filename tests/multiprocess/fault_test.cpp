// What a user sees when something goes wrong on one rank of a real job: sentences, exit code, and that it ends soon.

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <string>

namespace {

struct Finished {
  int exit_code = -1;
  std::string output;  ///< stdout and stderr
  bool by_itself = false;

  /// Ended without being asked, and not well.
  bool failed() const { return by_itself && exit_code != 0; }

  bool says(const std::string& text) const { return output.find(text) != std::string::npos; }
  int count(const std::string& text) const {
    int found = 0;
    for (auto at = output.find(text); at != std::string::npos; at = output.find(text, at + 1)) ++found;
    return found;
  }
};

// Open MPI's hwloc complains where /sys is not mounted, as in a plain chroot; that is not the program's word.
void drop_lines_of_hwloc(std::string& output) {
  for (std::size_t at = output.find("[hwloc/"); at != std::string::npos; at = output.find("[hwloc/", at)) {
    output.erase(at, output.find('\n', at) - at + 1);
  }
}

Finished run(const std::string& command) {
  Finished result;
  // More ranks than cores, also as root: containers run tests so.
  for (const char* name :
       {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"})
    setenv(name, "1", 1);
  // The limit is for a test that hangs: all waits of the program itself are shorter, but for those that must not be waited
  // for, which are longer.
  FILE* pipe = popen(("timeout -k 20 300 " + command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return result;
  char text[4096];
  for (std::size_t got = fread(text, 1, sizeof text, pipe); got > 0; got = fread(text, 1, sizeof text, pipe)) {
    result.output.append(text, got);
  }
  drop_lines_of_hwloc(result.output);
  const int status = pclose(pipe);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.by_itself = result.exit_code != 124;  // what timeout says when it has ended it
  return result;
}

// With messages the lost rank's gradients may have left before it died; then the gather that follows cannot complete.
bool names_the_lost_rank(const Finished& job) {
  return job.says(") is gone: reduce_scatter 'gradients of bucket 3' cannot complete") ||
         job.says(") is gone: all_gather 'parameters of bucket 3' cannot complete");
}

Finished run_local(int ranks, const std::string& arguments) {
  return run(std::string(RANK_PROGRAM) + " " + arguments + " --transport=local --ranks=" + std::to_string(ranks));
}

/// How the ranks' bytes travel; empty: through shared memory.
class MpiFaults : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (std::string(MPIRUN).empty()) GTEST_SKIP() << "MPI is not built in";
  }
  Finished run_mpi(int ranks, const std::string& arguments) {
    return run(std::string(MPIRUN) + " -q -n " + std::to_string(ranks) + " " + RANK_PROGRAM + " " + arguments + " " +
               GetParam());
  }
};

INSTANTIATE_TEST_SUITE_P(DataPaths, MpiFaults, ::testing::Values("", "--messages"),
                         [](const auto& info) { return info.param.empty() ? "SharedMemory" : "Messages"; });

TEST_P(MpiFaults, AGoodRunEndsWell) {
  const Finished job = run_mpi(3, "fine --ranks=3");
  EXPECT_EQ(job.exit_code, 0) << job.output;
  EXPECT_EQ(job.output, "trained on 3 ranks\n");
}

TEST_P(MpiFaults, AKilledRankIsNamedByTheOthers) {
  const Finished job = run_mpi(3, "kill");
  EXPECT_TRUE(job.failed()) << job.output;
  EXPECT_TRUE(job.says("rank_program: rank 0: ")) << job.output;
  EXPECT_TRUE(job.says("rank_program: rank 2: ")) << job.output;
  EXPECT_TRUE(job.says("rank 1 (pid ")) << job.output;
  EXPECT_TRUE(names_the_lost_rank(job)) << job.output;
}

TEST_P(MpiFaults, AnExitedRankIsNamedByTheOthers) {
  const Finished job = run_mpi(3, "exit");
  EXPECT_TRUE(job.failed()) << job.output;
  EXPECT_TRUE(names_the_lost_rank(job)) << job.output;
}

TEST_P(MpiFaults, ARankThatThrowsTellsTheOthersWhy) {
  const Finished job = run_mpi(3, "throw");
  EXPECT_EQ(job.exit_code, 1) << job.output;
  EXPECT_EQ(job.count("rank_program: rank 1: cannot write model.safetensors: disk full\n"), 1) << job.output;
  EXPECT_EQ(job.count("rank_program: rank 0: rank 1 stopped: cannot write model.safetensors: disk full\n"), 1)
      << job.output;
  EXPECT_EQ(job.count("rank_program: rank 2: rank 1 stopped: cannot write model.safetensors: disk full\n"), 1)
      << job.output;
}

TEST_P(MpiFaults, AReducerThatThrowsEndsTheJob) {
  const Finished job = run_mpi(2, "reducer");
  EXPECT_EQ(job.exit_code, 1) << job.output;
  EXPECT_TRUE(job.says("rank 1: reduce_scatter 'gradients of bucket 3': bad piece")) << job.output;
}

TEST_P(MpiFaults, AStalledRankIsNamedAtTheDeadline) {
  const Finished job = run_mpi(3, "stall --deadline-ms=4000 --grace-ms=1000");
  EXPECT_TRUE(job.failed()) << job.output;
  EXPECT_TRUE(
      job.says("reduce_scatter 'gradients of bucket 3' did not complete within the deadline of 4 s: rank 1 did "
               "not arrive"))
      << job.output;
}

TEST_P(MpiFaults, ARankThatReturnsTooEarlyIsNamed) {
  const Finished job = run_mpi(2, "return");
  EXPECT_TRUE(job.failed()) << job.output;
  EXPECT_TRUE(job.says("rank 1 has left the job: reduce_scatter 'gradients of bucket 3' cannot complete"))
      << job.output;
}

TEST_P(MpiFaults, BadInputIsToldOnceWithCodeTwo) {
  for (const std::string mode : {"agree-all", "bad-all"}) {
    const Finished job = run_mpi(3, mode);
    EXPECT_EQ(job.exit_code, 2) << job.output;
    EXPECT_EQ(job.output, mode == "bad-all" ? "rank_program: mesh: axis 'dp' has extent 0\n"
                                            : "rank_program: model.safetensors: no such file\n");
  }
}

TEST_P(MpiFaults, BadInputOfOneRankIsToldOnceWithItsRank) {
  Finished job = run_mpi(3, "agree-one");
  EXPECT_EQ(job.exit_code, 2) << job.output;
  EXPECT_EQ(job.output, "rank_program: rank 1: model.safetensors: no such file\n");
  job = run_mpi(3, "bad-one");
  EXPECT_EQ(job.exit_code, 2) << job.output;
  EXPECT_EQ(job.output, "rank_program: rank 1: shape of W is 3 x 4, expected 4 x 3\n");
}

TEST_P(MpiFaults, AMeshOfOtherSizeIsRefused) {
  const Finished job = run_mpi(2, "fine --ranks=3");
  EXPECT_EQ(job.exit_code, 2);
  EXPECT_EQ(job.output, "rank_program: mesh dp=3 has 3 ranks but mpirun started 2\n");
}

TEST_P(MpiFaults, RanksThatDoNotListenAreKilledAfterTheGraceTime) {
  const Finished job = run_mpi(2, "busy --grace-ms=1000");
  EXPECT_TRUE(job.failed()) << job.output;
  EXPECT_TRUE(job.says("rank 1: out of memory")) << job.output;
  EXPECT_TRUE(job.says("rank 1: gave up waiting for rank 0 to end")) << job.output;
}

TEST_P(MpiFaults, ASignalEndsTheJob) {
  const Finished job = run_mpi(2, "stop");
  EXPECT_TRUE(job.failed()) << job.output;
  EXPECT_TRUE(job.says("the job was told to stop")) << job.output;
}

TEST(MpiAlone, IsAWorldOfOne) {
  if (std::string(MPIRUN).empty()) GTEST_SKIP() << "MPI is not built in";
  Finished job = run(std::string(RANK_PROGRAM) + " fine");
  EXPECT_EQ(job.exit_code, 0);
  EXPECT_EQ(job.output, "trained on 1 ranks\n");
  job = run(std::string(RANK_PROGRAM) + " fine --ranks=2");
  EXPECT_EQ(job.exit_code, 2);
  EXPECT_EQ(job.output,
            "rank_program: mesh dp=2 has 2 ranks but this is a single process; start it with mpirun -n 2\n");
}

TEST(LocalRanks, UnderMpirunAreRefusedOnce) {
  if (std::string(MPIRUN).empty()) GTEST_SKIP() << "MPI is not built in";
  const Finished job = run(std::string(MPIRUN) + " -q -n 2 " + RANK_PROGRAM + " fine --transport=local --ranks=2");
  EXPECT_EQ(job.exit_code, 2);
  EXPECT_EQ(job.count("transport 'local' makes its ranks itself, but mpirun started 2 processes"), 1) << job.output;
}

TEST(LocalRanks, EndWellOrSayWhy) {
  Finished job = run_local(3, "fine");
  EXPECT_EQ(job.exit_code, 0);
  EXPECT_EQ(job.output, "trained on 3 ranks\n");
  job = run_local(3, "throw");
  EXPECT_EQ(job.exit_code, 1);
  EXPECT_EQ(job.output, "rank_program: rank 1: cannot write model.safetensors: disk full\n");
  job = run_local(3, "agree-all");
  EXPECT_EQ(job.exit_code, 2);
  EXPECT_EQ(job.output, "rank_program: model.safetensors: no such file\n");
  job = run_local(3, "agree-one");
  EXPECT_EQ(job.exit_code, 2);
  EXPECT_EQ(job.output, "rank_program: rank 1: model.safetensors: no such file\n");
  job = run_local(3, "bad-one");
  EXPECT_EQ(job.exit_code, 2);
  EXPECT_EQ(job.output, "rank_program: rank 1: shape of W is 3 x 4, expected 4 x 3\n");
  job = run_local(1, "bad-all");
  EXPECT_EQ(job.exit_code, 2);
  EXPECT_EQ(job.output, "rank_program: mesh: axis 'dp' has extent 0\n");
}

TEST(LocalRanks, ThatDoNotListenAreNotWaitedForLongerThanTheGraceTime) {
  const Finished job = run_local(2, "busy --grace-ms=500");
  EXPECT_EQ(job.exit_code, 1);
  EXPECT_TRUE(job.says("rank 1: out of memory")) << job.output;
  EXPECT_TRUE(job.says("rank 0 did not end within 0.5 s")) << job.output;
}

TEST(LocalRanks, HearSignals) {
  const Finished job = run_local(2, "stop");
  EXPECT_EQ(job.exit_code, 1);
  EXPECT_TRUE(job.says("the job was told to stop")) << job.output;
}

TEST(LocalRanks, UnknownTransportsAreListed) {
  const Finished job = run(std::string(RANK_PROGRAM) + " fine --transport=pigeon");
  EXPECT_EQ(job.exit_code, 2);
  EXPECT_TRUE(job.says("rank_program: transport 'pigeon' is not built into this program; available: local"))
      << job.output;
}

}  // namespace
