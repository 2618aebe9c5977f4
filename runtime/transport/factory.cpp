#include "runtime/transport/factory.h"

#include <algorithm>

#include "runtime/transport/local/local_transport.h"
#include "runtime/transport/mpi/mpi_transport.h"
#include "runtime/transport/nccl/nccl_transport.h"

namespace regatta {

std::vector<std::string> transport_names() {
  std::vector<std::string> names{"local"};
  if (mpi_is_built_in()) names.push_back("mpi");
  if (nccl_is_built_in()) names.push_back("nccl");
  return names;
}

void require_transport(std::string_view name) {
  const std::vector<std::string> names = transport_names();
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  std::string available;
  for (const std::string& one : names) available += (available.empty() ? "" : ", ") + one;
  throw Error(Code::invalid_argument,
              "transport '" + std::string(name) + "' is not built into this program; available: " + available);
}

bool ranks_are_threads(std::string_view name) { return name == "local"; }

std::unique_ptr<Transport> make_transport(std::string_view name, const TransportOptions& options) {
  require_transport(name);
  if (name == "mpi") return make_mpi_transport(options);
  if (name == "nccl") return make_nccl_transport(options);
  return std::move(make_local_transports(1, options).front());
}

}  // namespace regatta
