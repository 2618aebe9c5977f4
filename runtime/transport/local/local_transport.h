#pragma once
// Ranks as threads of one process: peers' buffers are read in place. The embedded default, and what most tests run on.

#include <memory>
#include <vector>

#include "runtime/transport/transport.h"

namespace regatta {

/// One root transport per rank, to be handed to one thread each. Requires world_size >= 1.
std::vector<std::unique_ptr<Transport>> make_local_transports(int world_size, const TransportOptions& options = {});

}  // namespace regatta
