#pragma once
// Whether the MPI library sends from and receives into a CUDA device's memory.

namespace regatta {

/// What the library says of itself. Requires a running MPI. Libraries without a way to ask count as ones that do not.
bool mpi_says_it_takes_cuda_memory();

}  // namespace regatta
