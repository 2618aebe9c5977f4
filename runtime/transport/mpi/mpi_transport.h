#pragma once
// Ranks as processes, started by mpirun. Ranks of one host share memory and read each other's buffers in place; groups
// that span hosts, and all groups when TransportOptions::shared_memory is off, send messages; with a device whose
// memory the MPI library takes, all groups do, between the devices' memories. Over a communicator of the program's own
// instead of the whole job: mpi_communicator.h.

#include <memory>
#include <string>

#include "runtime/transport/transport.h"

namespace regatta {

bool mpi_is_built_in();
/// Name and version of the MPI library; "not built in" without one. Needs no running MPI.
std::string mpi_library();
/// Whether the MPI library says that it sends from and receives into CUDA memory (Open MPI's MPIX_Query_cuda_support,
/// MPICH's MPIX_GPU_query_support); libraries without a way to ask count as ones that do not. Requires a running MPI.
bool mpi_takes_cuda_memory();

/// This process's rank of the world that mpirun started; a world of one without mpirun. Collective over all processes.
/// Initialises MPI with MPI_THREAD_MULTIPLE unless the program has done so, and then also finalises it when the last
/// transport is destroyed, provided that no rank has failed: with a rank missing, MPI_Finalize would not return.
std::unique_ptr<Transport> make_mpi_transport(const TransportOptions& options = {});

/// Ends all processes of the job at once, whatever communicator they train in: for the program that owns the job, when
/// a rank cannot wait any longer for the others to leave. No transport or engine calls it.
[[noreturn]] void kill_mpi_job(int exit_code);

}  // namespace regatta
