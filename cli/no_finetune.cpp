#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "runtime/error.h"

namespace regatta::cli {

void add_finetune(CLI::App& app) {
  CLI::App* command = app.add_subcommand("finetune", "Fine-tune a decoder (not in this build: it has no LibTorch)");
  command->allow_extras();  // whatever flags were given, the answer is the same
  command->callback([] {
    throw Error(Code::invalid_argument,
                "this program was built without LibTorch, which finetune needs; install it (Debian: libtorch-dev "
                "libopenblas0-openmp, or scripts/bootstrap) and configure again with -DREGATTA_WITH_TORCH=ON");
  });
}

}  // namespace regatta::cli
