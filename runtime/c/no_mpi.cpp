// Without MPI there are no communicators; regatta_mpi.h is not installed then.

#include "runtime/c/call.h"

int regatta_transport_from_mpi_fortran(int, const char*, regatta_transport**) {
  return regatta::c_api::guarded([] { regatta::c_api::refuse("transport 'mpi' is not built into this library"); });
}
