#pragma once
// The transport of a communicator that the program made: the ranks of a job that train together, while others of the
// same job do something else or train another model. Apart from mpi_transport.h because this one needs <mpi.h>.

#include <mpi.h>

#include <memory>

#include "runtime/transport/transport.h"

namespace regatta {

/// This process's rank of the communicator. Collective over it; blocking; several may be made one after another and
/// used at the same time. The communicator is duplicated: the caller's own messages cannot get in the way, and it may
/// be freed at once.
///
/// Throws Error(invalid_argument), on all ranks alike, when MPI was not initialised with MPI_THREAD_MULTIPLE: messages
/// and notices travel on the communication thread beside the program's own calls. MPI that the program initialised is
/// left for it to finalise, after the transport is destroyed.
std::unique_ptr<Transport> make_mpi_transport(MPI_Comm communicator, const TransportOptions& options = {});

}  // namespace regatta
