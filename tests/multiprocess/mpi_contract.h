#pragma once
// What the parts of mpi_contract_test share.

#include "runtime/transport/transport.h"

namespace regatta::testing {

/// As the program's flags say.
inline TransportOptions mpi_options;

}  // namespace regatta::testing
