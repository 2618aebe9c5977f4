// The transport contract under mpirun: every process runs the same list of tests. Flags of our own come after gtest's:
// --messages sends messages only, --island=N shares memory among blocks of N ranks.

#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdlib>
#include <string>

#include "runtime/transport/factory.h"
#include "tests/multiprocess/mpi_contract.h"
#include "tests/transport/transport_contract.h"
#include "tests/support/mpi_program.h"

namespace regatta::testing {
namespace {

std::string expected_data_path;

class MpiTransport : public ::testing::TestWithParam<ContractCase> {};

TEST_P(MpiTransport, Keeps) { run_here(mpi_options, GetParam().body); }

INSTANTIATE_TEST_SUITE_P(Contract, MpiTransport, ::testing::ValuesIn(contract_cases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(MpiTransport, TakesTheDataPathItWasToldTo) {
  run_here(mpi_options, [](Transport& t) {
    EXPECT_EQ(t.name(), "mpi");
    EXPECT_EQ(t.data_path(), expected_data_path);
    int size = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    EXPECT_EQ(t.world_size(), size);
  });
}

TEST(MpiTransport, GroupsWithinAnIslandShareMemory) {
  run_here(mpi_options, [](Transport& t) {
    if (mpi_options.shared_memory_ranks == 0 || t.world_size() <= mpi_options.shared_memory_ranks) return;
    const int block = mpi_options.shared_memory_ranks;
    std::vector<int> inside, across;
    for (int r = 0; r < t.world_size(); ++r) {
      if (r / block == t.rank() / block) inside.push_back(r);
      if (r % block == t.rank() % block) across.push_back(r);
    }
    EXPECT_EQ(t.split(inside)->data_path(), "shared memory");
    EXPECT_EQ(t.split(across)->data_path(), across.size() > 1 ? "messages" : "shared memory");
  });
}

TEST(MpiTransport, PeersHearOfAFailureAndOfAFarewell) {
  const std::unique_ptr<Transport> transport = make_transport("mpi", mpi_options);
  Transport& t = *transport;
  if (t.world_size() < 2) GTEST_SKIP() << "needs two ranks";
  // Nothing may be thrown past the meeting at the end.
  EXPECT_NO_THROW(t.barrier("together"));
  if (t.rank() == 1) {
    t.abort("disk full", Code::checkpoint);
    t.leave();
  } else {
    EXPECT_THROW(t.barrier("step 7"), Error);
    t.leave();
  }
  EXPECT_NO_THROW(await("all to have left", [&] {
    const std::vector<PeerStatus> peers = t.peers();
    return std::all_of(peers.begin(), peers.end(), [](const PeerStatus& peer) { return peer.closed; });
  }));
  const PeerStatus first = t.peers()[1];
  EXPECT_EQ(first.state, PeerStatus::State::failed);
  EXPECT_EQ(first.code, Code::checkpoint);
  EXPECT_FALSE(first.secondary);
  EXPECT_EQ(first.reason, "disk full");
  MPI_Barrier(MPI_COMM_WORLD);
}

}  // namespace
}  // namespace regatta::testing

int main(int argc, char** argv) {
  using namespace regatta::testing;
  ::testing::InitGoogleTest(&argc, argv);
  mpi_options.deadline = std::chrono::minutes(2);
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--messages") mpi_options.shared_memory = false;
    if (flag.rfind("--island=", 0) == 0) mpi_options.shared_memory_ranks = std::atoi(flag.c_str() + 9);
  }
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const bool whole =
      mpi_options.shared_memory && (mpi_options.shared_memory_ranks == 0 || size <= mpi_options.shared_memory_ranks);
  expected_data_path = whole || (size == 1 && mpi_options.shared_memory) ? "shared memory" : "messages";
  if (size == 1) expected_data_path = "shared memory";
  return run_all_tests_on_ranks();
}
