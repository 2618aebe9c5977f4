#pragma once
// A program of gtest tests under mpirun: every process runs the same list of tests, rank 0 tells, and the program fails
// when a test failed on any rank.

#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "runtime/transport/factory.h"

namespace regatta::testing {

inline int job_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

/// Runs the body on this rank; when it fails here, the other ranks learn of it and fail too instead of waiting.
template <class Body>
void run_over(Transport& transport, const Body& body) {
  try {
    body(transport);
    transport.barrier("end of the test");
  } catch (const std::exception& error) {
    transport.abort(error.what());
    throw;
  }
}
template <class Body>
void run_here(const TransportOptions& options, const Body& body) {
  run_over(*make_transport("mpi", options), body);
}

/// What main() returns, after InitGoogleTest and MPI_Init_thread.
inline int run_all_tests_on_ranks() {
  if (job_rank() != 0 && std::getenv("REGATTA_TEST_ALL_RANKS") == nullptr) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
  }
  int failed = RUN_ALL_TESTS();
  int failed_anywhere = 0;
  MPI_Allreduce(&failed, &failed_anywhere, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  if (job_rank() == 0 && failed == 0 && failed_anywhere != 0) std::fprintf(stderr, "tests failed on another rank\n");
  MPI_Finalize();
  return failed_anywhere;
}

}  // namespace regatta::testing
