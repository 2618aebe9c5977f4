#pragma once
// Where a job's ranks come from: mpirun, when this build has MPI and runs under it, or the environment.

#include "runtime/transport/nccl/meeting.h"

namespace regatta {

/// Collective under mpirun: rank 0's address then comes over MPI.
JobPlace job_place();

}  // namespace regatta
