// Stands in for grpc_server.cpp in a build without gRPC.

#include "runtime/control/server.h"

namespace regatta::control {

struct Server::Impl {
  std::string address;
};

Server::Server(const ServerSettings& settings, Mailbox&) {
  check(settings);
  throw Error(Code::invalid_argument,
              "this program was built without gRPC, which --control-address needs; install it (Debian: libgrpc++-dev "
              "protobuf-compiler-grpc) and configure again with -DREGATTA_WITH_GRPC=ON");
}

Server::~Server() = default;
const std::string& Server::address() const { return impl_->address; }

}  // namespace regatta::control
