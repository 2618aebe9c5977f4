// Stands in for NCCL where it was not found.

#include "runtime/transport/nccl/nccl_transport.h"

namespace regatta {

bool nccl_is_built_in() { return false; }
std::string nccl_library() { return ""; }
std::unique_ptr<Transport> make_nccl_transport(const TransportOptions&) {
  throw Error(Code::invalid_argument, "transport 'nccl' is not built into this program");
}

}  // namespace regatta
