#pragma once
// Root transports by name.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/transport/transport.h"

namespace regatta {

/// Names that this program was built with, "local" first.
std::vector<std::string> transport_names();

/// Throws Error(invalid_argument) that lists what there is, when `name` is unknown or not built in.
void require_transport(std::string_view name);

/// Whether the ranks of this transport are threads of one process (else each process is one rank).
bool ranks_are_threads(std::string_view name);

/// The root transport of this process's one rank, for transports whose ranks are processes. Collective over all of
/// them; blocking. "local" gives a world of one rank; make_local_transports gives more.
std::unique_ptr<Transport> make_transport(std::string_view name, const TransportOptions& options = {});

}  // namespace regatta
