#include <cstdlib>

#include "runtime/transport/nccl/nccl_transport.h"

namespace regatta {

int local_rank_of_job() {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "LOCAL_RANK"})
    if (const char* const value = std::getenv(name)) return std::atoi(value);
  return 0;
}

}  // namespace regatta
