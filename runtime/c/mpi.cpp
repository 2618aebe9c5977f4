// Transports over MPI communicators.

#include "runtime/c/handles.h"
#include "runtime/c/regatta_mpi.h"
#include "runtime/transport/mpi/mpi_communicator.h"
#include "runtime/transport/mpi/mpi_session.h"

using namespace regatta::c_api;

int regatta_transport_from_mpi(MPI_Comm communicator, const char* options, regatta_transport** transport) {
  return guarded([&] {
    require(transport, "regatta_transport_from_mpi", "transport", "where to write the handle");
    *transport =
        hand_out(regatta::make_mpi_transport(communicator, transport_options(options, "regatta_transport_from_mpi")));
  });
}

int regatta_transport_from_mpi_fortran(int communicator, const char* options, regatta_transport** transport) {
  return guarded([&] {
    require(transport, "regatta_transport_from_mpi_fortran", "transport", "where to write the handle");
    if (!regatta::mpi_is_running())
      refuse("a communicator was given but MPI is not running; call MPI_Init_thread first");
    // Open MPI answers an unknown number with a null pointer.
    MPI_Comm meant = MPI_Comm_f2c(communicator);
    *transport = hand_out(regatta::make_mpi_transport(
        meant == MPI_Comm{} ? MPI_COMM_NULL : meant, transport_options(options, "regatta_transport_from_mpi_fortran")));
  });
}
