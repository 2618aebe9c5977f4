#pragma once
// Proves that a transport moves the right bytes on this machine, now: every collective once, with values that are
// checked.

#include <chrono>
#include <functional>
#include <string>

namespace regatta {
class Transport;
}

namespace regatta::cli {

struct SelfTest {
  std::string transport;
  int ranks = 0;
  bool ran = false;
  bool passed = false;
  bool late = false;                   ///< ended because it stood still for the deadline
  std::string detail;                  ///< why it failed or did not run
  bool takes_cuda_memory = false;      ///< the MPI library says that it does
  double reduce_scatter_gb_per_s = 0;  ///< of a 16 MiB buffer, bytes of the whole buffer over time
  double start_seconds = 0;            ///< from the call to the first collective done; includes starting processes
};

/// The body, on every rank; collective. Throws Error when a value is wrong. Returns the speed on every rank. Calls
/// `got_on` after each of its steps: on a busy machine the whole takes long, a step does not.
double exercise(
    Transport& transport, const std::function<void()>& got_on = [] {});

/// Ranks as threads of this process.
SelfTest test_local(int ranks, std::chrono::milliseconds deadline);

/// Starts `program` under mpirun with `ranks` ranks, each of which runs the body (see run_as_mpi_rank). It is ended
/// when it says nothing for the deadline.
SelfTest test_mpi(const std::string& program, int ranks, std::chrono::milliseconds deadline);

/// What a process started by test_mpi does; prints a line after each step and then one line of JSON on rank 0's stdout.
void run_as_mpi_rank(std::chrono::milliseconds deadline);

}  // namespace regatta::cli
