#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "runtime/error.h"

namespace regatta::cli {

void add_ctl(CLI::App& app) {
  CLI::App* command = app.add_subcommand("ctl", "See and steer a job (not in this build: it has no gRPC)");
  command->allow_extras();  // whatever was given, the answer is the same
  command->callback([] {
    throw Error(Code::invalid_argument,
                "this program was built without gRPC, which ctl needs; install it (Debian: libgrpc++-dev "
                "protobuf-compiler-grpc, or scripts/bootstrap) and configure again with -DREGATTA_WITH_GRPC=ON");
  });
}

}  // namespace regatta::cli
