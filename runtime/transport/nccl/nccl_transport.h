#pragma once
// Transport "nccl": collectives of NCCL over the memory of CUDA devices, one process per rank. A communicator per
// group, one stream for all groups of a rank. Starts over MPI under mpirun (where this build has MPI), otherwise as
// torchrun tells (meeting.h).

#include <memory>
#include <string>

#include "runtime/transport/transport.h"

namespace regatta {

bool nccl_is_built_in();
/// "2.28.9"; empty when not built in.
std::string nccl_library();

/// The rank within its host, from the environment of torchrun or mpirun: which device it should take.
int local_rank_of_job();

/// Collective; blocking. `options.device` is the rank's device. Throws Error(invalid_argument) without one.
std::unique_ptr<Transport> make_nccl_transport(const TransportOptions& options);

}  // namespace regatta
