// Transports over communicators of the program's own, under mpirun -n 4: the job is split into halves that work at the
// same time, with their ranks numbered against the job's. Flags after gtest's: --messages sends messages only,
// --thread-level=single initialises MPI with less than is needed.

#include <gtest/gtest.h>
#include <mpi.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>

#include "runtime/engine/engine.h"
#include "runtime/transport/mpi/mpi_communicator.h"
#include "runtime/transport/mpi/mpi_transport.h"
#include "tests/transport/transport_contract.h"
#include "tests/support/mpi_program.h"
#include "tests/support/spmd.h"

namespace regatta::testing {
namespace {

TransportOptions mpi_options;
bool enough_threads = true;

/// Even and odd ranks of the job, the highest first.
class Half {
 public:
  Half() { MPI_Comm_split(MPI_COMM_WORLD, job_rank() % 2, -job_rank(), &communicator_); }
  ~Half() { MPI_Comm_free(&communicator_); }
  Half(const Half&) = delete;
  Half& operator=(const Half&) = delete;
  MPI_Comm get() const { return communicator_; }

 private:
  MPI_Comm communicator_ = MPI_COMM_NULL;
};

/// Runs the body on this rank of its half; when it fails here, the other ranks of the half learn of it.
void run_in_half(const std::function<void(Transport&)>& body) {
  std::unique_ptr<Transport> transport;
  {
    const Half half;
    transport = make_mpi_transport(half.get(), mpi_options);
  }  // the caller's communicator is gone from here on
  run_over(*transport, body);
}

class HalfOfAJob : public ::testing::TestWithParam<ContractCase> {};

TEST_P(HalfOfAJob, Keeps) { run_in_half(GetParam().body); }

INSTANTIATE_TEST_SUITE_P(Contract, HalfOfAJob, ::testing::ValuesIn(contract_cases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(MpiCommunicator, NumbersRanksAsTheCommunicatorDoes) {
  const Half half;
  int rank = 0, size = 0;
  MPI_Comm_rank(half.get(), &rank);
  MPI_Comm_size(half.get(), &size);
  const std::unique_ptr<Transport> t = make_mpi_transport(half.get(), mpi_options);
  EXPECT_EQ(t->rank(), rank);
  EXPECT_EQ(t->world_size(), size);
  EXPECT_EQ(t->data_path(), mpi_options.shared_memory ? "shared memory" : "messages");
  t->barrier("together");
}

/// Weights after a few steps of one matrix whose gradients depend on `seed`.
std::vector<float> train(Transport& transport, int seed) {
  constexpr int rows = 24, cols = 40;
  Engine engine({{.name = "W", .shape = {rows, cols}}}, {{.name = "all", .rule = make_rule("reg", {})}},
                sharding::Mesh({{"dp", transport.world_size()}}), transport, {});
  auto* weights = static_cast<float*>(engine.param(0).data);
  for (int i = 0; i < rows * cols; ++i) weights[i] = std::cos(0.3F * static_cast<float>(i + seed));
  engine.publish_params();
  std::vector<float> grad(rows * cols);
  for (int step = 0; step < 5; ++step) {
    for (int i = 0; i < rows * cols; ++i) {
      const bool mine = i % transport.world_size() == transport.rank();
      grad[i] = mine ? std::sin(0.7F * static_cast<float>(i + 31 * step + seed)) : 0.0F;
    }
    engine.add_grad(0, grad.data(), DType::f32);
    engine.step(0.02);
  }
  return {weights, weights + rows * cols};
}

TEST(MpiCommunicator, HalvesTrainDifferentModelsAtTheSameTime) {
  const int seed = 1000 * (job_rank() % 2);
  std::vector<float> mine, alone;
  run_in_half([&](Transport& t) { mine = train(t, seed); });
  run_ranks(1, [&](Transport& t) { alone = train(t, seed); });
  ASSERT_EQ(mine.size(), alone.size());
  EXPECT_EQ(std::memcmp(mine.data(), alone.data(), mine.size() * sizeof(float)), 0);
}

TEST(MpiCommunicator, AJobAndItsHalvesAreUsedTogether) {
  const std::unique_ptr<Transport> job = make_mpi_transport(MPI_COMM_WORLD, mpi_options);
  std::vector<float> mine;
  run_in_half([&](Transport& t) { mine = train(t, 0); });
  EXPECT_EQ(train(*job, 0), mine);
  job->barrier("end");
}

TEST(MpiCommunicator, AFailureStaysInItsHalf) {
  const Half half;
  const std::unique_ptr<Transport> t = make_mpi_transport(half.get(), mpi_options);
  const bool failing_half = job_rank() % 2 == 1;
  if (!failing_half) {
    MPI_Barrier(MPI_COMM_WORLD);  // the other half has failed by now
    t->barrier("still fine");
    return;
  }
  // Nothing may be thrown past the meeting of the halves.
  EXPECT_NO_THROW(t->barrier("together"));
  if (t->rank() == 0) t->abort("disk full", Code::checkpoint);
  EXPECT_THROW(t->barrier("step 7"), Error);
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST(MpiCommunicator, WhatADeadTransportLeftBehindIsNotHeard) {
  // The late rank's farewell finds the early rank's transport gone: the next one, over other communicators and of
  // another size, must neither hear it nor fall over it.
  const int last = 3;
  const auto late = [&](int rank) {
    if (rank == last) std::this_thread::sleep_for(std::chrono::milliseconds(60));
  };
  for (int round = 0; round < 4; ++round) {
    {
      const std::unique_ptr<Transport> job = make_mpi_transport(MPI_COMM_WORLD, mpi_options);
      ASSERT_NO_THROW(job->barrier("job"));
      late(job->rank());
    }
    const Half half;
    const std::unique_ptr<Transport> t = make_mpi_transport(half.get(), mpi_options);
    late(2 * t->rank() + 1);
    ASSERT_NO_THROW(t->barrier("half"));
  }
}

TEST(MpiCommunicator, OneProcessIsAWorldOfOne) {
  const std::unique_ptr<Transport> t = make_mpi_transport(MPI_COMM_SELF, mpi_options);
  EXPECT_EQ(t->world_size(), 1);
  t->barrier("alone");
}

TEST(MpiCommunicator, WrongOnesAreRefused) {
  require_error(Code::invalid_argument, "MPI_COMM_NULL; expected one that includes this process",
                [] { make_mpi_transport(MPI_COMM_NULL, mpi_options); });
  MPI_Comm between = MPI_COMM_NULL;
  const Half half;
  const int first_of_other_half = job_rank() % 2 == 0 ? 3 : 2;
  MPI_Intercomm_create(half.get(), 0, MPI_COMM_WORLD, first_of_other_half, 7, &between);
  require_error(Code::invalid_argument, "connects two groups", [&] { make_mpi_transport(between, mpi_options); });
  MPI_Comm_free(&between);
}

TEST(MpiCommunicator, IsLeftToItsOwnerToFinalise) {
  make_mpi_transport(MPI_COMM_WORLD, mpi_options).reset();
  make_mpi_transport(mpi_options).reset();
  int finalized = 0;
  MPI_Finalized(&finalized);
  EXPECT_EQ(finalized, 0);
}

TEST(MpiThreads, TooFewAreRefusedByEveryRank) {
  if (enough_threads) GTEST_SKIP() << "runs with --thread-level=single";
  require_error(Code::invalid_argument, "needs MPI_THREAD_MULTIPLE, but MPI was initialised with MPI_THREAD_SINGLE",
                [] { make_mpi_transport(MPI_COMM_WORLD, mpi_options); });
}

}  // namespace
}  // namespace regatta::testing

int main(int argc, char** argv) {
  using namespace regatta::testing;
  ::testing::InitGoogleTest(&argc, argv);
  mpi_options.deadline = std::chrono::minutes(2);
  int wanted = MPI_THREAD_MULTIPLE;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--messages") mpi_options.shared_memory = false;
    if (flag == "--thread-level=single") wanted = MPI_THREAD_SINGLE;
  }
  int level = 0;
  MPI_Init_thread(&argc, &argv, wanted, &level);
  enough_threads = wanted == MPI_THREAD_MULTIPLE;
  return run_all_tests_on_ranks();
}
