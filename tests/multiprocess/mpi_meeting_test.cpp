// Part of mpi_contract_test where there is transport nccl: under mpirun its ranks meet over MPI.

#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdlib>

#include "runtime/transport/nccl/launcher.h"
#include "tests/support/mpi_program.h"

namespace regatta::testing {
namespace {

TEST(MpiMeeting, TakesRanksFromMpiAndMeetsAtRankZero) {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) GTEST_SKIP() << "needs mpirun";
  const JobPlace place = job_place();
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  EXPECT_EQ(place.rank, job_rank());
  EXPECT_EQ(place.world_size, size);
  EXPECT_NE(place.address, "");
  EXPECT_GT(place.port, 0);
  Meeting meeting(place, std::chrono::minutes(2));
  const std::vector<std::string> all =
      meeting.gather("rank " + std::to_string(job_rank()) + " at " + std::to_string(place.port));
  for (int r = 0; r < size; ++r)
    EXPECT_EQ(all[static_cast<std::size_t>(r)], "rank " + std::to_string(r) + " at " + std::to_string(place.port));
}

}  // namespace
}  // namespace regatta::testing
